"""`thinpool completion`."""

import click

from thinpoold.cli import output
from thinpoold.cli.options import plain_verb
from thinpoold.cli.shells import SHELLS, script


@plain_verb("completion")
@click.argument("shell", metavar="bash|zsh|fish", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that makes a shell complete commands, options, pools and volumes.

    It asks the program itself each time, so it need not be made again for a newer one.

    \b
    Examples:
      eval "$(thinpool completion bash)"                   in ~/.bashrc
      eval "$(thinpool completion zsh)"                    in ~/.zshrc, behind compinit
      thinpool completion fish > ~/.config/fish/completions/thinpool.fish

    Exit status: 0 printed; 1 it could not be printed.
    """
    output.emit(script(shell, context.find_root().command, "thinpool").rstrip("\n"))
