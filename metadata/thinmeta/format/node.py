"""Btree nodes.

    byte  0  csum, flags, blocknr     u32 u32 u64    flags: 1 internal, 2 leaf
    byte 16  nr_entries, max_entries  u32 u32
    byte 24  value_size, padding      u32 u32        bytes of one value
    byte 32  keys                     u64 each, room for max_entries, strictly ascending
    then     values                   value_size each, room for max_entries
    then     unused

As 64-bit words, which is how hot code reads a node (`memoryview.cast('Q')`, 512 words):

    word 2             nr_entries | max_entries << 32
    word 4             the first key
    word 4 + max_entries  the first value, when values are u64 (max_entries is 252 then)

Values of an internal node are u64 block numbers. Bytes beyond nr_entries mean nothing; this
program keeps them zero.

Thread safety: pure functions; the caller owns the buffers it passes.
"""

from __future__ import annotations

import struct
from typing import Any, Final

from construct import Array, Bytes, Int32ul, Int64ul, Padding, Struct, this

from thinmeta.format.block import BLOCK_SIZE, offset_of

# On disk; do not change.
INTERNAL: Final = 1
LEAF: Final = 2
KEY_SIZE: Final = 8
CHILD_SIZE: Final = 8

NODE_HEADER: Final = Struct(
    "csum" / Int32ul,
    "flags" / Int32ul,
    "blocknr" / Int64ul,
    "nr_entries" / Int32ul,
    "max_entries" / Int32ul,
    "value_size" / Int32ul,
    "padding" / Int32ul,
)
NODE: Final = Struct(
    "header" / NODE_HEADER,
    "keys" / Array(this.header.nr_entries, Int64ul),
    Padding((this.header.max_entries - this.header.nr_entries) * KEY_SIZE),
    "values" / Array(this.header.nr_entries, Bytes(this.header.value_size)),
    Padding((this.header.max_entries - this.header.nr_entries) * this.header.value_size),
)
HEADER_SIZE: Final = 32
assert NODE_HEADER.sizeof() == HEADER_SIZE

FLAGS_AT: Final = offset_of(NODE_HEADER, "flags")
ENTRIES_WORD: Final = offset_of(NODE_HEADER, "nr_entries") // 8
KEYS_WORD: Final = HEADER_SIZE // 8
assert FLAGS_AT == 4
#: flags, and behind blocknr: nr_entries, max_entries, value_size.
_HEADER_FIELDS: Final = struct.Struct("<I8xIII")
assert offset_of(NODE_HEADER, "max_entries") == ENTRIES_WORD * 8 + 4


def max_entries(value_size: int) -> int:
    """How many entries a node with values of `value_size` bytes has room for.

    A multiple of 3, so that three siblings of a third each make one full node.
    """
    fit = (BLOCK_SIZE - HEADER_SIZE) // (KEY_SIZE + value_size)
    return fit - fit % 3


def min_entries(value_size: int) -> int:
    """How many entries a node that is not a root holds at least."""
    return max_entries(value_size) // 3


def values_at(value_size: int) -> int:
    """Byte offset of the first value."""
    return HEADER_SIZE + max_entries(value_size) * KEY_SIZE


MAX_CHILDREN: Final = max_entries(CHILD_SIZE)
VALUES_WORD: Final = values_at(CHILD_SIZE) // 8
assert MAX_CHILDREN == 252
assert VALUES_WORD == KEYS_WORD + MAX_CHILDREN


def init_node(data: bytearray, flags: int, value_size: int) -> None:
    """Make `data` an empty node: all zero but for the header. To be sealed once filled."""
    data[:] = bytes(BLOCK_SIZE)
    data[:HEADER_SIZE] = NODE_HEADER.build(
        {
            "csum": 0,
            "flags": flags,
            "blocknr": 0,
            "nr_entries": 0,
            "max_entries": max_entries(value_size),
            "value_size": value_size,
            "padding": 0,
        }
    )


def header_of(data: bytes | bytearray) -> tuple[int, int, int, int]:
    """(flags, nr_entries, max_entries, value_size), read without construct."""
    flags, entries, room, size = _HEADER_FIELDS.unpack_from(data, FLAGS_AT)
    return flags, entries, room, size


def parse(data: bytes | bytearray) -> Any:
    """A whole node as a construct container (header, keys, values): for tools, not for hot code."""
    return NODE.parse(data)
