"""An independent reading of metadata blocks: structure, order, checksums and counts.

Written from the format alone, with `struct`, so that the library's own readers are not asked
whether the library is right. `audit` also counts the owners of every data block, which thin_check
0.9 does not.

Thread-safety: none needed; nothing here changes anything.
"""

import struct
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import crc32c

BLOCK_SIZE = 4096
HEADER = struct.Struct("<IIQIIII")
NODE_SALT = 121107
BITMAP_SALT = 240779
INDEX_SALT = 160478
ENTRIES_PER_BITMAP = 16320
INTERNAL, LEAF = 1, 2

Read = Callable[[int], bytes | bytearray]


def check_sum(data: bytes | bytearray, salt: int) -> None:
    """Asserts that a block's checksum is right for its kind."""
    (stored,) = struct.unpack_from("<I", data)
    expected = crc32c.crc32c(bytes(data[4:])) ^ 0xFFFFFFFF ^ salt
    assert stored == expected, f"checksum {stored:#x}, expected {expected:#x}"


@dataclass
class Trees:
    """Walks trees that may share nodes. `parents`: how many point at each node.

    `owners`: how many leaves hold each data block, of the trees walked with `counted`.
    """

    read: Read
    parents: Counter[int] = field(default_factory=Counter)
    owners: Counter[int] = field(default_factory=Counter)
    _known: dict[int, list[tuple[int, bytes]]] = field(default_factory=dict)
    _depths: dict[int, int] = field(default_factory=dict)

    _counted: bool = False

    def walk(self, root: int, value_size: int, *, counted: bool = False) -> list[tuple[int, bytes]]:
        """All keys and values of a tree; asserts its structure. Counts one parent of the root.

        With `counted`, the values are mappings, and each leaf is an owner of its data blocks.
        """
        self._counted = counted
        return self._node(root, value_size, is_root=True)

    def _node(self, block: int, value_size: int, *, is_root: bool) -> list[tuple[int, bytes]]:
        self.parents[block] += 1
        if block in self._known:
            return self._known[block]
        data = bytes(self.read(block))
        check_sum(data, NODE_SALT)
        _, flags, blocknr, entries, room, size, padding = HEADER.unpack_from(data)
        where = f"node {block}"
        assert blocknr == block, where
        assert padding == 0, where
        assert flags in (INTERNAL, LEAF), where
        assert size == (value_size if flags == LEAF else 8), where
        fit = (BLOCK_SIZE - HEADER.size) // (8 + size)
        assert room == fit - fit % 3, where
        assert entries <= room, where
        if not is_root:
            assert entries >= room // 3, f"{where}: {entries} of {room}"
        keys = struct.unpack_from(f"<{entries}Q", data, HEADER.size)
        assert all(a < b for a, b in pairwise(keys)), f"{where}: order"
        base = HEADER.size + 8 * room
        values = [data[base + n * size : base + (n + 1) * size] for n in range(entries)]
        if flags == LEAF:
            found = list(zip(keys, values, strict=True))
            self._depths[block] = 1
            if self._counted:
                self.owners.update(struct.unpack("<Q", value)[0] >> 24 for value in values)
        else:
            assert entries >= (2 if is_root else 1), f"{where}: too few children"
            found = self._children(block, keys, values, value_size)
        self._known[block] = found
        return found

    def _children(
        self, block: int, keys: tuple[int, ...], values: list[bytes], value_size: int
    ) -> list[tuple[int, bytes]]:
        found: list[tuple[int, bytes]] = []
        depths = set()
        limits = (*keys[1:], 1 << 64)
        for key, value, limit in zip(keys, values, limits, strict=True):
            (child,) = struct.unpack("<Q", value)
            below = self._node(child, value_size, is_root=False)
            assert below, f"node {block}: an empty child"
            assert key <= below[0][0], f"node {block}: a child begins below its key"
            assert below[-1][0] < limit, f"node {block}: a child reaches over its end"
            depths.add(self._depths[child])
            found += below
        assert len(depths) == 1, f"node {block}: children of depths {depths}"
        self._depths[block] = depths.pop() + 1
        return found


# The four counts in a byte of a bitmap: of each pair, the even bit is the high one.
COUNTS_IN_BYTE = [
    tuple((0, 2, 1, 3)[byte >> shift & 3] for shift in (0, 2, 4, 6)) for byte in range(256)
]


def bitmap_counts(data: bytes | bytearray, length: int) -> list[int]:
    """The counts 0 to 3 in a bitmap block."""
    octets = data[16 : 16 + -(-length // 4)]
    return [count for octet in octets for count in COUNTS_IN_BYTE[octet]][:length]


def space_map_counts(
    read: Read,
    nr_blocks: int,
    entries: Iterable[bytes],
    overflow: dict[int, int],
) -> tuple[list[int], list[int]]:
    """Every block's count, and the bitmap blocks; asserts what the index entries say."""
    counts: list[int] = []
    bitmaps = []
    left = nr_blocks
    for number, entry in enumerate(entries):
        blocknr, nr_free, none_free_before = struct.unpack("<QII", entry)
        data = bytes(read(blocknr))
        check_sum(data, BITMAP_SALT)
        assert struct.unpack_from("<Q", data, 8) == (blocknr,), f"bitmap {number}"
        length = min(left, ENTRIES_PER_BITMAP)
        found = bitmap_counts(data, length)
        # As the kernel does, entries beyond the last block count as free.
        free = found.count(0) + ENTRIES_PER_BITMAP - length
        assert free == nr_free, f"bitmap {number}: {free} are free, {nr_free} by its index entry"
        assert 0 not in found[:none_free_before], f"bitmap {number}: none_free_before is wrong"
        bitmaps.append(blocknr)
        counts += found
        left -= length
    assert left == 0, f"{left} blocks have no bitmap"
    assert {at for at, count in enumerate(counts) if count == 3} == set(overflow), "overflow tree"
    for at, count in overflow.items():
        assert count >= 3, f"overflow count of {at} is {count}"
        counts[at] = count
    return counts, bitmaps


SUPERBLOCK_SALT = 160774
SUPERBLOCK = struct.Struct("<IIQ16sQIIQQ128s128sQQIIQIII")
SPACE_MAP_ROOT = struct.Struct("<QQQQ")
MAGIC = 27022010


def audit(read: Read) -> dict[int, dict[int, int]]:
    """Everything in a pool's metadata; what each device maps. Raises AssertionError.

    Checks every checksum, the structure of every tree, and that the count of every metadata and
    data block is exactly the number of its owners: nothing leaked, nothing used and not counted.
    """
    block = bytes(read(0))
    check_sum(block, SUPERBLOCK_SALT)
    fields = SUPERBLOCK.unpack_from(block)
    (_, _, blocknr, _, magic, version, time, _, held, data_map, metadata_map) = fields[:11]
    (roots, details, _, _, metadata_blocks, *_) = fields[11:]
    assert (blocknr, magic, version, held) == (0, MAGIC, 2, 0), "superblock"
    trees = Trees(read)
    devices: dict[int, dict[int, int]] = {}
    for dev, root in trees.walk(roots, 8):
        mappings = trees.walk(int.from_bytes(root, "little"), 8, counted=True)
        words = [(key, int.from_bytes(value, "little")) for key, value in mappings]
        assert all(word & 0xFFFFFF <= time for _, word in words), "a mapping of the future"
        devices[dev] = {key: word >> 24 for key, word in words}
    described = {dev: struct.unpack("<QQII", value) for dev, value in trees.walk(details, 24)}
    mapped = {dev: len(mappings) for dev, mappings in devices.items()}
    assert {dev: detail[0] for dev, detail in described.items()} == mapped, "device details"

    blocks, allocated, entries_root, overflow_root = SPACE_MAP_ROOT.unpack_from(data_map)
    entries = [value for _, value in trees.walk(entries_root, 16)]
    overflow = _overflow(trees, overflow_root)
    counts, bitmaps = space_map_counts(read, blocks, entries, overflow)
    _equal("data", counts, trees.owners, allocated)

    blocks, allocated, index, overflow_root = SPACE_MAP_ROOT.unpack_from(metadata_map)
    assert blocks == metadata_blocks, "metadata_nr_blocks"
    data = bytes(read(index))
    check_sum(data, INDEX_SALT)
    assert struct.unpack_from("<Q", data, 8) == (index,), "index"
    count = -(-blocks // ENTRIES_PER_BITMAP)
    entries = [data[16 + n * 16 : 32 + n * 16] for n in range(count)]
    overflow = _overflow(trees, overflow_root)
    counts, more = space_map_counts(read, blocks, entries, overflow)
    expected = trees.parents + Counter((0, index, *bitmaps, *more))
    _equal("metadata", counts, expected, allocated)
    return devices


def _overflow(trees: Trees, root: int) -> dict[int, int]:
    return {key: int.from_bytes(value, "little") for key, value in trees.walk(root, 4)}


def _equal(what: str, counts: list[int], expected: Counter[int], allocated: int) -> None:
    found = {block: count for block, count in enumerate(counts) if count}
    wrong = {
        block: (found.get(block, 0), expected[block])
        for block in found.keys() | expected.keys()
        if found.get(block, 0) != expected[block]
    }
    assert not wrong, f"{what} blocks with (count, owners): {dict(sorted(wrong.items())[:10])}"
    assert allocated == len(found), f"{what}: {allocated} allocated, {len(found)} counted"


def audit_image(path: Path) -> dict[int, dict[int, int]]:
    """The same of an exported metadata file."""
    with path.open("rb") as image:

        def read(block: int) -> bytes:
            image.seek(block * BLOCK_SIZE)
            return image.read(BLOCK_SIZE)

        return audit(read)
