"""Every structure of the format: there and back, and its declaration against the hot reading."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.meta.nodes import nodes, runs, u64_node
from thinmeta.errors import Corrupt, UnsupportedFormat
from thinmeta.format import bitmap, index, node
from thinmeta.format.block import BLOCK_SIZE, Kind, seal
from thinmeta.format.superblock import MAGIC, SpaceMapRoot, Superblock
from thinmeta.format.values import (
    MAX_DATA_BLOCKS,
    MAX_TIME,
    DeviceDetails,
    check_data_block_sectors,
    pack_mapping,
    unpack_mapping,
)

U32 = st.integers(0, (1 << 32) - 1)
U64 = st.integers(0, (1 << 64) - 1)
ROOTS = st.builds(SpaceMapRoot, U64, U64, U64, U64)
SUPERBLOCKS = st.builds(
    Superblock,
    data_space_map=ROOTS,
    metadata_space_map=ROOTS,
    mapping_root=U64,
    details_root=U64,
    data_block_sectors=st.integers(1, 16384).map(lambda n: n * 128),
    metadata_nr_blocks=U64,
    uuid=st.binary(min_size=16, max_size=16),
    flags=U32,
    time=U32,
    transaction_id=U64,
    held_root=U64,
    compat_flags=U32,
)
INDEX_ENTRIES = st.builds(bitmap.IndexEntry, U64, U32, U32)


@given(SUPERBLOCKS)
def test_superblock_there_and_back(superblock: Superblock) -> None:
    packed = superblock.pack()
    assert len(packed) == BLOCK_SIZE
    assert Superblock.unpack(packed) == superblock
    assert superblock.needs_check == bool(superblock.flags & 1)


@given(SUPERBLOCKS)
def test_superblock_lies_where_the_format_says(superblock: Superblock) -> None:
    packed = bytes(superblock.pack())
    assert packed[16:32] == superblock.uuid
    assert struct.unpack_from("<QII", packed, 32) == (MAGIC, 2, superblock.time)
    assert struct.unpack_from("<QQ", packed, 48) == (
        superblock.transaction_id,
        superblock.held_root,
    )
    root = superblock.metadata_space_map
    assert struct.unpack_from("<4Q", packed, 192) == (
        root.nr_blocks,
        root.nr_allocated,
        root.bitmap_root,
        root.ref_count_root,
    )
    assert struct.unpack_from("<QQIIQ", packed, 320) == (
        superblock.mapping_root,
        superblock.details_root,
        superblock.data_block_sectors,
        8,
        superblock.metadata_nr_blocks,
    )
    assert packed[356:] == bytes(BLOCK_SIZE - 356)


def some_superblock() -> bytearray:
    root = SpaceMapRoot(1, 2, 3, 4)
    return Superblock(root, root, 5, 6, 128, 7).pack()


@pytest.mark.parametrize(
    ("offset", "value", "expected", "says"),
    [
        (32, 1, Corrupt, "magic is 1"),
        (40, 1, UnsupportedFormat, "version 1"),
        (40, 3, UnsupportedFormat, "version 3"),
        (336, 100, Corrupt, "multiple of 64 KiB"),
        (336, 0, Corrupt, "not within"),
        (340, 16, Corrupt, "metadata block size is 16"),
        (356, 1, UnsupportedFormat, "flags 0x1"),
        (360, 4, UnsupportedFormat, "flags 0x4"),
    ],
)
def test_superblock_that_is_not_ours_is_refused(
    offset: int, value: int, expected: type[Exception], says: str
) -> None:
    packed = some_superblock()
    struct.pack_into("<I", packed, offset, value)
    with pytest.raises(expected, match=says):
        Superblock.unpack(packed)


def test_unknown_compatible_features_are_kept() -> None:
    packed = some_superblock()
    struct.pack_into("<I", packed, 352, 0x80)
    assert Superblock.unpack(packed).pack() == packed


@given(st.integers(0, MAX_DATA_BLOCKS - 1), st.integers(0, MAX_TIME))
def test_mapping_there_and_back(data_block: int, time: int) -> None:
    packed = pack_mapping(data_block, time)
    assert packed < 1 << 64
    assert unpack_mapping(packed) == (data_block, time)


@given(st.builds(DeviceDetails, U64, U64, U32, U32))
def test_details_there_and_back(details: DeviceDetails) -> None:
    packed = details.pack()
    assert struct.unpack("<QQII", packed) == (
        details.mapped_blocks,
        details.transaction_id,
        details.creation_time,
        details.snapshotted_time,
    )
    assert DeviceDetails.unpack(packed) == details


@pytest.mark.parametrize("sectors", [128, 256, 2097152])
def test_data_block_sizes(sectors: int) -> None:
    check_data_block_sectors(sectors)


@pytest.mark.parametrize("sectors", [0, -128, 64, 129, 2097152 + 128])
def test_data_block_sizes_out_of_bounds(sectors: int) -> None:
    with pytest.raises(ValueError, match="data block size"):
        check_data_block_sectors(sectors)


@pytest.mark.parametrize(("size", "entries"), [(8, 252), (4, 336), (16, 168), (24, 126)])
def test_max_entries(size: int, entries: int) -> None:
    assert node.max_entries(size) == entries
    assert node.values_at(size) + entries * size <= BLOCK_SIZE


@given(nodes())
def test_node_read_as_words_agrees_with_its_declaration(made: tuple[int, bytearray]) -> None:
    _, data = made
    parsed = node.parse(data)
    words = memoryview(data).cast("Q")
    entries = words[node.ENTRIES_WORD] & 0xFFFFFFFF
    assert entries == parsed.header.nr_entries
    assert words[node.ENTRIES_WORD] >> 32 == parsed.header.max_entries
    assert words[0] >> 32 == parsed.header.flags
    assert data[node.FLAGS_AT] == parsed.header.flags
    assert words[1] == parsed.header.blocknr
    assert words[node.KEYS_WORD : node.KEYS_WORD + entries].tolist() == list(parsed["keys"])
    at, size = node.values_at(parsed.header.value_size), parsed.header.value_size
    assert [bytes(data[at + i * size :][:size]) for i in range(entries)] == list(parsed["values"])


@given(runs())
def test_values_read_as_words(made: tuple[list[int], list[int]]) -> None:
    keys, values = made
    words = memoryview(u64_node(3, keys, values, node.LEAF)).cast("Q")
    assert words[node.VALUES_WORD : node.VALUES_WORD + len(values)].tolist() == values


@pytest.mark.parametrize("size", [4, 8, 16, 24])
def test_init_node(size: int) -> None:
    data = bytearray(b"\xaa" * BLOCK_SIZE)
    node.init_node(data, node.LEAF, size)
    assert len(data) == BLOCK_SIZE
    parsed = node.parse(data).header
    assert (parsed.flags, parsed.nr_entries, parsed.value_size) == (node.LEAF, 0, size)
    assert parsed.max_entries == node.max_entries(size)
    assert not any(data[node.HEADER_SIZE :])


@given(st.dictionaries(st.integers(0, bitmap.ENTRIES_PER_BITMAP - 1), st.integers(0, 3)))
def test_bitmap_entries(counts: dict[int, int]) -> None:
    data = bytearray(BLOCK_SIZE)
    for entry, count in counts.items():
        bitmap.put(data, entry, 3)
        bitmap.put(data, entry, count)
    for entry in {*counts, 0, 1, 16319}:
        assert bitmap.get(data, entry) == counts.get(entry, 0)
    used = [entry for entry, count in counts.items() if count]
    assert sum(byte != 0 for byte in data) == len({entry // 4 for entry in used})
    assert not any(data[: bitmap.BITMAP_HEADER_SIZE])


def test_bitmap_pairs_have_the_high_bit_below() -> None:
    data = bytearray(BLOCK_SIZE)
    for entry, count in enumerate((1, 2, 3, 0)):
        bitmap.put(data, entry, count)
    assert data[16] == 0b00_11_01_10
    with pytest.raises(IndexError):
        bitmap.get(data, bitmap.ENTRIES_PER_BITMAP)
    with pytest.raises(IndexError):
        bitmap.put(data, -1, 0)


def test_bitmap_as_words_agrees_with_its_declaration() -> None:
    data = bytearray(i & 0xFF for i in range(BLOCK_SIZE))
    seal(data, Kind.BITMAP, 9)
    parsed = bitmap.BITMAP.parse(data)
    words = memoryview(data).cast("Q")
    assert words[1] == parsed.header.blocknr == 9
    assert words[bitmap.BITMAP_HEADER_SIZE // 8 :].tobytes() == parsed.entries
    assert len(parsed.entries) * 4 == bitmap.ENTRIES_PER_BITMAP


@given(st.lists(INDEX_ENTRIES, max_size=index.INDEX_ENTRIES))
def test_index_there_and_back(entries: list[bitmap.IndexEntry]) -> None:
    data = index.pack(entries)
    assert len(data) == BLOCK_SIZE
    assert index.unpack(data, len(entries)) == entries
    parsed = index.INDEX.parse(data)
    words = memoryview(data).cast("Q")
    for number, entry in enumerate(entries):
        assert bitmap.IndexEntry.unpack(entry.pack()) == entry
        assert parsed.entries[number].blocknr == entry.blocknr
        word = index.entry_at(number) // 8
        assert words[word] == entry.blocknr
        assert words[word + 1] == entry.nr_free | entry.none_free_before << 32


def test_index_has_room_for_255() -> None:
    entry = bitmap.IndexEntry(1, 2, 3)
    assert index.unpack(index.pack([entry] * 255), 255) == [entry] * 255
    with pytest.raises(IndexError):
        index.pack([entry] * 256)
