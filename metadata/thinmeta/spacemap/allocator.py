"""Finding free blocks, lowest first.

The search goes through the bitmaps in their order, takes the free entries of one as a set, and of
that set one run at a time, from which it serves requests.  Blocks that become free behind the
search bring it back to them.  (The kernel's space maps restart at the first block at each commit,
to the same end: a pool stays compact.)

Invariant: the set and the run at hand hold only blocks that are free and not withheld.  Blocks
leave that state through `take` alone, and where some enter it `freed` drops what is at hand.

Thread safety: the caller holds the metadata lock.
"""

from __future__ import annotations

from thinmeta.format.bitmap import ENTRIES_PER_BITMAP
from thinmeta.spacemap.counts import SpaceMap
from thinmeta.spacemap.pairs import entry_set, first_run


class Allocator:
    """Hands out free blocks of a space map."""

    def __init__(self, space_map: SpaceMap) -> None:
        self._map = space_map
        self._bitmap = -1
        self._free = 0
        self._begin = self._end = 0

    def take(self, count: int) -> tuple[int, int] | None:
        """Up to `count` consecutive free blocks as (first, how many); None if nothing is free.

        The caller counts or reserves them at once.
        """
        begin = self._begin
        if begin == self._end:
            if not self._next_run():
                return None
            begin = self._begin
        self._begin = min(self._end, begin + count)
        return begin, self._begin - begin

    def freed(self, block: int) -> None:
        """Blocks from `block` on may be free now that were not: search them again."""
        if block // ENTRIES_PER_BITMAP <= self._bitmap:
            self._bitmap = block // ENTRIES_PER_BITMAP - 1
            self._free = 0
            self._begin = self._end = 0

    def _next_run(self) -> bool:
        if not self._free and not self._next_bitmap():
            return False
        begin, end = first_run(self._free)
        self._free ^= entry_set(begin, end)
        base = self._bitmap * ENTRIES_PER_BITMAP
        self._begin, self._end = base + begin, base + end
        return True

    def _next_bitmap(self) -> bool:
        for bitmap in range(self._bitmap + 1, self._map.nr_bitmaps):
            if self._map.nr_free(bitmap):
                free = self._map.free_entries(bitmap)
                if free:
                    self._bitmap, self._free = bitmap, free
                    return True
        self._bitmap = self._map.nr_bitmaps
        return False
