"""Space map bitmaps, and the index entries that point at them.

    byte  0  csum u32, unused u32, blocknr u64
    byte 16  entries, 2 bits each, 16320 of them, the first in the lowest bits of the first byte

Of each pair the lower bit is the *high* bit of the count:

    pair (as a number)  0  2  1  3
    count               0  1  2  3 or more: look in the overflow tree

Bits for blocks beyond the end of the device are zero.

    index entry  16 bytes  blocknr u64, nr_free u32, none_free_before u32

`none_free_before` is a hint for allocation: no entry before it is free.

Thread safety: pure functions and frozen values; the caller owns the buffers it passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from construct import Bytes, Int32ul, Int64ul, Struct

from thinmeta.format.block import BLOCK_SIZE

# On disk; do not change.
ENTRIES_PER_BITMAP: Final = 16320
BITMAP_HEADER: Final = Struct("csum" / Int32ul, "unused" / Int32ul, "blocknr" / Int64ul)
BITMAP_HEADER_SIZE: Final = 16
BITMAP: Final = Struct("header" / BITMAP_HEADER, "entries" / Bytes(ENTRIES_PER_BITMAP // 4))
INDEX_ENTRY: Final = Struct("blocknr" / Int64ul, "nr_free" / Int32ul, "none_free_before" / Int32ul)
INDEX_ENTRY_SIZE: Final = 16
assert BITMAP_HEADER.sizeof() == BITMAP_HEADER_SIZE
assert BITMAP.sizeof() == BLOCK_SIZE
assert INDEX_ENTRY.sizeof() == INDEX_ENTRY_SIZE

#: A stored count of 3 stands for this or more, which the overflow tree tells.
OVERFLOW: Final = 3

#: The two bits swapped: count of a pair, and pair of a count.
_SWAPPED: Final = (0, 2, 1, 3)


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One bitmap, as the level above knows it: `nr_free` of its entries are zero."""

    blocknr: int
    nr_free: int
    none_free_before: int

    def pack(self) -> bytes:
        return bytes(
            INDEX_ENTRY.build(
                {
                    "blocknr": self.blocknr,
                    "nr_free": self.nr_free,
                    "none_free_before": self.none_free_before,
                }
            )
        )

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview) -> IndexEntry:
        raw = INDEX_ENTRY.parse(data)
        return cls(raw.blocknr, raw.nr_free, raw.none_free_before)


def get(data: bytes | bytearray, entry: int) -> int:
    """Count 0..2 of `entry` in a bitmap block, or `OVERFLOW`."""
    _check(entry)
    return _SWAPPED[data[BITMAP_HEADER_SIZE + entry // 4] >> entry % 4 * 2 & 3]


def put(data: bytearray, entry: int, count: int) -> None:
    """Store count 0..2 or `OVERFLOW` for `entry` of a bitmap block."""
    _check(entry)
    at, shift = BITMAP_HEADER_SIZE + entry // 4, entry % 4 * 2
    data[at] = data[at] & ~(3 << shift) | _SWAPPED[count] << shift


def _check(entry: int) -> None:
    if not 0 <= entry < ENTRIES_PER_BITMAP:
        raise IndexError(f"bitmap entry {entry}")
