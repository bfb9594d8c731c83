"""The mark of a pool on its block device: which pool's the device is, and how old its content is.

It lies in the last 4096 bytes of the device that begin at a multiple of 4096:

    0      magic     "tpdevmk1"
    8      version   u32, 1
    12     zeroes    u32
    16     pool      the pool's uuid, 16 bytes
    32     life      u64, how often the pool has been opened to be served
    40     offset    u64, where on the device this mark lies, in bytes
    48     zeroes
    508    CRC-32C   u32, of the bytes before it
    512    zeroes    to 4096

Numbers are little-endian.

Invariants

1. All that counts is in one sector, so a power cut leaves the old mark or the new one.
2. A mark counts at its own offset alone: in an image of a disk that lies in a volume, or elsewhere
   on a larger disk, it is data.

Thread-safety: pure functions.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from crc32c import crc32c

MARK_BYTES: Final = 4096
# On disk; do not change.
_MAGIC: Final = b"tpdevmk1"
_VERSION: Final = 1
_BODY: Final = struct.Struct("<8sII16sQQ460x")
_CRC: Final = struct.Struct("<I")
_SECTOR_BYTES: Final = 512
assert _BODY.size + _CRC.size == _SECTOR_BYTES


@dataclass(frozen=True, slots=True)
class DeviceMark:
    """`uuid` is the pool's, 16 bytes; `offset` is where the mark lies, in bytes."""

    uuid: bytes
    life: int
    offset: int

    def pack(self) -> bytes:
        """Return what to write at `offset`, MARK_BYTES of it."""
        body = _BODY.pack(_MAGIC, _VERSION, 0, self.uuid, self.life, self.offset)
        return (body + _CRC.pack(crc32c(body))).ljust(MARK_BYTES, b"\0")


def unpack(octets: bytes, offset: int) -> DeviceMark | None:
    """Return the mark in what was read at `offset`; None when there is none, or a damaged one."""
    sector = octets[:_SECTOR_BYTES]
    if len(sector) < _SECTOR_BYTES:
        return None
    magic, version, _, uuid, life, its_offset = _BODY.unpack(sector[: _BODY.size])
    if (magic, version, its_offset) != (_MAGIC, _VERSION, offset):
        return None
    mark = DeviceMark(uuid, life, offset)
    return mark if mark.pack()[:_SECTOR_BYTES] == sector else None


def place(device_bytes: int) -> int | None:
    """Return the offset of the mark on a device of that size; None when the device is too small."""
    offset = device_bytes // MARK_BYTES * MARK_BYTES - MARK_BYTES
    return offset if offset >= 0 else None
