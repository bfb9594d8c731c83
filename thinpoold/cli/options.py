"""What the verbs' command lines have in common: the pool, --json, names and sizes.

Values are checked while the line is parsed, so before anything happens. A value that breaks a rule
is refused (exit status 1, with the rule); only words and flags that make no sense are wrong usage.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from thinpoold.control.params import LARGEST
from thinpoold.errors import InvalidSize
from thinpoold.names import check_name
from thinpoold.paths import PoolPaths, resolve_pool
from thinpoold.sizes import parse_size

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

Function = TypeVar("Function", bound=Callable[..., Any])

POOL_VARIABLE = "THINPOOL_POOL"

# Put before a word that starts like a negative number, so that click does not take `-5G` for an
# option: the user should read why the size will not do. No word can hold a NUL of its own.
_NEGATIVE = "\0"


@dataclass(frozen=True)
class Selected:
    """The pool that `thinpool -p` named, before the verb."""

    pool: str | None = None


class VerbCommand(click.Command):
    """A verb. Its help is kept as it is written, and -5 is a number."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        options = [one for one in self.params if isinstance(one, click.Option) and not one.is_flag]
        # Behind these click takes any word for their value.
        wanting = {name for option in options for name in option.opts}
        guarded = [
            _NEGATIVE + arg if re.match(r"-[0-9.]", arg) and before not in wanting else arg
            for before, arg in zip(["", *args], args, strict=False)
        ]
        try:
            return super().parse_args(ctx, guarded)
        except click.UsageError as error:
            # Click does not say of which command an option has no value.
            error.ctx = error.ctx or ctx
            raise


class Text(click.ParamType[Any]):
    """Any text. What a shell may complete it to, its placeholder tells: see `candidates`."""

    name = "text"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list["CompletionItem[Any]"]:
        from thinpoold.cli.candidates import candidates

        return candidates(ctx, param, incomplete)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value.removeprefix(_NEGATIVE) if isinstance(value, str) else value


class Name(Text):
    """A volume's name, by the rule."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return check_name(super().convert(value, param, ctx))


class Size(Text):
    """A size, as a count of bytes. What has a limit the pool knows, and it alone."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        value = super().convert(value, param, ctx)
        if isinstance(value, str):
            text, value = value, parse_size(value)
            if value > LARGEST:
                raise InvalidSize(
                    f"size {text[:40]} is over the format's limit: all sizes are below 8E"
                )
        return value


def verb(name: str) -> Callable[[Callable[..., None]], click.Command]:
    """Make a function the command of a verb, with -p and -h."""

    return lambda function: plain_verb(name)(pool_option(function))


def plain_verb(name: str) -> Callable[[Callable[..., None]], click.Command]:
    """Make a function the command of a verb that acts on no pool, with -h."""
    return click.command(
        name,
        cls=VerbCommand,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )


def pool_option(function: Function) -> Function:
    """Add -p/--pool."""
    return click.option(
        "-p",
        "--pool",
        metavar="POOL",
        type=Text(),
        help=f"The pool: a directory or a name. [{POOL_VARIABLE}]",
    )(function)


def pool_argument(function: Function) -> Function:
    """Add POOL as a word of its own, for the verbs that act on the pool itself."""
    return click.argument("pool_word", metavar="[POOL]", required=False, type=Text())(function)


def json_option(function: Function) -> Function:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(
        function
    )


def chosen_pool(pool: str | None, word: str | None = None) -> PoolPaths:
    """Return the paths of the pool that the command line or the environment names.

    `pool` is what -p said, `word` the positional POOL. Raises click.UsageError when there is none,
    or two.
    """
    import os

    context = click.get_current_context()
    before = context.obj.pool if isinstance(context.obj, Selected) else None
    said = {text for text in (word, pool, before) if text is not None}
    if len(said) > 1:
        raise click.UsageError(f"Which pool, {' or '.join(sorted(said))}? Name one", context)
    text = said.pop() if said else os.environ.get(POOL_VARIABLE) or None
    if text is None:
        raise click.UsageError(f"Which pool? Name it with -p POOL, or set {POOL_VARIABLE}", context)
    return resolve_pool(text)


def pairs(words: Sequence[str]) -> list[list[str]]:
    """Return words two by two. Raises click.UsageError for an odd number."""
    if len(words) % 2:
        raise click.UsageError(
            f"'{words[-1]}' has no snapshot name: give pairs of ORIGIN and SNAP",
            click.get_current_context(),
        )
    return [list(pair) for pair in zip(words[::2], words[1::2], strict=True)]
