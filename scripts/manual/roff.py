"""Text as roff, for the man macros of groff and mandoc.

Pure. Output is ASCII, and no line of it starts a request that was not meant.
"""

import re
from collections.abc import Iterable

# What roff would take for something else, or print as something that cannot be copied.
_SPECIAL = {
    "\\": r"\e",
    "`": r"\(ga",
    "^": r"\(ha",
    "~": r"\(ti",
}
_LITERAL = {**_SPECIAL, "-": r"\-", "'": r"\(aq", '"': r"\(dq"}

_INLINE = re.compile(
    r"`(?P<code>[^`]+)`"
    r"|\*\*(?P<bold>[^*]+)\*\*"
    r"|\*(?P<italic>[^*\s][^*]*)\*"
    r"|\[(?P<text>(?:`[^`]*`|[^\]`])+)\]\((?P<url>[^)]*)\)"
    r"|(?<![\w'])'(?P<quoted>(?:thinpoold?|scripts/|nbd)[^']*)'"
    r"|(?P<option>(?<![\w-])--?[a-z][a-z-]*[a-z]?(?![\w-]))"
    r"|(?P<page>\b[a-z][\w.-]*\([1-8]\))"
    r"|(?P<word>\b[A-Z][A-Z]+\b)"
)


def escape(text: str) -> str:
    """Return prose for roff; a hyphen stays a hyphen."""
    return _ascii("".join(_SPECIAL.get(character, character) for character in text))


def literal(text: str) -> str:
    """Return text that is to be copied as it is: every character stands for itself."""
    return _ascii("".join(_LITERAL.get(character, character) for character in text))


def bold(text: str, *, whole: bool = False) -> str:
    """Return bold text; none of its words is broken at a line's end if it is `whole`."""
    shown = literal(text)
    if whole:
        shown = " ".join(rf"\%{word}" for word in shown.split(" "))
    return rf"\fB{shown}\fR"


def italic(text: str) -> str:
    return rf"\fI{literal(text)}\fR"


def inline(text: str, variables: Iterable[str] = ()) -> str:
    """Return a paragraph's text, its lines joined; `variables` are words for the reader to replace.

    Marks: `code`, **bold**, *italic*, [text](url), and as they stand options, other pages, and
    commands in single quotes.
    """
    known = frozenset(variables)
    flat = " ".join(text.split())
    parts, last = [], 0
    for match in _INLINE.finditer(flat):
        parts += [escape(flat[last : match.start()]), _marked(match, known)]
        last = match.end()
    return guarded("".join([*parts, escape(flat[last:])]))


def _marked(match: re.Match[str], variables: frozenset[str]) -> str:
    kind, text = match.lastgroup, match[0]
    if kind in ("code", "bold", "quoted"):
        return bold(match[kind], whole=True)
    if kind == "italic":
        return italic(match["italic"])
    if kind == "url":
        shown = inline(match["text"])
        return f"{shown} ({literal(match['url'])})" if ":" in match["url"] else shown
    if kind == "option":
        return bold(text)
    if kind == "page":
        name, _, section = text.partition("(")
        return f"{bold(name, whole=True)}({section}"
    return italic(text) if text in variables else escape(text)


def metavar(text: str) -> str:
    """Return a placeholder as a synopsis has it: words in capitals italic, others bold."""
    parts = re.split(r"([A-Za-z][A-Za-z:]*)", text)
    return "".join(
        escape(part)
        if not re.match("[A-Za-z]", part)
        else italic(part)
        if part.isupper()
        else bold(part)
        for part in parts
    )


def example(lines: Iterable[str]) -> list[str]:
    """Return lines shown as they are, indented."""
    shown = [guarded(literal(line)) if line else "" for line in lines]
    return [".RS 4", ".EX", *shown, ".EE", ".RE"]


def guarded(line: str) -> str:
    """Return a line that is no request."""
    return rf"\&{line}" if line[:1] in (".", "'") else line


def argument(text: str) -> str:
    """Return one argument of a macro."""
    return '"' + text.replace('"', r"\(dq") + '"'


def _ascii(text: str) -> str:
    return "".join(
        character if character.isascii() else f"\\[u{ord(character):04X}]" for character in text
    )
