"""The kernel's flat metadata taken into a store of ours."""

from pathlib import Path

from thinmeta.format import bitmap, index
from thinmeta.format.block import Kind, verify
from thinmeta.format.superblock import SUPERBLOCK_BLOCK, Superblock
from thinmeta.store.flat import FlatStore
from thinmeta.store.protocol import BlockStore


def load(image: Path, store: BlockStore) -> None:
    """Fills an empty store with the blocks that the image's metadata space map counts."""
    flat = FlatStore(image)
    try:
        superblock = flat.read(SUPERBLOCK_BLOCK)
        verify(superblock, Kind.SUPERBLOCK, SUPERBLOCK_BLOCK)
        space_map = Superblock.unpack(superblock).metadata_space_map
        bitmaps = -(-space_map.nr_blocks // bitmap.ENTRIES_PER_BITMAP)
        live = {}
        for number, entry in enumerate(index.unpack(flat.read(space_map.bitmap_root), bitmaps)):
            counts = flat.read(entry.blocknr)
            verify(counts, Kind.BITMAP, entry.blocknr)
            first = number * bitmap.ENTRIES_PER_BITMAP
            for at in range(min(bitmap.ENTRIES_PER_BITMAP, space_map.nr_blocks - first)):
                if bitmap.get(counts, at):
                    live[first + at] = flat.read(first + at)
        store.commit(live, (), {})
    finally:
        flat.close()
