"""The metadata's own space map: it counts the very blocks it is made of.

It grows by itself, a bitmap at a time, when nothing is free: metadata blocks live in LMDB, so
their number is bounded by the format alone.

Thread safety: the caller holds the metadata lock.
"""

from __future__ import annotations

from thinmeta.format.bitmap import ENTRIES_PER_BITMAP
from thinmeta.format.block import Kind
from thinmeta.format.superblock import SUPERBLOCK_BLOCK, SpaceMapRoot
from thinmeta.spacemap.allocator import Allocator
from thinmeta.spacemap.counts import SpaceMap
from thinmeta.spacemap.index import BlockIndex
from thinmeta.spacemap.withheld import Range
from thinmeta.transaction import TransactionManager

#: Where a new pool has its index block and first bitmap; any place would do.
INDEX_BLOCK = 1
FIRST_BITMAP_BLOCK = 2


class MetadataSpaceMap(SpaceMap):
    """Counts and allocates metadata blocks."""

    def __init__(self, tm: TransactionManager, root: SpaceMapRoot | None) -> None:
        if root is None:
            super().__init__(tm, BlockIndex(tm, INDEX_BLOCK), "metadata")
        else:
            super().__init__(
                tm,
                BlockIndex(tm, root.bitmap_root),
                "metadata",
                nr_blocks=root.nr_blocks,
                nr_allocated=root.nr_allocated,
                ref_count_root=root.ref_count_root,
            )
        self._allocator = Allocator(self)
        tm.use_counts(self)
        if root is None:
            self._bootstrap()

    def new_block(self) -> int:
        """A free block, counted once from now on.  Raises `NoMetadataSpace` at the format's end."""
        taken = self._allocator.take(1)
        if taken is None:
            block = self.nr_blocks
            self.extend_by_bitmap()
            self._allocator.freed(block)
            taken = self._allocator.take(1)
            assert taken is not None, "a new bitmap has free entries"
        self.increment(taken[0], taken[0] + 1)
        return taken[0]

    def release(self, freed: list[Range]) -> None:
        """The blocks that a durable commit freed may be used again."""
        self.withheld.release(freed)
        if freed:
            self._allocator.freed(freed[0][0])

    def _bootstrap(self) -> None:
        """Make the superblock's place, the index block and the first bitmap of a new pool."""
        self._tm.new_at(SUPERBLOCK_BLOCK, Kind.SUPERBLOCK)
        self._tm.new_at(INDEX_BLOCK, Kind.INDEX)
        self._tm.new_at(FIRST_BITMAP_BLOCK, Kind.BITMAP)
        self.nr_blocks = ENTRIES_PER_BITMAP
        self._add_bitmap(FIRST_BITMAP_BLOCK, 0)
        self.increment(SUPERBLOCK_BLOCK, FIRST_BITMAP_BLOCK + 1)
