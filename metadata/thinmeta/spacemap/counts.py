"""Reference counts on disk: bitmaps for 0, 1 and 2, and a tree for what is above.

Invariants

1. `nr_allocated` and every index entry's `nr_free` agree with the bitmaps whenever no call is
   under way; `save` brings the index on disk up to the one in memory before each commit.  As in
   the kernel, `nr_free` of the last bitmap counts its entries beyond the device's end, too.
2. A bitmap block has one owner and is changed in place.  Counting a metadata block for the first
   or second time, and letting go of it from there, touches bitmaps alone; so the overflow tree of
   the metadata's own space map may allocate and free its nodes in the midst of a change to it.
3. A block whose count falls to 0 is withheld from allocation (see `withheld`).

Thread safety: the caller holds the metadata lock.
"""

from __future__ import annotations

from thinmeta.btree import IntValues, Tree
from thinmeta.errors import Corrupt
from thinmeta.format.bitmap import BITMAP_HEADER_SIZE, ENTRIES_PER_BITMAP, OVERFLOW
from thinmeta.format.block import Kind
from thinmeta.format.superblock import SpaceMapRoot
from thinmeta.format.values import REF_COUNT_SIZE
from thinmeta.spacemap import pairs
from thinmeta.spacemap.index import Index
from thinmeta.spacemap.withheld import Withheld, pieces
from thinmeta.transaction import U32, TransactionManager

#: Pair <-> count: the two bits swapped, so the same table serves both ways.
_SWAPPED = (0, 2, 1, 3)


def bitmaps_for(blocks: int) -> int:
    """How many bitmaps `blocks` blocks need."""
    return -(-blocks // ENTRIES_PER_BITMAP)


class SpaceMap:
    """How many owners each of `nr_blocks` blocks has."""

    def __init__(
        self,
        tm: TransactionManager,
        index: Index,
        name: str,
        *,
        nr_blocks: int = 0,
        nr_allocated: int = 0,
        ref_count_root: int | None = None,
    ) -> None:
        self.name = name
        self.nr_blocks = nr_blocks
        self.nr_allocated = nr_allocated
        self.withheld = Withheld()
        self._tm = tm
        self._index = index
        self._overflow = Tree(tm, IntValues(REF_COUNT_SIZE))
        self._overflow_root = ref_count_root
        self._low: list[int] = []
        self._high: list[int] = []
        self._loaded = nr_blocks == 0
        self._changed: set[int] = set()

    # --- reading --------------------------------------------------------------------------------

    def count(self, block: int) -> int:
        """The block's owners."""
        if not 0 <= block < self.nr_blocks:
            raise Corrupt(
                "bitmap", f"{self.name} block {block}", f"beyond the last of {self.nr_blocks}"
            )
        bitmap, entry = divmod(block, ENTRIES_PER_BITMAP)
        data = self._tm.read(self._blocknr(bitmap), Kind.BITMAP).data
        pair = data[BITMAP_HEADER_SIZE + (entry >> 2)] >> ((entry & 3) << 1) & 3
        return self._overflow_count(block) if pair == 3 else _SWAPPED[pair]

    def once_counted(self, begin: int, end: int) -> int:
        """How many of the blocks begin..end-1 have exactly one owner."""
        total = 0
        for bitmap, first, stop in pieces(begin, end):
            data = self._tm.read(self._blocknr(bitmap), Kind.BITMAP).data
            total += pairs.once_counted(pairs.load(data, first, stop))
        return total

    @property
    def nr_bitmaps(self) -> int:
        """How many bitmaps there are."""
        return bitmaps_for(self.nr_blocks)

    def nr_free(self, bitmap: int) -> int:
        """How many entries of the bitmap are 0, in the last one those beyond the end too."""
        self._load()
        return self._high[bitmap] & U32

    def warm(self) -> None:
        """Have the index in memory, which else whoever comes first reads."""
        self._load()

    def free_entries(self, bitmap: int) -> int:
        """The set of entries of the bitmap that may be handed out."""
        data = self._tm.read(self._blocknr(bitmap), Kind.BITMAP).data
        return pairs.free_entries(data, self._length(bitmap)) & ~self.withheld.of_bitmap(bitmap)

    def root(self) -> SpaceMapRoot:
        """What the superblock says of this space map.  `save` first."""
        return SpaceMapRoot(
            self.nr_blocks, self.nr_allocated, self._index.root, self._overflow_tree()
        )

    # --- counting -------------------------------------------------------------------------------

    def increment(self, begin: int, end: int) -> None:
        """One owner more for each of the blocks begin..end-1."""
        for bitmap, first, stop in pieces(begin, end):
            data = self._tm.modify(self._blocknr(bitmap), Kind.BITMAP).data
            length = stop - first
            if length == 1:
                self._increment_one(bitmap, first, data)
                continue
            stretch = pairs.load(data, first, stop)
            if stretch == 0:
                pairs.store(data, first, stop, pairs.uniform(1, length))
                self._allocated(bitmap, first, stop)
            elif stretch == pairs.uniform(1, length):
                pairs.store(data, first, stop, pairs.uniform(2, length))
            else:
                for entry in range(first, stop):
                    self._increment_one(bitmap, entry, data)

    def decrement(self, begin: int, end: int) -> None:
        """One owner less for each of the blocks begin..end-1.  Raises `Corrupt` if one has none."""
        for bitmap, first, stop in pieces(begin, end):
            data = self._tm.modify(self._blocknr(bitmap), Kind.BITMAP).data
            length = stop - first
            if length == 1:
                self._decrement_one(bitmap, first, data)
                continue
            stretch = pairs.load(data, first, stop)
            if stretch == pairs.uniform(1, length):
                pairs.store(data, first, stop, 0)
                self._freed(bitmap, first, stop)
            elif stretch == pairs.uniform(2, length):
                pairs.store(data, first, stop, pairs.uniform(1, length))
            else:
                for entry in range(first, stop):
                    self._decrement_one(bitmap, entry, data)

    def extend(self, nr_blocks: int) -> None:
        """Cover `nr_blocks` blocks, more than now; the new ones are free.

        The bitmaps for them are allocated from the metadata's space map.
        """
        self._refresh_last()
        old, self.nr_blocks = self.nr_bitmaps, nr_blocks
        for bitmap in range(old, self.nr_bitmaps):
            self._add_bitmap(self._tm.new(Kind.BITMAP).block, bitmap)

    def extend_by_bitmap(self) -> None:
        """Cover one bitmap's worth of blocks more, and keep that bitmap in the first of them.

        This is how the metadata's own space map grows when nothing is free any more.
        """
        bitmap = self.nr_bitmaps
        self._index.check_room(bitmap + 1)
        self._refresh_last()
        block = bitmap * ENTRIES_PER_BITMAP
        self.nr_blocks = block + ENTRIES_PER_BITMAP
        self._tm.new_at(block, Kind.BITMAP)
        self._add_bitmap(block, bitmap)
        self.increment(block, block + 1)

    # --- commit ---------------------------------------------------------------------------------

    def save(self) -> None:
        """Bring the index on disk up to date, as part of the open transaction."""
        self._overflow_tree()
        if self._changed:
            changed, self._changed = sorted(self._changed), set()
            self._index.save((n, (self._low[n], self._high[n])) for n in changed)

    # --- within ---------------------------------------------------------------------------------

    def _load(self) -> None:
        if not self._loaded:
            self._low, self._high = self._index.load(self.nr_bitmaps)
            self._loaded = True

    def _blocknr(self, bitmap: int) -> int:
        if not self._loaded:
            self._load()
        return self._low[bitmap]

    def _length(self, bitmap: int) -> int:
        return min(ENTRIES_PER_BITMAP, self.nr_blocks - bitmap * ENTRIES_PER_BITMAP)

    def _allocated(self, bitmap: int, first: int, stop: int) -> None:
        high = self._high[bitmap]
        before = high >> 32
        if first <= before < stop:
            before = stop
        self._high[bitmap] = (high & U32) - (stop - first) | before << 32
        self._changed.add(bitmap)
        self.nr_allocated += stop - first

    def _freed(self, bitmap: int, first: int, stop: int) -> None:
        high = self._high[bitmap]
        self._high[bitmap] = (high & U32) + (stop - first) | min(high >> 32, first) << 32
        self._changed.add(bitmap)
        self.nr_allocated -= stop - first
        base = bitmap * ENTRIES_PER_BITMAP
        self.withheld.free(base + first, base + stop)

    def _increment_one(self, bitmap: int, entry: int, data: bytearray) -> None:
        at, shift = BITMAP_HEADER_SIZE + (entry >> 2), (entry & 3) << 1
        pair = data[at] >> shift & 3
        if pair == 3:
            block = bitmap * ENTRIES_PER_BITMAP + entry
            self._put_overflow(block, self._overflow_count(block) + 1)
            return
        count = _SWAPPED[pair] + 1
        data[at] = data[at] & ~(3 << shift) | _SWAPPED[count] << shift
        if count == 1:
            self._allocated(bitmap, entry, entry + 1)
        elif count == OVERFLOW:
            self._put_overflow(bitmap * ENTRIES_PER_BITMAP + entry, count)

    def _decrement_one(self, bitmap: int, entry: int, data: bytearray) -> None:
        at, shift = BITMAP_HEADER_SIZE + (entry >> 2), (entry & 3) << 1
        block = bitmap * ENTRIES_PER_BITMAP + entry
        count = _SWAPPED[data[at] >> shift & 3]
        if count == 0:
            raise Corrupt("bitmap", f"{self.name} block {block}", "freed, but nobody has it")
        if count == OVERFLOW:
            count = self._overflow_count(block)
            if count > OVERFLOW:
                self._put_overflow(block, count - 1)
                return
        count -= 1
        data[at] = data[at] & ~(3 << shift) | _SWAPPED[count] << shift
        if count == 0:
            self._freed(bitmap, entry, entry + 1)
        elif count == OVERFLOW - 1:
            self._overflow_root = self._overflow.remove(self._overflow_tree(), block)

    def _overflow_count(self, block: int) -> int:
        count = self._overflow.lookup(self._overflow_tree(), block)
        if count is None:
            raise Corrupt(
                "bitmap", f"{self.name} block {block}", "its count above 2 is not in the tree"
            )
        return count

    def _put_overflow(self, block: int, count: int) -> None:
        self._overflow_root = self._overflow.insert(self._overflow_tree(), block, count)

    def _overflow_tree(self) -> int:
        """The root of the tree of counts above 2, which is made when first needed."""
        if self._overflow_root is None:
            self._overflow_root = self._overflow.empty()
        return self._overflow_root

    def _refresh_last(self) -> None:
        """Count the free entries of the last bitmap anew, before the map grows within it.

        The kernel's tools leave out entries beyond the device's end.
        """
        self._load()
        last = self.nr_bitmaps - 1
        if last >= 0:
            data = self._tm.read(self._low[last], Kind.BITMAP).data
            free = pairs.free_entries(data, ENTRIES_PER_BITMAP).bit_count()
            self._high[last] = free | self._high[last] >> 32 << 32
            self._changed.add(last)

    def _add_bitmap(self, block: int, bitmap: int) -> None:
        self._low.append(block)
        self._high.append(ENTRIES_PER_BITMAP)
        self._changed.add(bitmap)
