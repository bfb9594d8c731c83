"""What is written into a sector, so that what is read says who wrote it, where, and when.

A sector is one line of 64 bytes, eight times: a stamp, which is a u64, and a digest of it.

    bits 0..31 serial of the write    32..47 sector of the volume    48..63 who wrote it

0 stands for zeroes, without a digest. Serials begin at 1 and no two writes of a pool share one.

A read that races with a write may see old bytes and new ones side by side, also within a stamp: the
kernel copies bytes, and owes nobody more. Two stamps mixed may look like a third; their digests
mixed do not.
"""

import struct
from collections.abc import Iterable
from functools import lru_cache
from hashlib import blake2b
from typing import Final

SECTOR: Final = 512
_LINE: Final = 64
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


@lru_cache(maxsize=1 << 14)
def filled(value: int) -> bytes:
    """The bytes of a sector that holds `value`."""
    if not value:
        return bytes(SECTOR)
    word = _WORD.pack(value)
    return (word + blake2b(word, digest_size=_LINE - len(word)).digest()) * (SECTOR // _LINE)


def value_of(sector: bytes) -> int:
    """The first stamp in a sector's bytes."""
    value: int = _WORD.unpack_from(sector)[0]
    return value


def values_of(sector: bytes) -> set[int]:
    """All stamps in a sector's bytes; more than one if it is torn."""
    return {_WORD.unpack_from(sector, at)[0] for at in range(0, SECTOR, _LINE)}


def is_mixed(sector: bytes, values: Iterable[int]) -> bool:
    """Whether each byte of a sector is that of one of these values, at that place."""
    return all(byte in may for byte, *may in zip(sector, *map(filled, values), strict=True))


def described(value: int) -> str:
    if not value:
        return "zeroes"
    return f"write {serial_of(value)} of writer {writer_of(value)} to sector {sector_of(value)}"
