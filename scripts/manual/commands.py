"""Sections of a page from a click command: what its help has, in a manual's order.

The help's own form is what is relied on: paragraphs; `\b` blocks shown as they are, one of which
may begin `Example:` or `Examples:`; a last paragraph `Exit status: 0 ...; 1 ...`.
"""

import inspect
import re
from collections.abc import Iterator

import click

from scripts.manual import roff
from scripts.manual.markdown import Sections
from thinpoold.cli.run import INTERRUPTED, PIPE_CLOSED

_STATUS = re.compile(r"Exit status:\s*", re.IGNORECASE)
_WRONG_USAGE = "The command line makes no sense."


def context(command: click.Command, name: str) -> click.Context:
    return click.Context(command, info_name=name, **command.context_settings)


def shown(command: click.Command) -> list[click.Parameter]:
    """The parameters that a page lists; --help is none of the command's own."""
    return [one for one in command.params if not getattr(one, "hidden", False)]


def variables(command: click.Command) -> set[str]:
    """The words that stand for something else in the command's help."""
    names = (one.metavar or "" for one in command.params)
    return {word for name in names for word in re.findall(r"[A-Z]{2,}", name)}


def synopsis(command: click.Command, words: str) -> list[str]:
    """Return one command line with all that may stand on it."""
    lines = [f".SY {roff.argument(roff.literal(words))}"]
    rest = []
    for parameter in shown(command):
        if isinstance(parameter, click.Option):
            # Unbreakable: an option stays on one line with its value.
            text = _spelled(parameter, command, parameter.opts[:1]).replace(" ", r"\ ")
            lines.append(text if parameter.required else f"[{text}]")
        else:
            rest.append(roff.metavar(_place(parameter, command)))
    if isinstance(command, click.Group):
        rest = [roff.italic("COMMAND"), "[" + roff.italic("ARGUMENT") + "...]"]
    return [*lines, *rest, ".YS"]


def description(command: click.Command, *, shared: bool = True) -> Sections:
    """Return DESCRIPTION, EXAMPLES and EXIT STATUS, as far as the help has them.

    `shared` adds the exit statuses that all commands have.
    """
    known = variables(command)
    found: Sections = {"DESCRIPTION": [], "EXAMPLES": [], "EXIT STATUS": []}
    for paragraph in _paragraphs(command):
        if paragraph[0] == "\b":
            _verbatim(paragraph[1:], found)
        elif _STATUS.match(paragraph[0]):
            found["EXIT STATUS"] = statuses(" ".join(paragraph), known, shared=shared)
        else:
            found["DESCRIPTION"] += [".PP", roff.inline(" ".join(paragraph), known)]
    return {name: lines for name, lines in found.items() if lines}


def statuses(text: str, known: set[str], *, shared: bool = True) -> list[str]:
    """Return a list of `Exit status: 0 this; 1 that.`"""
    lines = []
    said = _STATUS.sub("", text)
    parts = re.split(r";\s+(?=\d+\s)", said)
    for part in parts:
        number, _, meaning = part.partition(" ")
        meaning = meaning[:1].upper() + meaning[1:]
        lines += _tagged(roff.bold(number), meaning.rstrip(".") + ".", known)
    if not shared:
        return lines
    if not any(part.startswith("2 ") for part in parts):
        lines += _tagged(roff.bold("2"), _WRONG_USAGE, known)
    both = f"{roff.bold(str(INTERRUPTED))}, {roff.bold(str(PIPE_CLOSED))}"
    return lines + _tagged(both, "Interrupted; whoever read the output went away.", known)


def options(command: click.Command) -> list[str]:
    """Return the list of options, --help last."""
    known = variables(command)
    lines = []
    for parameter in shown(command):
        if not isinstance(parameter, click.Option):
            continue
        text = re.sub(r"\s*\[([^][]*)\]$", r" Default: `\1`.", parameter.help or "")
        # What is in brackets at -p is a variable, not a default.
        text = re.sub(r"Default: `([A-Z_]+)`\.$", r"The environment variable `\1` stands in.", text)
        if parameter.show_default and parameter.default is not None:
            text += f" Default: `{parameter.default}`."
        names = _spelled(parameter, command, parameter.opts)
        lines += _tagged(names, text, known)
    tag = ", ".join(map(roff.bold, command.get_help_option_names(context(command, ""))))
    return lines + _tagged(tag or roff.bold("--help"), "Show a summary and exit.", known)


def subcommands(group: click.Group, words: str) -> list[str]:
    """Return a part for each command of a group, with its own synopsis and options."""
    lines: list[str] = []
    own = context(group, words)
    for name in group.list_commands(own):
        command = group.get_command(own, name)
        if command is None or command.hidden:
            continue
        said = description(command, shared=False)
        lines += [f".SS {roff.argument(roff.literal(f'{words} {name}'))}"]
        lines += [*synopsis(command, f"{words} {name}"), *said.pop("DESCRIPTION", [])]
        lines += options(command)
        for title, part in said.items():
            lines += [".PP", roff.inline(f"{title.capitalize()}:"), *part]
    return lines


def _paragraphs(command: click.Command) -> Iterator[list[str]]:
    for text in re.split(r"\n\s*\n", inspect.cleandoc(command.help or "")):
        lines = text.splitlines()
        if lines:
            yield lines


def _verbatim(lines: list[str], found: Sections) -> None:
    title = lines[0].strip() if lines[0].endswith(":") else ""
    rest = lines[1:] if title else lines
    indent = min(len(line) - len(line.lstrip()) for line in rest if line.strip())
    shown_lines = roff.example(line[indent:] for line in rest)
    if title in ("Example:", "Examples:"):
        found["EXAMPLES"] += [".PP", *shown_lines]
    elif title:
        found["EXAMPLES"] += [".PP", roff.inline(title), *shown_lines]
    else:
        found["DESCRIPTION"] += [".PP", *shown_lines]


def _tagged(tag: str, text: str, known: set[str]) -> list[str]:
    return [".TP", tag, roff.inline(text, known) or r"\&"]


def _spelled(option: click.Option, command: click.Command, names: list[str]) -> str:
    spelled = ", ".join(map(roff.bold, names))
    if option.is_flag or option.count:
        return ", ".join([spelled, *map(roff.bold, option.secondary_opts)])
    return f"{spelled} {roff.metavar(_place(option, command).strip('[]'))}"


def _place(parameter: click.Parameter, command: click.Command) -> str:
    return parameter.make_metavar(context(command, ""))
