"""How a metadata block is written down in the store.

A record is a checksum, one byte that names the encoding, and what that needs:

    byte 0  crc32c u32   of the block's number (u64) and all that follows
    byte 4  encoding u8
    byte 5  ...

    0 TRIMMED    the block without the zeros at its end
    1 ZSTD       the block as a zstd frame
    2 NODE       a btree node taken apart, see below
    3 NODE_ZSTD  likewise, its planes as a zstd frame

Nearly all blocks are btree nodes, and nearly all of a node can be foretold, because keys and data
blocks come in runs. From each key the node's first key and the entry's index are subtracted; from
each u64 value the index, in units of what stands above the time. Of a run that leaves a constant.
The remainders are cut into planes: all lowest bytes, all second bytes, and so on. A plane that is
one byte over and over is not stored.

    byte  5  csum         u32   the node's own
    byte  9  flags        u8    the node's, and SHIFTED
    byte 10  value_size   u8
    byte 11  nr_entries   u16
    byte 13  stored       u32   bit p: plane p is stored; 8 planes of keys, then value_size planes
    byte 17  first key    u64
    byte 25  first value  value_size bytes; where planes are not stored, all values have its byte
    then     planes       nr_entries bytes each

So a run of any length costs 33 bytes. All entries of a node are handled as *one* Python integer:
the subtraction is one bigint operation, and cutting planes a strided slice, both at C speed.

Invariants:

1. `decode(b, encode(b, data)) == data`, bit for bit, for any 4096 bytes. A node with anything in it
   that a NODE record has no room for (bytes beyond its entries, another block number) is encoded
   some other way. Entries may borrow from each other in the subtraction: the sum, modulo the
   integer's size, gives it back.
2. Damage to a record shows when it is decoded, before anything is made of it.
3. The block's own checksum is stored, never recomputed: it still tells what happened to the block
   before it came here.

Thread safety: any thread; zstd's contexts are one a thread.
"""

from __future__ import annotations

import struct
import threading
from array import array
from functools import cache
from typing import Final

import zstandard
from crc32c import crc32c

from thinmeta.errors import Corrupt
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

# On disk; do not change.
TRIMMED: Final = 0
ZSTD: Final = 1
NODE: Final = 2
NODE_ZSTD: Final = 3
SHIFTED: Final = 0x80  # the values are mappings: their index was subtracted above the time

#: The node header's fields as `NODE_HEADER` declares them, for one unpack.
_HEADER: Final = struct.Struct("<IIQIIII")
assert _HEADER.size == NODE_HEADER.sizeof()
_NODE: Final = struct.Struct("<IBBHIQ")
assert _NODE.size == 20
_CRC: Final = struct.Struct("<I")
_BLOCK: Final = struct.Struct("<Q")

#: value size: (max_entries, where values start)
_SHAPES: Final = {
    size: (max_entries(size), values_at(size))
    for size in (MAPPING_SIZE, REF_COUNT_SIZE, INDEX_ENTRY_SIZE, DETAILS_SIZE)
}
_ZEROS: Final = bytes(BLOCK_SIZE)
#: Above this a trimmed block is worth zstd's time.
_TRIM_LIMIT: Final = 512
#: Below this zstd has nothing to win.
_MIN_ZSTD: Final = 64


class _Contexts(threading.local):
    """zstd's contexts, which one thread at a time may use."""

    def __init__(self) -> None:
        self.compress = zstandard.ZstdCompressor(level=1, write_content_size=True).compress
        self.decompress = zstandard.ZstdDecompressor().decompress


_zstd: Final = _Contexts()


def encode(block: int, data: bytes | bytearray) -> bytes:
    """The record for `data`, the 4096 bytes of `block`."""
    encoded = _encode_node(block, data) or _encode_any(data)
    return _CRC.pack(crc32c(encoded, crc32c(_BLOCK.pack(block)))) + encoded


def decode(block: int, record: bytes | memoryview) -> bytearray:
    """The 4096 bytes of `block` that `encode` made `record` of; a fresh buffer.

    Raises `Corrupt` ('encoding') for anything else.
    """
    encoded = memoryview(record)[_CRC.size :]
    if not encoded or _CRC.unpack_from(record)[0] != crc32c(encoded, crc32c(_BLOCK.pack(block))):
        raise _damaged(block, f"bad checksum of its record of {len(record)} bytes")
    encoding, body = encoded[0], encoded[1:]
    if encoding in (NODE, NODE_ZSTD):
        return _decode_node(block, body, encoding == NODE_ZSTD)
    if encoding == ZSTD:
        return bytearray(_unzstd(block, body, BLOCK_SIZE))
    if encoding == TRIMMED and len(body) <= BLOCK_SIZE:
        data = bytearray(BLOCK_SIZE)
        data[: len(body)] = body
        return data
    raise _damaged(block, f"encoding {encoding} is unknown")


def _encode_any(data: bytes | bytearray) -> bytes:
    trimmed = data.rstrip(b"\0")
    if len(trimmed) > _TRIM_LIMIT:
        packed = _zstd.compress(data)
        if len(packed) < len(trimmed):
            return bytes((ZSTD,)) + packed
    return bytes((TRIMMED,)) + trimmed


def _encode_node(block: int, data: bytes | bytearray) -> bytes | None:
    """A NODE or NODE_ZSTD record, or None for what is not a node in plain order."""
    csum, flags, number, n, room, size, padding = _HEADER.unpack_from(data)
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
    lanes = int.from_bytes(data[HEADER_SIZE:keys_end] + data[values:values_end], "little")
    lanes -= _foretold(n, size, shifted) + first_key * _ones(n)
    split, total = n * KEY_SIZE, n * (KEY_SIZE + size)
    if lanes < 0:
        lanes &= (1 << 8 * total) - 1
    rest = lanes.to_bytes(total, "little")
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

    encoding, body = NODE, b"".join(planes)
    if len(body) >= _MIN_ZSTD:
        packed = _zstd.compress(body)
        if len(packed) < len(body) - len(body) // 8:  # less is not worth unpacking it
            encoding, body = NODE_ZSTD, packed
    flags |= SHIFTED if shifted else 0
    head = _NODE.pack(csum, flags, size, n, stored, first_key)
    return b"".join((bytes((encoding,)), head, first_value, body))


def _decode_node(block: int, body: memoryview, packed: bool) -> bytearray:
    if len(body) < _NODE.size:
        raise _damaged(block, "record of a node is cut short")
    csum, flags, size, n, stored, first_key = _NODE.unpack_from(body)
    room, values = _SHAPES.get(size, (0, 0))
    planes_at = _NODE.size + size
    if not 0 < n <= room or stored >> KEY_SIZE + size or len(body) < planes_at:
        raise _damaged(block, "record of a node makes no sense")
    planes = bytes(body[planes_at:])
    planes_size = stored.bit_count() * n
    if packed:
        planes = _unzstd(block, planes, planes_size)
    elif len(planes) != planes_size:
        raise _damaged(block, f"planes of a node are {len(planes)} bytes, not {planes_size}")

    split, total = n * KEY_SIZE, n * (KEY_SIZE + size)
    rest = bytearray(split)
    rest += bytes(body[_NODE.size : planes_at]) * n
    at = 0
    while stored:
        p = (stored & -stored).bit_length() - 1
        stored &= stored - 1
        lane = (
            slice(p, split, KEY_SIZE) if p < KEY_SIZE else slice(split + p - KEY_SIZE, None, size)
        )
        rest[lane] = planes[at : at + n]
        at += n
    lanes = int.from_bytes(rest, "little")
    lanes += _foretold(n, size, bool(flags & SHIFTED)) + first_key * _ones(n)
    if lanes >> 8 * total:
        lanes &= (1 << 8 * total) - 1
    whole = lanes.to_bytes(total, "little")

    data = bytearray(BLOCK_SIZE)
    _HEADER.pack_into(data, 0, csum, flags & ~SHIFTED, block, n, room, size, 0)
    data[HEADER_SIZE : HEADER_SIZE + split] = whole[:split]
    data[values : values + total - split] = whole[split:]
    return data


@cache
def _foretold(n: int, size: int, shifted: bool) -> int:
    """Lanes 0, 1, ... n-1 of keys, and the same of u64 values above the time if `shifted`."""
    index = int.from_bytes(array("Q", range(n)).tobytes(), "little")
    if size != MAPPING_SIZE:
        return index
    return index | index << 64 * n + (TIME_BITS if shifted else 0)


@cache
def _ones(n: int) -> int:
    """1 in each of n lanes of 64 bits: times a number, that number in each."""
    return ((1 << 64 * n) - 1) // ((1 << 64) - 1)


def _unzstd(block: int, frame: bytes | memoryview, size: int) -> bytes:
    try:
        # Asked first: zstd would trust the frame for how much memory to take.
        if zstandard.frame_content_size(frame) != size:
            raise _damaged(block, f"zstd frame is not of {size} bytes")
        data = _zstd.decompress(frame, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise _damaged(block, f"zstd: {error}") from None
    if len(data) != size:
        raise _damaged(block, f"zstd frame is cut short at {len(data)} of {size} bytes")
    return data


def _damaged(block: int, message: str) -> Corrupt:
    return Corrupt("encoding", f"block {block}", message)
