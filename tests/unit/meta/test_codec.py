"""How blocks are encoded: nothing is lost, little is kept, and damage never goes unseen."""

import random

import pytest
from crc32c import crc32c
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tests.unit.meta.nodes import nodes, runs, u64_node
from thinmeta.errors import Corrupt
from thinmeta.format import bitmap, node
from thinmeta.format.block import BLOCK_SIZE, Kind, seal
from thinmeta.store import codec

NUMBERS = st.integers(0, (1 << 64) - 1)


@given(nodes())
def test_nodes_there_and_back(made: tuple[int, bytearray]) -> None:
    number, data = made
    assert codec.decode(number, codec.encode(number, data)) == data
    assert codec.decode(number, codec.encode(number, bytes(data))) == data


@given(NUMBERS, st.binary(max_size=BLOCK_SIZE), st.booleans())
def test_any_block_there_and_back(number: int, start: bytes, at_end: bool) -> None:
    pad = bytes(BLOCK_SIZE - len(start))
    data = bytearray(pad + start if at_end else start + pad)
    assert codec.decode(number, codec.encode(number, data)) == data


@given(nodes(), st.integers(0, BLOCK_SIZE * 8 - 1))
@example((0, u64_node(0, range(252), range(252), node.LEAF)), BLOCK_SIZE * 8 - 1)
def test_nodes_with_anything_unusual_there_and_back(made: tuple[int, bytearray], bit: int) -> None:
    number, data = made
    data[bit // 8] ^= 1 << bit % 8
    assert codec.decode(number, codec.encode(number, data)) == data


@given(nodes(), NUMBERS)
def test_a_block_keeps_the_number_it_has(made: tuple[int, bytearray], number: int) -> None:
    assert codec.decode(number, codec.encode(number, made[1])) == made[1]


def test_incompressible_block_there_and_back() -> None:
    data = bytearray(random.Random(4).randbytes(BLOCK_SIZE))
    record = codec.encode(1, data)
    assert len(record) <= BLOCK_SIZE + 5
    assert codec.decode(1, record) == data


@given(nodes(), st.data())
def test_a_flipped_bit_never_goes_unseen(made: tuple[int, bytearray], draw: st.DataObject) -> None:
    number, data = made
    record = bytearray(codec.encode(number, data))
    bit = draw.draw(st.integers(0, len(record) * 8 - 1))
    record[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Corrupt, match=f"block {number}: its record of") as caught:
        codec.decode(number, bytes(record))
    assert caught.value.kind == "encoding"


@given(nodes(), NUMBERS)
def test_a_record_of_another_block_is_damage(made: tuple[int, bytearray], other: int) -> None:
    number, data = made
    assume(number != other)
    with pytest.raises(Corrupt):
        codec.decode(other, codec.encode(number, data))


@given(nodes(), st.integers(0, 1 << 12))
def test_a_record_cut_short_is_damage(made: tuple[int, bytearray], length: int) -> None:
    number, data = made
    record = codec.encode(number, data)
    assume(length < len(record))
    with pytest.raises(Corrupt):
        codec.decode(number, record[:length])


@given(
    st.sampled_from([codec.TRIMMED, codec.ZSTD, codec.NODE, codec.NODE_ZSTD, 77]),
    st.binary(max_size=200) | nodes().map(lambda made: codec.encode(*made)[5:]),
)
def test_garbage_with_a_good_checksum_is_no_accident(encoding: int, garbage: bytes) -> None:
    encoded = bytes([encoding]) + garbage
    crc = crc32c(encoded, crc32c((5).to_bytes(8, "little")))
    try:
        decoded = codec.decode(5, crc.to_bytes(4, "little") + encoded)
    except Corrupt as damage:
        kind = damage.kind
    else:
        kind = "encoding"
        assert len(decoded) == BLOCK_SIZE
    assert kind == "encoding"


@pytest.mark.parametrize("entries", [1, 84, 126, 252])
def test_a_run_costs_next_to_nothing(entries: int) -> None:
    data = u64_node(
        9, range(5000, 5000 + entries), [70000 + i << 24 | 3 for i in range(entries)], node.LEAF
    )
    assert len(codec.encode(9, data)) == 33


@given(runs())
def test_a_leaf_never_costs_more_than_its_planes(made: tuple[list[int], list[int]]) -> None:
    keys, values = made
    assert len(codec.encode(1, u64_node(1, keys, values, node.LEAF))) <= 33 + 16 * len(keys)


def test_random_mappings_cost_what_is_random_in_them() -> None:
    rnd = random.Random(7)
    keys = sorted(rnd.sample(range(10**6, 10**6 + 17000), 170))
    data = u64_node(9, keys, [rnd.randrange(1 << 21) << 24 for _ in keys], node.LEAF)
    assert len(codec.encode(9, data)) < 6 * len(keys)


def test_a_bitmap_in_use_to_some_point_costs_little() -> None:
    data = bytearray(BLOCK_SIZE)
    for entry in range(9999):
        bitmap.put(data, entry, 1)
    seal(data, Kind.BITMAP, 3)
    assert len(codec.encode(3, data)) < 64
