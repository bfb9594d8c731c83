"""What goes to stdout: one JSON document, aligned tables, or a line of facts.

Text is aligned by the cells it takes in a terminal, not by characters. Pure but for `emit`.
"""

import contextlib
import json
import shutil
import sys
import unicodedata
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import click

from thinpoold.sizes import format_size

_GAP = "  "
_CUT = "…"
# A column of text is not cut narrower than this, however narrow the terminal.
_LEAST = 12


def emit(text: str) -> None:
    """Print to stdout. Raises OSError, which names stdout, where it cannot be written."""
    try:
        click.echo(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise unwritten(error) from None


def unwritten(error: OSError) -> OSError:
    """Return what says that a command has done its work, and could not tell."""
    done = f"{error.strerror}; the answer is lost, but what was asked for is done"
    return OSError(error.errno, done, "stdout")


def emit_json(document: Any) -> None:
    """Print one JSON document to stdout."""
    emit(json.dumps(document, indent=2))


def note(text: str) -> None:
    """Print a message of this program, to stderr."""
    message(f"thinpool: {text}")


def message(text: str) -> None:
    """Print to stderr. What cannot be written there changes nothing of what a command does."""
    with contextlib.suppress(OSError):
        click.echo(text, err=True)


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[int] = (),
    cut: Sequence[int] = (0,),
) -> str:
    """Return rows under a header, columns aligned; those in `right` to the right.

    On a terminal that is too narrow, the widest of the columns in `cut` are cut.
    """
    cells = [list(header), *[list(row) for row in rows]]
    widths = [max(cell_width(row[column]) for row in cells) for column in range(len(header))]
    widths = _fit(widths, cut)
    lines = []
    for row in cells:
        padded = [
            _pad(text, width, column in right)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(_GAP.join(padded).rstrip())
    return "\n".join(lines)


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Return names and values in two columns."""
    width = max(cell_width(name) for name, _ in pairs)
    return "\n".join(f"{_pad(name, width, False)}{_GAP}{value}" for name, value in pairs)


def cell_width(text: str) -> int:
    """Return how many cells of a terminal `text` takes."""
    if text.isascii():
        return len(text)
    return sum(_character_width(character) for character in text)


def size(value: int | None) -> str:
    """Return a size for a person, '-' for one that is not known."""
    return "-" if value is None else format_size(value)


def percent(part: int, whole: int) -> str:
    """Return `part` of `whole` in whole per cent, never 0% for something nor 100% for less."""
    if whole <= 0:
        return "-"
    if 0 < part < whole:
        return f"{min(max(round(part * 100 / whole), 1), 99)}%"
    return f"{part * 100 // whole}%"


def moment(text: str | None) -> str:
    """Return an ISO 8601 moment in UTC as local time, to the minute."""
    if not text:
        return "-"
    try:
        return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return text


def plural(count: int, word: str) -> str:
    """Return a count with its noun."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def can_print(text: str) -> bool:
    """Whether stdout's encoding has these characters."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _character_width(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def _pad(text: str, width: int, right: bool) -> str:
    text = _cut(text, width)
    space = " " * (width - cell_width(text))
    return space + text if right else text + space


def _cut(text: str, width: int) -> str:
    if cell_width(text) <= width:
        return text
    mark = _CUT if can_print(_CUT) else "~"
    while text and cell_width(text) + 1 > width:
        text = text[:-1]
    return text + mark


def _fit(widths: list[int], cut: Sequence[int]) -> list[int]:
    """Narrow the widest of some columns until a terminal's line holds the table."""
    if not sys.stdout.isatty():
        return widths
    room = shutil.get_terminal_size().columns - len(_GAP) * (len(widths) - 1)
    widths = list(widths)
    while sum(widths) > room:
        candidates = [column for column in cut if widths[column] > _LEAST]
        if not candidates:
            break
        widths[max(candidates, key=lambda column: widths[column])] -= 1
    return widths
