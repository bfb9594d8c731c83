"""A btree node taken apart into what its neighbourhood foretells and what is left.

Nearly all of a node can be foretold, because keys and data blocks come in runs. From each key the
node's first key and the entry's index are subtracted; from each u64 value the index, in units of
what stands above the time. Of a run that leaves a constant. The remainders are cut into planes: all
lowest bytes, all second bytes, and so on. A plane that is one byte over and over is not stored.

    byte  0  csum         u32   the node's own
    byte  4  flags        u8    the node's, and SHIFTED
    byte  5  value_size   u8
    byte  6  nr_entries   u16
    byte  8  stored       u32   bit p: plane p is stored; 8 planes of keys, then value_size planes
    byte 12  first key    u64
    byte 20  first value  value_size bytes; where planes are not stored, all values have its byte
    then     planes       nr_entries bytes each

All entries are handled as *one* Python integer: the subtraction is one bigint operation, and
cutting planes a strided slice, both at C speed. Entries may borrow from each other; the sum, modulo
the integer's size, gives it back. So any entries in any order come through, bit for bit.

Thread safety: pure functions.
"""

from __future__ import annotations

import struct
from array import array
from functools import cache
from typing import Final, NamedTuple

from thinmeta.format.bitmap import INDEX_ENTRY_SIZE
from thinmeta.format.block import BLOCK_SIZE
from thinmeta.format.node import (
    HEADER_SIZE,
    INTERNAL,
    KEY_SIZE,
    LEAF,
    NODE_HEADER,
    max_entries,
    values_at,
)
from thinmeta.format.values import DETAILS_SIZE, MAPPING_SIZE, REF_COUNT_SIZE, TIME_BITS

SHIFTED: Final = 0x80  # on disk: the values are mappings, their index was subtracted above the time

_HEAD: Final = struct.Struct("<IBBHIQ")
assert _HEAD.size == 20

#: The node header's fields as `NODE_HEADER` declares them, for one unpack.
_NODE: Final = struct.Struct("<IIQIIII")
assert _NODE.size == NODE_HEADER.sizeof() == HEADER_SIZE

#: value size: (max_entries, where values start)
_SHAPES: Final = {
    size: (max_entries(size), values_at(size))
    for size in (MAPPING_SIZE, REF_COUNT_SIZE, INDEX_ENTRY_SIZE, DETAILS_SIZE)
}
_ZEROS: Final = bytes(BLOCK_SIZE)


class Head(NamedTuple):
    """What is stored of a node but for its planes; sizes in bytes."""

    csum: int
    flags: int
    value_size: int
    nr_entries: int
    stored: int
    first_key: int
    first_value: bytes

    @property
    def size(self) -> int:
        return _HEAD.size + self.value_size

    @property
    def planes_size(self) -> int:
        return self.stored.bit_count() * self.nr_entries

    def pack(self) -> bytes:
        return _HEAD.pack(*self[:-1]) + self.first_value

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> Head:
        """Read a head from the start of `data`. Raises `ValueError` for any other bytes."""
        if len(data) < _HEAD.size:
            raise ValueError("a node's record is cut short")
        csum, flags, value_size, nr_entries, stored, first_key = _HEAD.unpack_from(data)
        room, _ = _SHAPES.get(value_size, (0, 0))
        first_value = bytes(data[_HEAD.size : _HEAD.size + value_size])
        if not 0 < nr_entries <= room or stored >> KEY_SIZE + value_size:
            raise ValueError("a node's record makes no sense")
        if len(first_value) != value_size:
            raise ValueError("a node's record is cut short")
        return cls(csum, flags, value_size, nr_entries, stored, first_key, first_value)


def take_apart(block: int, data: bytes | bytearray) -> tuple[Head, bytes] | None:
    """Head and planes of the node `block`.

    None for what is no node, or has in it what a head has no room for: bytes beyond its entries,
    another block's number.
    """
    csum, flags, number, n, room, size, padding = _NODE.unpack_from(data)
    shape = _SHAPES.get(size)
    if shape is None or room != shape[0] or not 0 < n <= room or padding or number != block:
        return None
    values = shape[1]
    keys_end, values_end = HEADER_SIZE + n * KEY_SIZE, values + n * size
    if (
        (flags != LEAF and flags != INTERNAL)
        or data[keys_end:values] != _ZEROS[keys_end:values]
        or data[values_end:] != _ZEROS[values_end:]
    ):
        return None

    first_key = int.from_bytes(data[HEADER_SIZE : HEADER_SIZE + KEY_SIZE], "little")
    shifted = size == MAPPING_SIZE and any(data[values + TIME_BITS // 8 : values + MAPPING_SIZE])
    whole = int.from_bytes(data[HEADER_SIZE:keys_end] + data[values:values_end], "little")
    rest = whole - _foretold(n, size, shifted, first_key)
    total = n * (KEY_SIZE + size)
    if rest < 0:
        rest &= (1 << 8 * total) - 1
    stored, first_value, planes = _cut(rest.to_bytes(total, "little"), n, size)
    if shifted:
        flags |= SHIFTED
    return Head(csum, flags, size, n, stored, first_key, first_value), planes


def put_together(block: int, head: Head, planes: bytes) -> bytearray:
    """The node `block` of which `take_apart` made these; a fresh buffer."""
    n, size = head.nr_entries, head.value_size
    split, total = n * KEY_SIZE, n * (KEY_SIZE + size)
    shifted = bool(head.flags & SHIFTED)
    whole = int.from_bytes(_joined(head, planes), "little")
    whole += _foretold(n, size, shifted, head.first_key)
    if whole >> 8 * total:
        whole &= (1 << 8 * total) - 1
    entries = whole.to_bytes(total, "little")

    room, values = _SHAPES[size]
    data = bytearray(BLOCK_SIZE)
    _NODE.pack_into(data, 0, head.csum, head.flags & ~SHIFTED, block, n, room, size, 0)
    data[HEADER_SIZE : HEADER_SIZE + split] = entries[:split]
    data[values : values + total - split] = entries[split:]
    return data


def _cut(rest: bytes, n: int, size: int) -> tuple[int, bytes, bytes]:
    """(stored, first value, planes) of what remains of n keys and values."""
    split = n * KEY_SIZE
    first_value = rest[split : split + size]
    stored, planes = 0, []
    if rest[:split] != _ZEROS[:split]:
        for p in range(KEY_SIZE):
            plane = rest[p:split:KEY_SIZE]
            if plane != _ZEROS[:n]:
                stored |= 1 << p
                planes.append(plane)
    if rest[split:] != first_value * n:
        for p in range(size):
            plane = rest[split + p :: size]
            if plane != plane[:1] * n:
                stored |= 1 << KEY_SIZE + p
                planes.append(plane)
    return stored, first_value, b"".join(planes)


def _joined(head: Head, planes: bytes) -> bytearray:
    """What `_cut` cut."""
    n, size, stored = head.nr_entries, head.value_size, head.stored
    split = n * KEY_SIZE
    rest = bytearray(split)
    rest += head.first_value * n
    at = 0
    while stored:
        p = (stored & -stored).bit_length() - 1
        stored &= stored - 1
        if p < KEY_SIZE:
            rest[p:split:KEY_SIZE] = planes[at : at + n]
        else:
            rest[split + p - KEY_SIZE :: size] = planes[at : at + n]
        at += n
    return rest


def _foretold(n: int, size: int, shifted: bool, first_key: int) -> int:
    """What is subtracted from n keys and values, seen as one integer."""
    return _indices(n, size, shifted) + first_key * _ones(n)


@cache
def _indices(n: int, size: int, shifted: bool) -> int:
    """0, 1, ... n-1 as keys, and the same as u64 values, above the time if `shifted`."""
    index = int.from_bytes(array("Q", range(n)).tobytes(), "little")
    if size != MAPPING_SIZE:
        return index
    return index | index << 64 * n + (TIME_BITS if shifted else 0)


@cache
def _ones(n: int) -> int:
    """1 in each of n u64: times a number, that number in each."""
    return ((1 << 64 * n) - 1) // ((1 << 64) - 1)
