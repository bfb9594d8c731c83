"""Arithmetic on the 2-bit pairs of a bitmap, many at a time.

A stretch of pairs is one Python int, entry i of the stretch in bits 2i and 2i+1; a set of entries
is an int too, with bit 2i set for entry i.  So a whole bitmap (16320 entries, 4 KiB) is tested,
filled or searched by a few big-integer operations at C speed.

    pair (as a number)  0  2  1  3
    count               0  1  2  3 or more: look in the overflow tree

Thread safety: pure functions; the caller owns the buffers it passes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from thinmeta.format.bitmap import BITMAP_HEADER_SIZE, ENTRIES_PER_BITMAP

EVERY: Final[int] = ((1 << 2 * ENTRIES_PER_BITMAP) - 1) // 3
"""The set of all entries of a bitmap."""

_FEW_RUNS: Final = 8
_ONES: Final = re.compile("1+")


def entry_set(begin: int, end: int) -> int:
    """The set of entries begin..end-1."""
    return (EVERY & ((1 << 2 * (end - begin)) - 1)) << 2 * begin


def uniform(count: int, length: int) -> int:
    """A stretch of `length` pairs that all stand for `count`, 0, 1 or 2."""
    return (EVERY & ((1 << 2 * length) - 1)) * (0, 2, 1)[count]


def load(data: bytearray, begin: int, end: int) -> int:
    """The stretch of entries begin..end-1 of a bitmap block."""
    low, high = BITMAP_HEADER_SIZE + begin // 4, BITMAP_HEADER_SIZE + (end + 3) // 4
    stretch = int.from_bytes(data[low:high], "little") >> begin % 4 * 2
    return stretch & ((1 << 2 * (end - begin)) - 1)


def store(data: bytearray, begin: int, end: int, stretch: int) -> None:
    """Make `stretch` the entries begin..end-1 of a bitmap block."""
    low, high = BITMAP_HEADER_SIZE + begin // 4, BITMAP_HEADER_SIZE + (end + 3) // 4
    shift = begin % 4 * 2
    around = int.from_bytes(data[low:high], "little")
    around &= ~(((1 << 2 * (end - begin)) - 1) << shift)
    data[low:high] = (around | stretch << shift).to_bytes(high - low, "little")


def free_entries(data: bytearray, length: int) -> int:
    """The set of the first `length` entries that have count 0."""
    stretch = load(data, 0, length)
    return ~(stretch | stretch >> 1) & EVERY & ((1 << 2 * length) - 1)


def once_counted(stretch: int) -> int:
    """How many pairs of a stretch stand for count 1."""
    return (stretch >> 1 & ~stretch & EVERY).bit_count()


def first_run(entries: int) -> tuple[int, int]:
    """The first run (begin, end) of a set that is not empty."""
    begin = ((entries & -entries).bit_length() - 1) // 2
    gaps = ~(entries >> 2 * begin) & EVERY
    if not gaps:
        return begin, ENTRIES_PER_BITMAP
    return begin, begin + ((gaps & -gaps).bit_length() - 1) // 2


def runs(entries: int) -> Iterator[tuple[int, int]]:
    """All runs (begin, end) of a set, ascending."""
    if (entries & ~(entries << 2)).bit_count() > _FEW_RUNS:
        # One character an entry: to search that takes a twentieth of shifting the set for each run.
        for run in _ONES.finditer(f"{entries:b}"[::-2]):
            yield run.span()
        return
    base = 0
    while entries:
        begin, end = first_run(entries)
        yield base + begin, base + end
        entries >>= 2 * end
        base += end
