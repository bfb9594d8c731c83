"""What can be set of one volume: limits, access, read-only. Functions without a state.

iops       requests of every kind a second, for all its clients together; 0: no limit
bps        bytes read, prefetched and written a second, likewise
read_only  clients may only read. Writes of those that have the volume open fail at once; who
           opened it read-only may write after opening it again
allow      who may open it: the rules of `access`
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from thinpoold.access import parse_rules, rules_text
from thinpoold.errors import InvalidSize
from thinpoold.settings import Rules, Value, flag, parse_by
from thinpoold.sizes import exact_size, parse_size
from thinpoold.volumes import VolumeRecord

MAX_IOPS: Final = 10**9
# Less and a request of the usual size takes longer than clients wait.
MIN_BPS: Final = 64 << 10
MAX_BPS: Final = 1 << 50
_UNLIMITED: Final = ("unlimited", "none", "no")


def settings_of(record: VolumeRecord) -> dict[str, Value]:
    """Return the settings of a volume, as JSON has them."""
    return {
        "iops": record.iops,
        "bps": record.bps,
        "read_only": record.read_only,
        "allow": rules_text(record.allow),
    }


def parse(changes: Mapping[str, Value]) -> dict[str, Any]:
    """Return settings by their names, as the record has them. Raises InvalidSetting.

    May ask the name service, which may take its time: with no lock held.
    """
    return parse_by(_RULES, changes, "a volume has no setting")


def as_text(name: str, value: Value) -> str:
    """Return a setting's value as `set --volume` takes it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name in ("iops", "bps") and not value:
        return "unlimited"
    return exact_size(value) if name == "bps" and isinstance(value, int) else str(value)


def _iops(value: Value) -> int | None:
    return _rate(value, 1, MAX_IOPS)


def _bps(value: Value) -> int | None:
    return _rate(value, MIN_BPS, MAX_BPS)


def _rate(value: Value, least: int, most: int) -> int | None:
    if isinstance(value, str):
        if value.lower() in _UNLIMITED:
            return 0
        try:
            value = parse_size(value)
        except InvalidSize:
            return None
    if isinstance(value, bool):
        return None
    return value if value == 0 or least <= value <= most else None


def _allow(value: Value) -> str | None:
    return parse_rules(value) if isinstance(value, str) else None


_RULES: Rules = {
    "iops": (_iops, "1 to 1000000000 requests a second, or unlimited"),
    "bps": (_bps, "64K to 1P bytes a second, or unlimited"),
    "read_only": (flag, "yes or no"),
    "allow": (_allow, "rules separated by commas"),
}
