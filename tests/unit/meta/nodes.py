"""Btree nodes for tests, built through the declared structure and not by the program itself."""

from collections.abc import Sequence

from hypothesis import strategies as st

from thinmeta.format import block, node

U64 = (1 << 64) - 1


def make_node(
    number: int, keys: Sequence[int], values: Sequence[bytes], flags: int, value_size: int
) -> bytearray:
    """A sealed node, as `format.node.NODE` lays it out."""
    room = node.max_entries(value_size)
    built = node.NODE.build(
        {
            "header": {
                "csum": 0,
                "flags": flags,
                "blocknr": number,
                "nr_entries": len(keys),
                "max_entries": room,
                "value_size": value_size,
                "padding": 0,
            },
            "keys": list(keys),
            "values": list(values),
        }
    )
    data = bytearray(block.BLOCK_SIZE)
    data[: len(built)] = built
    block.seal(data, block.Kind.NODE, number)
    return data


def u64_node(number: int, keys: Sequence[int], values: Sequence[int], flags: int) -> bytearray:
    return make_node(number, keys, [v.to_bytes(8, "little") for v in values], flags, 8)


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Keys and mappings of a leaf: runs of any length, as volumes have them."""
    keys: list[int] = []
    values: list[int] = []
    key = draw(st.integers(0, 1 << 40))
    while len(keys) < 252 and (not keys or draw(st.booleans())):
        length = draw(st.integers(1, 252 - len(keys)))
        data_block = draw(st.integers(0, (1 << 40) - 253))
        time = draw(st.integers(0, (1 << 24) - 1))
        keys += range(key, key + length)
        values += [data_block + i << 24 | time for i in range(length)]
        key += length + draw(st.integers(0, 1 << 20))
    return keys, values


@st.composite
def nodes(draw: st.DrawFn) -> tuple[int, bytearray]:
    """(block, its bytes) of any node that has no bytes beyond its entries."""
    number = draw(st.integers(0, U64))
    flags = draw(st.sampled_from([node.INTERNAL, node.LEAF]))
    if draw(st.booleans()):
        keys, values = draw(runs())
        return number, u64_node(number, keys, values, flags)
    size = draw(st.sampled_from([4, 8, 16, 24]))
    count = draw(st.integers(0, node.max_entries(size)))
    # Any order: what damage has made of a node must be kept as it is.
    rnd = draw(st.randoms(use_true_random=False))
    key_bits = draw(st.sampled_from([1, 8, 16, 33, 64]))
    value_bits = draw(st.sampled_from([1, 8 * size // 2, 8 * size]))
    keys = [rnd.getrandbits(key_bits) for _ in range(count)]
    if draw(st.booleans()):
        keys = sorted(keys)
    packed = [rnd.getrandbits(value_bits).to_bytes(size, "little") for _ in range(count)]
    return number, make_node(number, keys, packed, flags, size)
