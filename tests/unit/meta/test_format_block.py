"""Checksums, block numbers, and telling the kinds of block apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinmeta.errors import Corrupt
from thinmeta.format.block import BLOCK_SIZE, Kind, checksum, kind_of, seal, verify

BLOCKS = st.binary(min_size=0, max_size=BLOCK_SIZE).map(
    lambda start: bytearray(start.ljust(BLOCK_SIZE, b"\0"))
)
KINDS = st.sampled_from(list(Kind))
NUMBERS = st.integers(0, (1 << 64) - 1)


def test_checksum_is_crc32c_without_the_final_inversion() -> None:
    zeros = bytes(BLOCK_SIZE)
    assert checksum(zeros, Kind.NODE) == bitwise_crc32c(zeros[4:]) ^ 121107


def bitwise_crc32c(data: bytes | bytearray) -> int:
    """CRC-32C (Castagnoli, reflected) from its definition, started at all ones, not inverted."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc


@given(BLOCKS, KINDS)
def test_checksum_matches_the_definition(data: bytearray, kind: Kind) -> None:
    assert checksum(data, kind) == bitwise_crc32c(data[4:]) ^ kind.salt


@given(BLOCKS, KINDS, NUMBERS)
def test_sealed_blocks_verify(data: bytearray, kind: Kind, number: int) -> None:
    content = bytes(data[4:8] + data[16:])
    seal(data, kind, number)
    verify(data, kind, number)
    assert data[4:8] + data[16:] == content
    assert int.from_bytes(data[8:16], "little") == number
    assert kind_of(data) is kind


@given(BLOCKS, KINDS, NUMBERS, st.integers(0, BLOCK_SIZE * 8 - 1))
def test_any_flipped_bit_is_found(data: bytearray, kind: Kind, number: int, bit: int) -> None:
    seal(data, kind, number)
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Corrupt) as caught:
        verify(data, kind, number)
    assert caught.value.kind == "checksum"


def test_a_block_at_a_wrong_place_is_found() -> None:
    data = bytearray(BLOCK_SIZE)
    seal(data, Kind.BITMAP, 7)
    with pytest.raises(Corrupt, match="block 8: this bitmap says it is block 7") as caught:
        verify(data, Kind.BITMAP, 8)
    assert caught.value.kind == "blocknr"


def test_a_block_of_another_kind_is_named() -> None:
    data = bytearray(BLOCK_SIZE)
    seal(data, Kind.BITMAP, 7)
    with pytest.raises(Corrupt, match="is a bitmap, not a node"):
        verify(data, Kind.NODE, 7)
    assert kind_of(bytearray(BLOCK_SIZE)) is None
