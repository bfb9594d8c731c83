"""The tree of `thinpool`: every verb, where it lies, and its line in the list.

A verb's module is imported when the verb is called or its help asked for: a Python start is what
most commands cost.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from thinpoold import __version__
from thinpoold.cli.options import Selected, pool_option

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


@dataclass(frozen=True)
class Verb:
    """One verb: `thinpoold.cli.MODULE` has it as `FUNCTION`."""

    module: str
    function: str
    summary: str


GROUPS: Mapping[str, Mapping[str, Verb]] = {
    "Pool": {
        "init": Verb("init", "init", "Make a pool."),
        "start": Verb("lifecycle", "start", "Start a pool's daemon and print its NBD URI."),
        "tls": Verb("tls", "tls", "Make certificates or keys to serve with TLS."),
        "stop": Verb("lifecycle", "stop", "Stop a pool's daemon, everything flushed."),
        "status": Verb("status", "status", "Say how a pool is."),
        "grow": Verb("settings", "grow", "Make the data device larger, online."),
        "set": Verb("settings", "set_", "Change settings, online."),
        "get": Verb("settings", "get", "Show settings."),
    },
    "Volumes and snapshots": {
        "create": Verb("volumes", "create", "Make a thin volume."),
        "snapshot": Verb("volumes", "snapshot", "Snapshot volumes, all at one instant."),
        "list": Verb("show", "list_", "List volumes."),
        "tree": Verb("show", "tree", "Show who was snapshotted from whom."),
        "info": Verb("show", "info", "Say everything about a volume."),
        "resize": Verb("volumes", "resize", "Change a volume's size."),
        "rename": Verb("volumes", "rename", "Give a volume another name."),
        "delete": Verb("volumes", "delete", "Delete volumes."),
        "rollback": Verb("volumes", "rollback", "Bring a volume back to a snapshot."),
        "accept-loss": Verb("losses", "accept_loss", "Serve a volume of which something is lost."),
        "uri": Verb("show", "uri", "Print a volume's NBD URI."),
        "attach": Verb("attach", "attach", "Make a volume a block device."),
        "detach": Verb("attach", "detach", "Take the block device away."),
        "disconnect": Verb("disconnect", "disconnect", "Hang up on a volume's clients."),
    },
    "Metadata": {
        "check": Verb("metadata", "check", "Check all metadata."),
        "export-metadata": Verb("metadata", "export_metadata", "Write it in the kernel's format."),
    },
    "This machine": {
        "doctor": Verb("doctor", "doctor", "Say what this machine has and lacks."),
        "completion": Verb("completion", "completion", "Print a shell's completion script."),
    },
}

_VERBS = {name: verb for group in GROUPS.values() for name, verb in group.items()}


class _Tree(click.Group):
    """Loads verbs late, and lists them by group."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        verb = _VERBS.get(cmd_name)
        if verb is None:
            return None
        module = importlib.import_module(f"thinpoold.cli.{verb.module}")
        command: click.Command = getattr(module, verb.function)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list["CompletionItem[Any]"]:
        from click.shell_completion import CompletionItem

        # Not click's own, which would load every verb to see its help.
        items = [
            CompletionItem(name, help=verb.summary)
            for name, verb in _VERBS.items()
            if name.startswith(incomplete)
        ]
        return items + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, verbs in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name, verb.summary) for name, verb in verbs.items()])


@click.command(
    cls=_Tree,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit status: 0 done; 1 refused or failed, with one line that says what, why and what "
    "to do; 2 wrong usage.",
)
@pool_option
@click.version_option(__version__, prog_name="thinpool", message="%(prog)s %(version)s")
@click.pass_context
def thinpool(ctx: click.Context, pool: str | None) -> None:
    """Thin volumes and snapshots, served over NBD.

    A POOL is a directory, or the name of one under the default directory (/var/lib/thinpoold for
    root, $XDG_DATA_HOME/thinpoold for others). THINPOOL_POOL stands in for -p.

    Sizes are bytes, or numbers with K, M, G, T or P: powers of 1024. What is done to a pool can be
    done while it runs and, but for attach, while it is stopped.

    \b
    A first pool:
      thinpool init mypool --size 100G
      thinpool start mypool
      thinpool -p mypool create disk 10G
      nbdinfo "$(thinpool -p mypool uri disk)"
    """
    ctx.obj = Selected(pool)
