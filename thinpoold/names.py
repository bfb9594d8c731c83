"""Names of volumes and pools: the rule, checked before anything happens.

A name is an NBD export name as well as a key people type, so the rule is wide: any UTF-8 text of 1
to 127 bytes without `/` and without control characters. It is the name of a file, too, which
`attach --user` makes, so it is neither `.` nor `..`.

A new name is not to be taken for another one either: it has no character that is not seen, or turns
the text around it. A volume that was given such a name before keeps it, and can be used by it.

Pure functions; safe from any thread.
"""

import re
import unicodedata

from thinpoold.errors import InvalidName

MAX_NAME_BYTES = 127
RULE = (
    f"a name is 1 to {MAX_NAME_BYTES} bytes of UTF-8 without '/' and control characters, and not "
    "'.' or '..'"
)

# Control characters, and the two separators that break a line as a control character would.
_REFUSED_CATEGORIES = frozenset({"Cc", "Zl", "Zp"})
NEW_RULE = f"{RULE}; a new one has no invisible characters and none that change the direction"

# Those of bidirectional text, joiners, soft hyphens, tags, byte order marks.
_NOT_SEEN = "Cf"
_DIGITS = re.compile(r"([0-9]+)")


def check_name(name: str, what: str = "volume") -> str:
    """Return `name` when it keeps the rule; raise InvalidName, which states the rule, if not.

    `what` is the kind of thing named, for the message.
    """
    problem = _problem(name)
    if problem is not None:
        raise InvalidName(f"bad {what} name {_shortened(name)!r}: it {problem}; {RULE}")
    return name


def check_new_name(name: str, what: str = "volume") -> str:
    """Return `name` when something may be given it from now on; raise InvalidName if not."""
    check_name(name, what)
    hidden = next((one for one in name if unicodedata.category(one) == _NOT_SEEN), None)
    if hidden is not None:
        called = unicodedata.name(hidden, "").lower()
        code = f"U+{ord(hidden):04X}" + (f", {called}," if called else "")
        raise InvalidName(f"bad {what} name {name[:40]!a}: it has {code} in it; {NEW_RULE}")
    return name


def is_line(text: str, most: int) -> bool:
    """Whether `text` has at most so many bytes of UTF-8, and all characters of it can be seen."""
    try:
        short = len(text.encode()) <= most
    except UnicodeEncodeError:
        return False
    refused = {*_REFUSED_CATEGORIES, _NOT_SEEN}
    return short and all(unicodedata.category(one) not in refused for one in text)


def written_alike(name: str) -> str:
    """Return what is the same for names that differ in how their characters are put together.

    >>> written_alike("o\u0308") == written_alike("\u00f6")
    True
    """
    return unicodedata.normalize("NFC", name)


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Return what puts names in the order people expect: by the numbers in them, s2 before s10.

    >>> sorted(["s10", "s2", "s02", "s"], key=natural_key)
    ['s', 's02', 's2', 's10']
    """
    parts: list[str | int] = [*_DIGITS.split(name)]
    parts[1::2] = map(int, parts[1::2])
    return parts, name


def _problem(name: str) -> str | None:
    if not name:
        return "is empty"
    try:
        encoded = name.encode("utf-8")
    except UnicodeEncodeError:
        return "is not valid UTF-8"
    if len(encoded) > MAX_NAME_BYTES:
        return f"has {len(encoded)} bytes"
    if "/" in name:
        return "has a '/'"
    if any(unicodedata.category(character) in _REFUSED_CATEGORIES for character in name):
        return "has a control character"
    if name in (".", ".."):
        return "is that of a directory"
    return None


def _shortened(name: str) -> str:
    return name if len(name) <= 40 else name[:37] + "..."
