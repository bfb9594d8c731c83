"""A small Markdown into sections of roff: what docs/control-protocol.md and the prose are in.

Headings, paragraphs, lists (`-`), blocks indented by four, tables, and the marks that `roff.inline`
knows. A table becomes a list of its first column. Pure.
"""

import re
from collections.abc import Iterable, Iterator

from scripts.manual import roff

Sections = dict[str, list[str]]


def sections(text: str, first: str = "DESCRIPTION", variables: Iterable[str] = ()) -> Sections:
    """Return the sections of a document, by their names in capitals.

    What stands before the first `##` goes into the section `first`; a `#` heading is dropped.
    """
    found: Sections = {}
    current = found.setdefault(first, [])
    for block in _blocks(text):
        if match := re.match(r"## (.*)", block[0]):
            current = found.setdefault(match[1].replace("`", "").upper(), [])
        elif match := re.match(r"### (.*)", block[0]):
            current.append(f".SS {roff.argument(roff.literal(match[1].replace('`', '')))}")
        elif not re.match(r"# |<!--", block[0]):
            current += body(block, variables)
    return {name: lines for name, lines in found.items() if lines}


def body(block: list[str], variables: Iterable[str] = ()) -> list[str]:
    """Return one block that is no heading."""
    if block[0].startswith("    "):
        return [".PP", *roff.example(line[4:] for line in block)]
    if block[0].startswith("- "):
        return list(_items(block, variables))
    if block[0].startswith("|"):
        return list(_table(block, variables))
    return [".PP", roff.inline(" ".join(block), variables)]


def _blocks(text: str) -> Iterator[list[str]]:
    """Yield the lines of each block; an indented block keeps its blank lines."""
    block: list[str] = []
    lines = text.splitlines()
    for place, line in enumerate(lines):
        verbatim = bool(block) and block[0].startswith("    ")
        if not line and verbatim and any(lines[place + 1 :][:1]) and lines[place + 1][:4] == "    ":
            block.append(line)
            continue
        if block and (not line or line.startswith("#") or verbatim != line.startswith("    ")):
            # A list's or paragraph's continuation may be indented, code begins behind a blank line.
            if line and not verbatim and not line.startswith("#"):
                block.append(line)
                continue
            yield block
            block = []
        if line:
            block.append(line)
    if block:
        yield block


def _items(block: list[str], variables: Iterable[str]) -> Iterator[str]:
    item: list[str] = []
    for line in [*block, "- "]:
        if line.startswith("- ") and item:
            yield r".IP \(bu 3"
            yield roff.inline(" ".join(item), variables)
            item = []
        item.append(line.removeprefix("- "))


def _table(block: list[str], variables: Iterable[str]) -> Iterator[str]:
    titles = _cells(block[0])
    for line in block[2:]:
        first, *rest = _cells(line)
        said = [
            f"{title} {cell}" if title == "default" and cell.startswith("`") else cell
            for title, cell in zip(titles[1:], rest, strict=True)
            if cell
        ]
        yield ".TP"
        yield roff.inline(first, variables)
        yield roff.inline("; ".join(said), variables) or r"\&"


def _cells(line: str) -> list[str]:
    """Return the cells of a table's row; bars inside one are escaped."""
    return [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
