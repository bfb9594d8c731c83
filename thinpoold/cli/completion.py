"""`thinpool completion`."""

import click

from thinpoold.cli import daemon, output
from thinpoold.cli.options import plain_verb
from thinpoold.cli.shells import SHELLS, script


@plain_verb("completion")
@click.argument("shell", metavar="bash|zsh|fish", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that makes a shell complete commands, options, pools and volumes.

    It is for thinpool and for thinpoold. It asks the program itself each time, so it need not be
    made again for a newer one.

    \b
    Examples:
      eval "$(thinpool completion bash)"                   in ~/.bashrc
      eval "$(thinpool completion zsh)"                    in ~/.zshrc, behind compinit
      thinpool completion fish > ~/.config/fish/completions/thinpool.fish

    Exit status: 0 printed; 1 it could not be printed.
    """
    programs = {"thinpool": context.find_root().command, "thinpoold": daemon.command}
    for name, command in programs.items():
        output.emit(script(shell, command, name).rstrip("\n"))
