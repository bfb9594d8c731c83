"""Metadata to check, to export and to damage on purpose."""

import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from thinmeta.format import bitmap, index, node
from thinmeta.format.block import BLOCK_SIZE, Kind, seal
from thinmeta.format.superblock import SUPERBLOCK_BLOCK, Superblock
from thinmeta.store.flat import FlatStore
from thinmeta.store.memory import MemoryStore
from thinmeta.store.protocol import BlockStore
from thinmeta.thin import ThinMetadata

DATA_BLOCKS = 40000  # three bitmaps, the last one partly


def make_pool(store: BlockStore, seed: int = 1) -> None:
    """A pool with volumes written in sequence and at random, snapshots of them, and deletions."""
    rnd = random.Random(seed)
    pool = ThinMetadata.create(store, data_block_sectors=128, data_blocks=DATA_BLOCKS)

    def write(device: int, begin: int, length: int = 1) -> None:
        while length:
            first, count = pool.reserve(length)
            pool.insert(device, begin, first, count)
            begin, length = begin + count, length - count

    pool.create_thin(1)
    write(1, 0, 3000)
    pool.create_thin(2)
    for _ in range(1500):
        write(2, rnd.randrange(1 << 20))
    pool.commit()
    for device, origin in ((3, 1), (4, 1), (5, 3), (6, 2), (7, 1)):
        pool.create_snapshot(device, origin)
        for _ in range(60):
            write(rnd.choice([1, device]), rnd.randrange(3000))
        pool.commit()
    pool.create_thin(8)
    for _ in range(1000):
        write(8, rnd.randrange(1 << 20))
    pool.remove(4, 500, 900)
    pool.delete_device(3)
    pool.put_record("volumes", b"one", b'{"name": "one"}')
    pool.put_record("pool", b"settings", b"{}")
    pool.commit()


XML = """<superblock uuid="" time="3" transaction="7" flags="0" version="2" data_block_size="128"
 nr_data_blocks="20000">
{devices}</superblock>
"""


def restore(directory: Path, devices: str) -> Path:
    """Metadata made of this XML by the kernel's tools, as a flat file."""
    xml, image = directory / "pool.xml", directory / "pool.img"
    xml.write_text(XML.format(devices=devices))
    with image.open("wb") as file:
        file.truncate(4 << 20)
    subprocess.run(["thin_restore", "-i", xml, "-o", image], check=True, capture_output=True)
    return image


def restored_devices() -> str:
    """Three devices: runs, single mappings in several leaves, and data blocks used 1 to 3 times."""
    devices = []
    for device in (1, 2, 77):
        mappings = [
            f'<range_mapping origin_begin="{1000 * i}" data_begin="{600 * i}" length="600" '
            f'time="{i % 4}"/>'
            for i in range(device % 5 + 1)
        ]
        mappings += [
            f'<single_mapping origin_block="{100000 + 3 * i}" data_block="{5000 + (i * 7) % 3000}" '
            'time="1"/>'
            for i in range(400 + 50 * device % 300)
        ]
        mapped = sum(600 if "range" in text else 1 for text in mappings)
        devices.append(
            f'<device dev_id="{device}" mapped_blocks="{mapped}" transaction="{device % 7}" '
            f'creation_time="0" snap_time="2">{"".join(mappings)}</device>\n'
        )
    return "".join(devices)


def copied(source: BlockStore) -> MemoryStore:
    """The blocks in use of a flat store, and the rest too unless it is all zero."""
    copy = MemoryStore()
    blocks = {number: source.read(number) for number in source.block_numbers()}
    copy.commit({n: data for n, data in blocks.items() if any(data)}, (), {})
    return copy


def load(image: Path) -> MemoryStore:
    source = FlatStore(image)
    try:
        return copied(source)
    finally:
        source.close()


class Bench:
    """A store opened for damage: finds blocks by what they are for, and changes them."""

    def __init__(self, store: BlockStore) -> None:
        self.store = store

    @property
    def superblock(self) -> Superblock:
        return Superblock.unpack(self.store.read(SUPERBLOCK_BLOCK))

    def put(self, block: int, data: bytes | bytearray) -> None:
        """Write bytes as they are."""
        self.store.commit({block: data}, (), {})

    def put_superblock(self, superblock: Superblock) -> None:
        data = superblock.pack()
        seal(data, Kind.SUPERBLOCK, SUPERBLOCK_BLOCK)
        self.put(SUPERBLOCK_BLOCK, data)

    def edit(self, block: int, change: Callable[[bytearray], None], kind: Kind = Kind.NODE) -> None:
        """Change a block and seal it again: damage that no checksum tells of."""
        data = self.store.read(block)
        change(data)
        seal(data, kind, block)
        self.put(block, data)

    def flip(self, block: int, bit: int) -> None:
        data = self.store.read(block)
        data[bit // 8] ^= 1 << bit % 8
        self.put(block, data)

    def node(self, block: int) -> Any:
        return node.parse(self.store.read(block))

    def nodes(self, root: int) -> Iterator[tuple[int, Any]]:
        """All nodes of a tree, from the root down."""
        parsed = self.node(root)
        yield root, parsed
        if parsed.header.flags == node.INTERNAL:
            for child in parsed["values"]:
                yield from self.nodes(int.from_bytes(child, "little"))

    def leaves(self, root: int) -> list[tuple[int, Any]]:
        return [(n, parsed) for n, parsed in self.nodes(root) if parsed.header.flags == node.LEAF]

    def device_roots(self) -> dict[int, int]:
        return {
            key: int.from_bytes(value, "little")
            for _, parsed in self.leaves(self.superblock.mapping_root)
            for key, value in zip(parsed["keys"], parsed["values"], strict=True)
        }

    def metadata_index(self) -> list[bitmap.IndexEntry]:
        data = self.store.read(self.superblock.metadata_space_map.bitmap_root)
        return [entry for entry in index.unpack(data, index.INDEX_ENTRIES) if entry.blocknr]

    def data_index(self) -> list[bitmap.IndexEntry]:
        return [
            bitmap.IndexEntry.unpack(value)
            for _, parsed in self.leaves(self.superblock.data_space_map.bitmap_root)
            for value in parsed["values"]
        ]

    def kinds(self) -> dict[int, str]:
        """What each block of the pool is for."""
        superblock = self.superblock
        found = {
            SUPERBLOCK_BLOCK: "the superblock",
            superblock.metadata_space_map.bitmap_root: "metadata space map, index",
        }
        for name, root in (
            ("metadata space map, overflow tree", superblock.metadata_space_map.ref_count_root),
            ("data space map, overflow tree", superblock.data_space_map.ref_count_root),
            ("data space map, index", superblock.data_space_map.bitmap_root),
            ("details tree", superblock.details_root),
            ("mapping tree", superblock.mapping_root),
        ):
            found |= dict.fromkeys((block for block, _ in self.nodes(root)), name)
        for device, root in self.device_roots().items():
            for block, _ in self.nodes(root):
                found.setdefault(block, f"mappings of device {device}")
        for number, entry in enumerate(self.metadata_index()):
            found[entry.blocknr] = f"metadata space map, bitmap {number}"
        for number, entry in enumerate(self.data_index()):
            found[entry.blocknr] = f"data space map, bitmap {number}"
        return found


def set_word(data: bytearray, word: int, value: int) -> None:
    assert len(data) == BLOCK_SIZE
    data[word * 8 : word * 8 + 8] = value.to_bytes(8, "little")
