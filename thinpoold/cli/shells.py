"""Completion in bash, zsh and fish: click's own, but for a `KEY=` in zsh, behind which no blank
belongs, and for bash, where names need more care.

bash takes the line apart at `:` and `=` and puts in what it is given as it is, while a volume may
be called `db:1` or `my disk`. So here the line comes whole, is taken apart as the shell will do it,
and what goes back is quoted, from where bash will put it in. bash 4.4 or later.
"""

import os
import re
from typing import Any, ClassVar

from click.shell_completion import (
    BashComplete,
    CompletionItem,
    ShellComplete,
    ZshComplete,
    add_completion_class,
    get_completion_class,
    split_arg_string,
)

SHELLS = ("bash", "zsh", "fish")

_BASH = r"""%(complete_func)s() {
    local response kind value
    response=$(env COMP_LINE="$COMP_LINE" COMP_POINT="$COMP_POINT" \
        %(complete_var)s=bash_complete "$1" 2>/dev/null) || return
    COMPREPLY=()
    while IFS=, read -r kind value; do
        case $kind in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("$value") ;;
            part) COMPREPLY+=("$value"); compopt -o nospace ;;
        esac
    done <<<"$response"
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""

# What bash would not take as part of a word; `:` and `=` it does, though it begins anew there.
_UNSAFE = re.compile(r"([^\w@%+=:,./-])")
_MARK = "\1"


class CarefulBash(BashComplete):
    """Completes names with any character in them."""

    source_template: ClassVar[str] = _BASH

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._cut = 0
        self._quoted = False

    def source(self) -> str:
        # Without a look at which bash there is: the script may be for another machine.
        return self.source_template % self.source_vars()

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.fsencode(os.environ["COMP_LINE"])[: int(os.environ["COMP_POINT"])]
        text = line.decode("utf-8", "replace")
        # The mark ends the last word, even an empty one.
        words = split_arg_string(text + _MARK)
        while len(words) > 1 and re.match(r"\w+=", words[0]):
            del words[0]
        incomplete = words[-1].removesuffix(_MARK)
        self._look_at(raw_word(text))
        return words[1:-1], incomplete

    def format_completion(self, item: CompletionItem[str]) -> str:
        if item.type != "plain":
            return f"{item.type},"
        value = item.value[self._cut :]
        kind = "part" if value.endswith("=") else "plain"
        shown = value if self._quoted else _UNSAFE.sub(r"\\\1", value)
        return f"{kind},{shown}"

    def _look_at(self, raw: str) -> None:
        """Find out how much of the word bash keeps, and whether it is within quotes."""
        self._quoted = raw[:1] in ("'", '"')
        match = None if self._quoted else re.match(r"(?:(?:\\.|[^\\:=])*[:=])+", raw)
        kept = match[0] if match else ""
        self._cut = len(re.sub(r"\\(.)", r"\1", kept))


class ZshWithoutBlank(ZshComplete):
    """Leaves the cursor behind a word that ends in `=`."""

    source_template: ClassVar[str] = ZshComplete.source_template.replace(
        'elif [[ "$type" == "dir" ]]',
        'elif [[ "$type" == "part" ]]; then\n'
        "            compadd -U -S '' -V unsorted -- \"$key\"\n"
        '        elif [[ "$type" == "dir" ]]',
    )

    def format_completion(self, item: CompletionItem[str]) -> str:
        if item.type == "plain" and item.value.endswith("="):
            return f"part\n{item.value}\n_"
        return super().format_completion(item)


def raw_word(text: str) -> str:
    """Return the last word of a command line as it was typed, quotes and backslashes and all."""
    match = re.search(r"""(?:\\.|'[^']*(?:'|$)|"(?:\\.|[^"\\])*(?:"|$)|[^\s\\'"])*\\?$""", text)
    return match[0] if match else ""


def register() -> None:
    """Let click use the classes above."""
    add_completion_class(CarefulBash)
    add_completion_class(ZshWithoutBlank)


def variable(name: str) -> str:
    """Return the variable by which a shell asks the program `name`."""
    return f"_{name.upper()}_COMPLETE"


def script(shell: str, command: Any, name: str) -> str:
    """Return the script that makes a shell complete the program `name`."""
    register()
    kind: type[ShellComplete] | None = get_completion_class(shell)
    assert kind is not None
    return kind(command, {}, name, variable(name)).source()
