"""The mark of a pool on a block device, as it lies there."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinpoold.device_mark import MARK_BYTES, DeviceMark, place, unpack

marks = st.builds(
    DeviceMark,
    uuid=st.binary(min_size=16, max_size=16),
    life=st.integers(0, (1 << 64) - 1),
    offset=st.integers(0, (1 << 64) - 1),
)


@given(marks)
def test_what_is_packed_is_there_again(mark: DeviceMark) -> None:
    octets = mark.pack()
    assert len(octets) == MARK_BYTES
    assert unpack(octets, mark.offset) == mark
    # All that counts is in one sector.
    assert octets[512:] == bytes(MARK_BYTES - 512)
    assert unpack(octets[:512], mark.offset) == mark


@given(marks, st.integers(0, 512 * 8 - 1))
def test_with_a_flipped_bit_it_is_none(mark: DeviceMark, bit: int) -> None:
    octets = bytearray(mark.pack())
    octets[bit // 8] ^= 1 << bit % 8
    assert unpack(bytes(octets), mark.offset) is None


@given(st.binary(max_size=2 * MARK_BYTES), st.integers(0, 1 << 40))
def test_anything_else_is_none(octets: bytes, offset: int) -> None:
    assert unpack(octets, offset) is None


@given(marks, st.integers(0, (1 << 64) - 1))
def test_it_counts_at_its_own_offset_alone(mark: DeviceMark, offset: int) -> None:
    assert unpack(mark.pack(), offset) == (mark if offset == mark.offset else None)


def test_the_bytes() -> None:
    octets = DeviceMark(bytes(range(16)), 3, 1 << 20).pack()
    assert octets[:8] == b"tpdevmk1"
    assert struct.unpack_from("<II16sQQ", octets, 8) == (1, 0, bytes(range(16)), 3, 1 << 20)
    assert octets[48:508] == bytes(460)
    assert octets[508:512].hex() == "a40919de"


@pytest.mark.parametrize(
    ("size", "offset"),
    [(0, None), (4095, None), (4096, 0), (8191, 0), (8192, 4096), ((1 << 20) + 512, 1044480)],
)
def test_its_place(size: int, offset: int | None) -> None:
    assert place(size) == offset
