"""What all metadata blocks share: size, header, checksum, block number.

    byte  0  csum     u32   crc32c of bytes 4..4095, not inverted, XOR the salt of the block's kind
    byte  4  ...      u32   flags of a superblock or node, unused in the other kinds
    byte  8  blocknr  u64   the block's own number: a block read from a wrong place is found out

All integers are little-endian. The checksum is the kernel's `dm_bm_checksum`: CRC-32C started at
all ones *without* the customary inversion at the end.

Thread safety: pure functions; the caller owns the buffers it passes.
"""

from __future__ import annotations

import struct
import sys
from enum import Enum
from typing import Any, Final

from construct import Int32ul, Int64ul, Struct
from crc32c import crc32c

from thinmeta.errors import Corrupt

BLOCK_SIZE: Final = 4096  # on disk; do not change
SECTOR_SIZE: Final = 512
BLOCK_SECTORS: Final = BLOCK_SIZE // SECTOR_SIZE

#: `memoryview.cast('Q')` reads in the machine's order, the format is little-endian.
assert sys.byteorder == "little", "thinmeta's hot paths need a little-endian machine"

#: The first 16 bytes of a block of any kind.
BLOCK_HEADER: Final = Struct("csum" / Int32ul, "flags" / Int32ul, "blocknr" / Int64ul)
assert BLOCK_HEADER.sizeof() == 16


class Kind(Enum):
    """The kinds of metadata block, each with the salt of its checksum (on disk; do not change)."""

    SUPERBLOCK = 160774
    NODE = 121107
    BITMAP = 240779
    INDEX = 160478

    @property
    def salt(self) -> int:
        return int(self.value)

    def __str__(self) -> str:
        return self.name.lower()


def offset_of(structure: Any, field: str) -> int:
    """Byte offset of `field` in a construct `Struct` whose fields are all of fixed size."""
    offset = 0
    for sub in structure.subcons:
        if sub.name == field:
            return offset
        offset += sub.sizeof()
    raise KeyError(field)


_CSUM: Final = struct.Struct("<I")
_BLOCKNR: Final = struct.Struct("<Q")
_BLOCKNR_AT: Final = offset_of(BLOCK_HEADER, "blocknr")
_CSUM_BYTES: Final = _CSUM.size
_INVERT: Final = 0xFFFFFFFF
# A plain dict of xor masks: an Enum property costs more than the checksum itself.
_MASK: Final = {kind: kind.salt ^ _INVERT for kind in Kind}


def checksum(data: bytes | bytearray | memoryview, kind: Kind) -> int:
    """The checksum that a whole block of `kind` with these bytes must carry."""
    return crc32c(memoryview(data)[_CSUM_BYTES:]) ^ _MASK[kind]


def seal(data: bytearray, kind: Kind, block: int) -> None:
    """Make `data` ready to be written as `block`: set its block number, then its checksum."""
    _BLOCKNR.pack_into(data, _BLOCKNR_AT, block)
    _CSUM.pack_into(data, 0, crc32c(memoryview(data)[_CSUM_BYTES:]) ^ _MASK[kind])


def verify(data: bytes | bytearray, kind: Kind, block: int) -> None:
    """Raise `Corrupt` ('checksum' or 'blocknr') unless `data` is what `seal` made of `block`."""
    stored = _CSUM.unpack_from(data)[0]
    computed = crc32c(memoryview(data)[_CSUM_BYTES:])
    if stored != computed ^ _MASK[kind]:
        found = kind_of(data)
        raise Corrupt(
            "checksum",
            f"block {block}",
            f"is a {found}, not a {kind}"
            if found
            else f"bad {kind} checksum: {stored:#010x} stored, {computed ^ _MASK[kind]:#010x} read",
        )
    number = _BLOCKNR.unpack_from(data, _BLOCKNR_AT)[0]
    if number != block:
        raise Corrupt("blocknr", f"block {block}", f"this {kind} says it is block {number}")


def kind_of(data: bytes | bytearray) -> Kind | None:
    """The kind of block whose checksum these bytes carry, or None if they carry no valid one."""
    mask = _CSUM.unpack_from(data)[0] ^ crc32c(memoryview(data)[_CSUM_BYTES:])
    return next((kind for kind in Kind if _MASK[kind] == mask), None)
