"""What is written into a sector, so that what is read says who wrote it, where, and when.

A sector is one u64, 64 times: a read that races with a write may see some of the new ones.

    bits 0..31 serial of the write    32..47 sector of the volume    48..63 who wrote it

0 stands for zeroes. Serials begin at 1 and no two writes of a pool share one.
"""

import struct
from typing import Final

SECTOR: Final = 512
WORDS: Final = SECTOR // 8
MOST_SECTORS: Final = 1 << 16

_WORD: Final = struct.Struct("<Q")


def stamp(writer: int, sector: int, serial: int) -> int:
    """The value of one sector."""
    assert 0 < writer < 1 << 16
    assert 0 <= sector < MOST_SECTORS
    assert 0 < serial < 1 << 32
    return writer << 48 | sector << 32 | serial


def writer_of(value: int) -> int:
    return value >> 48


def sector_of(value: int) -> int:
    return value >> 32 & 0xFFFF


def serial_of(value: int) -> int:
    return value & 0xFFFFFFFF


def filled(value: int) -> bytes:
    """The bytes of a sector that holds `value`."""
    return _WORD.pack(value) * WORDS


def value_at(data: bytes, at: int) -> int:
    """The first value of the sector that begins at byte `at`."""
    value: int = _WORD.unpack_from(data, at)[0]
    return value


def values_of(data: bytes) -> set[int]:
    """All values in a sector's bytes; more than one if it is torn."""
    return set(struct.unpack(f"<{len(data) // 8}Q", data))


def described(value: int) -> str:
    if not value:
        return "zeroes"
    return f"write {serial_of(value)} of writer {writer_of(value)} to sector {sector_of(value)}"
