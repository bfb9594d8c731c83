"""How a metadata block is written down in the store.

    byte 0  crc32c    u32   of the block's number (u64) and all that follows
    byte 4  encoding  u8
    byte 5  body

    encoding 0 TRIMMED    the block without the zeros at its end
             1 ZSTD       the block as a zstd frame
             2 NODE       a btree node taken apart as `node_codec` says: head, planes
             3 NODE_ZSTD  likewise, the planes as a zstd frame

Nearly all blocks are btree nodes. A leaf of a run of any length costs 33 bytes, one of random
mappings 4 to 6 bytes each.

Invariants:

1. `decode(b, encode(b, data)) == data`, bit for bit, for any 4096 bytes.
2. Damage to a record shows when it is decoded, before anything is made of it.
3. The block's own checksum is stored, never recomputed: it still tells what happened to the block
   before it came here.

Thread safety: any thread; zstd's contexts are one a thread.
"""

from __future__ import annotations

import struct
import threading
from typing import Final

import zstandard
from crc32c import crc32c

from thinmeta.errors import Corrupt
from thinmeta.format.block import BLOCK_SIZE
from thinmeta.store.node_codec import Head, put_together, take_apart

# On disk; do not change.
TRIMMED: Final = 0
ZSTD: Final = 1
NODE: Final = 2
NODE_ZSTD: Final = 3

_CRC: Final = struct.Struct("<I")
_BLOCK: Final = struct.Struct("<Q")
#: Bytes. Above this a trimmed block is worth zstd's time.
_TRIM_LIMIT: Final = 512
#: Bytes. Below this zstd has nothing to win on planes.
_MIN_PLANES: Final = 64


class _Contexts(threading.local):
    """zstd's contexts, which one thread at a time may use."""

    def __init__(self) -> None:
        self.compress = zstandard.ZstdCompressor(level=1, write_content_size=True).compress
        self.decompress = zstandard.ZstdDecompressor().decompress


_zstd: Final = _Contexts()


def encode(block: int, data: bytes | bytearray) -> bytes:
    """The record for `data`, the 4096 bytes of `block`."""
    parts = take_apart(block, data)
    encoded = _encode_any(data) if parts is None else _encode_node(*parts)
    return _CRC.pack(_checksum(block, encoded)) + encoded


def decode(block: int, record: bytes | memoryview) -> bytearray:
    """The 4096 bytes of `block` that `encode` made `record` of; a fresh buffer.

    Raises `Corrupt` ('encoding') for anything else.
    """
    encoded = memoryview(record)[_CRC.size :]
    if not encoded or _CRC.unpack_from(record)[0] != _checksum(block, encoded):
        message = f"its record of {len(record)} bytes has a bad checksum"
        raise Corrupt("encoding", f"block {block}", message)
    try:
        return _decode(block, encoded[0], encoded[1:])
    except (ValueError, zstandard.ZstdError) as error:
        raise Corrupt("encoding", f"block {block}", str(error)) from None


def _checksum(block: int, encoded: bytes | memoryview) -> int:
    # Over the number as well: a record found in another's place is damage too.
    return crc32c(encoded, crc32c(_BLOCK.pack(block)))


def _encode_node(head: Head, planes: bytes) -> bytes:
    if len(planes) >= _MIN_PLANES:
        packed = _zstd.compress(planes)
        if len(packed) < len(planes) - len(planes) // 8:  # less is not worth unpacking it
            return b"".join((bytes((NODE_ZSTD,)), head.pack(), packed))
    return b"".join((bytes((NODE,)), head.pack(), planes))


def _encode_any(data: bytes | bytearray) -> bytes:
    trimmed = data.rstrip(b"\0")
    if len(trimmed) > _TRIM_LIMIT:
        packed = _zstd.compress(data)
        if len(packed) < len(trimmed):
            return bytes((ZSTD,)) + packed
    return bytes((TRIMMED,)) + trimmed


def _decode(block: int, encoding: int, body: memoryview) -> bytearray:
    if encoding in (NODE, NODE_ZSTD):
        head = Head.unpack(body)
        planes = bytes(body[head.size :])
        if encoding == NODE_ZSTD:
            planes = _unzstd(planes, head.planes_size)
        if len(planes) != head.planes_size:
            raise ValueError(f"a node's planes are {len(planes)} bytes, not {head.planes_size}")
        return put_together(block, head, planes)
    if encoding == ZSTD:
        return bytearray(_unzstd(body, BLOCK_SIZE))
    if encoding == TRIMMED and len(body) <= BLOCK_SIZE:
        data = bytearray(BLOCK_SIZE)
        data[: len(body)] = body
        return data
    raise ValueError(f"encoding {encoding} is unknown")


def _unzstd(frame: bytes | memoryview, size: int) -> bytes:
    # Asked first: zstd would trust the frame for how much memory to take.
    if zstandard.frame_content_size(frame) != size:
        raise ValueError(f"zstd frame is not of {size} bytes")
    return _zstd.decompress(frame, max_output_size=size, allow_extra_data=False)
