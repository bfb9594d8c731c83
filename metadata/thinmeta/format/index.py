"""The metadata space map's index: one block that points at all its bitmaps.

    byte  0  csum u32, padding u32, blocknr u64
    byte 16  255 index entries of 16 bytes, unused ones zero

Its size bounds the metadata: 255 bitmaps of 16320 entries, just under 16 GiB. (The data space map
keeps its index entries in a btree instead.)

Thread safety: pure functions; the caller owns the buffers it passes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from construct import Array, Int32ul, Int64ul, Struct

from thinmeta.format.bitmap import ENTRIES_PER_BITMAP, INDEX_ENTRY, INDEX_ENTRY_SIZE, IndexEntry
from thinmeta.format.block import BLOCK_SIZE

# On disk; do not change.
INDEX_ENTRIES: Final = 255
MAX_METADATA_BLOCKS: Final = INDEX_ENTRIES * ENTRIES_PER_BITMAP
INDEX: Final = Struct(
    "csum" / Int32ul,
    "padding" / Int32ul,
    "blocknr" / Int64ul,
    "entries" / Array(INDEX_ENTRIES, INDEX_ENTRY),
)
INDEX_HEADER_SIZE: Final = 16
assert INDEX.sizeof() == BLOCK_SIZE


def entry_at(entry: int) -> int:
    """Byte offset of an index entry in the block."""
    if not 0 <= entry < INDEX_ENTRIES:
        raise IndexError(f"index entry {entry}")
    return INDEX_HEADER_SIZE + entry * INDEX_ENTRY_SIZE


def pack(entries: Iterable[IndexEntry]) -> bytearray:
    """An index block with these entries from the first on, to be sealed."""
    block = bytearray(BLOCK_SIZE)
    for number, entry in enumerate(entries):
        at = entry_at(number)
        block[at : at + INDEX_ENTRY_SIZE] = entry.pack()
    return block


def unpack(data: bytes | bytearray, count: int) -> list[IndexEntry]:
    """The first `count` entries of an index block."""
    view = memoryview(data)
    return [
        IndexEntry.unpack(view[entry_at(n) : entry_at(n) + INDEX_ENTRY_SIZE]) for n in range(count)
    ]
