"""The data space map: which data blocks are free, and how many mappings point at each.

A data block is handed out in two steps.  `reserve` takes it in memory alone, so that its data can
be written without the metadata lock; `claim` takes it for good when the mapping is inserted.  So no
commit ever holds a block that is counted and not mapped.

Blocks are mostly claimed in the order in which they are, one after the other, whatever the order of
what they are mapped to.  So a run of claimed blocks is gathered, and counted at once.

Invariant: claimed blocks that are not counted yet count as reserved; `settle` counts them before
anybody looks at a count among them, and before a commit.

Thread safety: the caller holds the metadata lock.
"""

from __future__ import annotations

from thinmeta.errors import NoDataSpace
from thinmeta.format.superblock import SpaceMapRoot
from thinmeta.format.values import MAX_DATA_BLOCKS
from thinmeta.spacemap.allocator import Allocator
from thinmeta.spacemap.counts import SpaceMap
from thinmeta.spacemap.index import TreeIndex
from thinmeta.spacemap.pairs import entry_set
from thinmeta.spacemap.withheld import Range, Withheld, pieces
from thinmeta.transaction import TransactionManager


class DataSpaceMap(SpaceMap):
    """Counts and allocates data blocks.

    `withheld` is handed over from the map's predecessor when a transaction was abandoned.
    """

    def __init__(
        self,
        tm: TransactionManager,
        root: SpaceMapRoot | None,
        withheld: Withheld | None = None,
    ) -> None:
        if root is None:
            super().__init__(tm, TreeIndex(tm), "data")
        else:
            super().__init__(
                tm,
                TreeIndex(tm, root.bitmap_root),
                "data",
                nr_blocks=root.nr_blocks,
                nr_allocated=root.nr_allocated,
                ref_count_root=root.ref_count_root,
            )
        if withheld is not None:
            self.withheld = withheld
        self._allocator = Allocator(self)
        # Claimed, and not counted yet.
        self._claimed_begin = self._claimed_end = 0

    @property
    def nr_used(self) -> int:
        """How many blocks mappings point at."""
        return self.nr_allocated + self._claimed_end - self._claimed_begin

    @property
    def nr_available(self) -> int:
        """How many blocks `reserve` can hand out now."""
        return self.nr_blocks - self.nr_allocated - self.withheld.count

    def reserve(self, count: int) -> tuple[int, int]:
        """Up to `count` consecutive blocks as (first, how many), nobody else's from now on.

        Raises `NoDataSpace`; if `withheld.freed` then, a commit will free some.
        """
        taken = self._allocator.take(count)
        if taken is None:
            raise NoDataSpace("no data block is free")
        self.withheld.reserve(taken[0], taken[0] + taken[1])
        return taken

    def reserve_these(self, begin: int, count: int) -> bool:
        """Reserve just the blocks from `begin` on; False, and nothing done, if one is not free."""
        end = begin + count
        if end > self.nr_blocks:
            return False
        for bitmap, first, stop in pieces(begin, end):
            wanted = entry_set(first, stop)
            if self.free_entries(bitmap) & wanted != wanted:
                return False
        self.withheld.reserve(begin, end)
        # What the search has at hand may be among them.
        self._allocator.freed(begin)
        return True

    def unreserve(self, begin: int, count: int) -> None:
        """Give reserved blocks back."""
        self.withheld.unreserve(begin, begin + count)
        self._allocator.freed(begin)

    def claim(self, begin: int, count: int) -> None:
        """A mapping points at each of these reserved blocks."""
        if begin != self._claimed_end:
            self.settle()
            self._claimed_begin = begin
        self._claimed_end = begin + count

    def settle(self) -> None:
        """Count what was claimed."""
        begin, end = self._claimed_begin, self._claimed_end
        if begin < end:
            self.disclaim()
            super().increment(begin, end)

    def disclaim(self) -> None:
        """Drop what was claimed and is not counted, with all else of the open transaction."""
        begin, end = self._claimed_begin, self._claimed_end
        self._claimed_begin = self._claimed_end = 0
        if begin < end:
            self.withheld.unreserve(begin, end)

    def count(self, block: int) -> int:
        """The block's owners."""
        if self._claimed_begin <= block < self._claimed_end:
            return 1
        return super().count(block)

    def once_counted(self, begin: int, end: int) -> int:
        """How many of the blocks begin..end-1 have exactly one owner."""
        self._settle_within(begin, end)
        return super().once_counted(begin, end)

    def increment(self, begin: int, end: int) -> None:
        """One owner more for each of the blocks begin..end-1."""
        self._settle_within(begin, end)
        super().increment(begin, end)

    def decrement(self, begin: int, end: int) -> None:
        """One owner less for each of the blocks begin..end-1.  Raises `Corrupt` if one has none."""
        self._settle_within(begin, end)
        super().decrement(begin, end)

    def save(self) -> None:
        """Bring counts and index up to date, as part of the open transaction."""
        self.settle()
        super().save()

    def _settle_within(self, begin: int, end: int) -> None:
        if begin < self._claimed_end and self._claimed_begin < end:
            self.settle()

    def release(self, freed: list[Range]) -> None:
        """These durably freed blocks may be handed out again."""
        self.withheld.release(freed)
        if freed:
            self._allocator.freed(freed[0][0])

    def resize(self, nr_blocks: int) -> None:
        """Cover more blocks.  Raises `ValueError` for fewer, or more than the format allows."""
        if not self.nr_blocks <= nr_blocks <= MAX_DATA_BLOCKS:
            raise ValueError(
                f"{nr_blocks} data blocks: not within the {self.nr_blocks} there are"
                f" and the format's {MAX_DATA_BLOCKS}"
            )
        self.settle()
        old = self.nr_blocks
        self.extend(nr_blocks)
        self._allocator.freed(old)
