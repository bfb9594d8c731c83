"""A pool's settings: what they are, which values they take, how they are written.

They are kept with the pool as JSON. A value may come as text, from a command line, or as JSON; both
are checked here, before anything happens. Pure functions over frozen values.

    on_full        `queue` or `error`: writes that find no free block wait, or fail with ENOSPC
    full_timeout   seconds that queued writes wait before they fail; 0 for ever
    discard        `passdown`: freed blocks are punched out of the data device; `nopassdown`: they
                   are only unmapped; `ignore`: clients' discards do nothing
    skip_zeroing   true: a new block that a write fills in part keeps what was there before. Only
                   for a pool whose volumes all have one owner
    low_water      per cent of the data space: with less free, the log warns
    max_clients    connections to volumes at a time, all volumes together; 0 for no limit, and then
                   there is none on the memory that their requests take
    cache          `page`: the kernel's page cache holds data, what is unwritten bounded; `bufio`: a
                   cache of the daemon's own does, over O_DIRECT
    data_cache     bytes of that cache

The last two are in effect from the daemon's next start on.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from thinpoold import datacache
from thinpoold.errors import InvalidSetting, InvalidSize
from thinpoold.sizes import exact_size, parse_size

Value: TypeAlias = str | int | bool
Rules: TypeAlias = dict[str, tuple[Callable[[Value], Value | None], str]]
"""By name: what reads a value, None for one it cannot be; and what values there are."""


ON_FULL = ("queue", "error")
DISCARD = ("passdown", "nopassdown", "ignore")
MAX_TIMEOUT = 7 * 24 * 3600
MAX_CLIENTS = 100_000
CACHE = ("page", "bufio")
MIN_DATA_CACHE = datacache.MIN_BYTES
MAX_DATA_CACHE = 1 << 40
# What the key of a volume's label stands behind.
LABEL = "label."
AT_NEXT_START = frozenset({"cache", "data_cache"})

_YES = ("true", "yes", "on", "1")
_NO = ("false", "no", "off", "0")


@dataclass(frozen=True)
class Settings:
    """The settings that can be changed at any time. The module says what each means."""

    on_full: str = "queue"
    full_timeout: int = 60
    discard: str = "passdown"
    skip_zeroing: bool = False
    low_water: int = 10
    max_clients: int = 128
    cache: str = "page"
    data_cache: int = 256 << 20

    def changed(self, changes: Mapping[str, Value]) -> "Settings":
        """Return these settings with some changed, all of them checked first.

        Names may be written with `-` for `_`. Raises InvalidSetting.
        """
        return dataclasses.replace(self, **parse(changes))

    def as_json(self) -> dict[str, Value]:
        return dataclasses.asdict(self)


def parse(changes: Mapping[str, Value]) -> dict[str, Any]:
    """Return settings by their names, as the values they have. Raises InvalidSetting."""
    return parse_by(_RULES, changes, "no setting")


def key_of(name: str) -> str:
    """Return the key of a setting that people may write with `-` for `_`; a label is as it is."""
    return name if name.startswith(LABEL) else name.replace("-", "_")


def name_of(key: str) -> str:
    """Return a setting's key as people are shown it."""
    return key if key.startswith(LABEL) else key.replace("_", "-")


def parse_by(
    rules: Rules, changes: Mapping[str, Value], unknown: str, also: str = ""
) -> dict[str, Any]:
    """Return what these rules make of the changes.

    Raises InvalidSetting, which says `unknown` for a name, and that there is `also` something.
    """
    result = {}
    for given, value in changes.items():
        name = given.replace("-", "_")
        rule = rules.get(name)
        if rule is None:
            known = [name_of(one) for one in rules] + ([also] if also else [])
            choice = ", ".join(known)
            raise InvalidSetting(f"{unknown} {given[:40]!r}: there are {choice}")
        read, values = rule
        checked = read(value)
        if checked is None:
            shown = given.replace("_", "-")
            raise InvalidSetting(f"{shown} cannot be {str(value)[:40]!r}: it is {values}")
        result[name] = checked
    return result


def as_text(name: str, value: Value) -> str:
    """Return a setting's value as `set` takes it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name == "data_cache":
        return exact_size(int(value))
    return f"{value}%" if name == "low_water" else str(value)


def _one_of(words: tuple[str, ...]) -> Callable[[Value], str | None]:
    return lambda value: value if isinstance(value, str) and value in words else None


def flag(value: Value) -> bool | None:
    """Return the boolean that a value says, None for none."""
    if isinstance(value, bool):
        return value
    word = value.lower() if isinstance(value, str) else ""
    return True if word in _YES else False if word in _NO else None


def _whole(most: int, unit: str) -> Callable[[Value], int | None]:
    def read(value: Value) -> int | None:
        if isinstance(value, str):
            digits = value.removesuffix(unit)
            if not (digits.isascii() and digits.isdigit() and len(digits) < 10):
                return None
            value = int(digits)
        return value if not isinstance(value, bool) and 0 <= value <= most else None

    return read


def _data_cache(value: Value) -> int | None:
    if isinstance(value, str):
        try:
            value = parse_size(value)
        except InvalidSize:
            return None
    fits = not isinstance(value, bool) and MIN_DATA_CACHE <= value <= MAX_DATA_CACHE
    return value if fits else None


_RULES: Rules = {
    "on_full": (_one_of(ON_FULL), "queue or error"),
    "full_timeout": (_whole(MAX_TIMEOUT, "s"), f"0 to {MAX_TIMEOUT} seconds, 0 for no limit"),
    "discard": (_one_of(DISCARD), "passdown, nopassdown or ignore"),
    "skip_zeroing": (flag, "yes or no"),
    "low_water": (_whole(100, "%"), "0% to 100%"),
    "max_clients": (_whole(MAX_CLIENTS, ""), f"0 to {MAX_CLIENTS} connections, 0 for no limit"),
    "cache": (_one_of(CACHE), "page or bufio"),
    "data_cache": (
        _data_cache,
        f"a size from {exact_size(MIN_DATA_CACHE)} to {exact_size(MAX_DATA_CACHE)}, such as 256M",
    ),
}
