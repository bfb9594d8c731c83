"""Space maps: what is stored of reference counts, compared with what was found.

Thread safety: belongs to the one thread that checks.
"""

from __future__ import annotations

from thinmeta.check.counts import (
    LOW_BITS,
    ReferenceCounts,
    count_at,
    entries_of,
    full_pairs,
    used_pairs,
)
from thinmeta.check.result import Findings
from thinmeta.check.trees import Tree, TreeWalker
from thinmeta.errors import Corrupt, StoreError
from thinmeta.format import index
from thinmeta.format.bitmap import (
    BITMAP_HEADER_SIZE,
    ENTRIES_PER_BITMAP,
    INDEX_ENTRY_SIZE,
    OVERFLOW,
    IndexEntry,
)
from thinmeta.format.block import Kind, verify
from thinmeta.format.node import values_at
from thinmeta.format.superblock import SpaceMapRoot
from thinmeta.format.values import REF_COUNT_SIZE
from thinmeta.store.protocol import BlockStore


class SpaceMapChecker:
    """One space map as it is on disk. `name` is 'data' or 'metadata'.

    Counts the references to its own blocks in `metadata`. `limit` is the number of blocks that
    there can be: a larger one is told, and not believed.
    """

    def __init__(
        self,
        name: str,
        root: SpaceMapRoot,
        store: BlockStore,
        metadata: ReferenceCounts,
        findings: Findings,
        limit: int,
    ) -> None:
        self.name = name
        self.where = f"{name} space map"
        self.nr_blocks = min(root.nr_blocks, limit)
        self._root = root
        self._store = store
        self._metadata = metadata
        self._findings = findings
        #: By number of the bitmap. One that is missing here was out of reach.
        self.entries: dict[int, IndexEntry] = {}
        #: Counts of `OVERFLOW` and more, by block; None when some were out of reach.
        self._overflow: dict[int, int] | None = {}
        #: Bitmaps that `read_bitmaps` read, as big integers; None for one that cannot be read.
        self._pairs: dict[int, int | None] = {}
        if root.nr_blocks > limit:
            findings.add("superblock", self.where, f"cannot have {root.nr_blocks} blocks")

    @property
    def nr_bitmaps(self) -> int:
        return -(-self.nr_blocks // ENTRIES_PER_BITMAP)

    def read_index_block(self) -> bool:
        """Take the index entries from the one block where the metadata's are; whether it could."""
        data = self._read(self._root.bitmap_root, Kind.INDEX, f"{self.where}, index")
        if data is None:
            return False
        self.entries = dict(enumerate(index.unpack(data, self.nr_bitmaps)))
        return True

    def read_index_tree(self, walker: TreeWalker) -> bool:
        """Take the index entries from the tree where the data's are; whether all were found."""
        first = values_at(INDEX_ENTRY_SIZE)

        def leaf(where: str, keys: list[int], data: bytearray) -> None:
            view = memoryview(data)
            for at, key in enumerate(keys):
                begin = first + at * INDEX_ENTRY_SIZE
                self.entries[key] = IndexEntry.unpack(view[begin : begin + INDEX_ENTRY_SIZE])

        tree = Tree(f"{self.where}, index", "bitmaps", INDEX_ENTRY_SIZE, leaf)
        complete = not walker.walk(tree, self._root.bitmap_root).lost
        last = max(self.entries, default=-1)
        if complete and not len(self.entries) == last + 1 == self.nr_bitmaps:
            self._findings.add(
                "index",
                tree.name,
                f"has {len(self.entries)} bitmaps up to {last}, not {self.nr_bitmaps} of them",
            )
            self.nr_blocks = min(self.nr_blocks, (last + 1) * ENTRIES_PER_BITMAP)
        return complete

    def read_overflow(self, walker: TreeWalker) -> bool:
        """Take the counts that do not fit a bitmap; whether all were found."""
        overflow: dict[int, int] = {}

        def leaf(where: str, keys: list[int], data: bytearray) -> None:
            counts = memoryview(data)[values_at(REF_COUNT_SIZE) :].cast("I")
            overflow.update(zip(keys, counts, strict=False))

        tree = Tree(f"{self.where}, overflow tree", "blocks", REF_COUNT_SIZE, leaf)
        complete = not walker.walk(tree, self._root.ref_count_root).lost
        self._overflow = overflow if complete else None
        return complete

    def read_bitmaps(self) -> None:
        """Read all bitmaps, and keep them for the two questions below."""
        for number in range(self.nr_bitmaps):
            self._pairs[number] = self._read_bitmap(number)

    def may_be_shared(self, block: int) -> bool:
        """Whether more than one owner of `block` is counted, or this cannot be told."""
        pairs = self._pairs.get(block // ENTRIES_PER_BITMAP)
        return pairs is None or count_at(pairs, block % ENTRIES_PER_BITMAP) > 1

    def may_be_used(self, block: int) -> bool:
        """Whether any owner of `block` is counted, or this cannot be told."""
        pairs = self._pairs.get(block // ENTRIES_PER_BITMAP)
        return pairs is None or count_at(pairs, block % ENTRIES_PER_BITMAP) > 0

    def compare(self, found: ReferenceCounts, *, complete: bool, foreign: bool) -> int:
        """Tell how the counts differ from those `found`; the number of blocks leaked.

        Unless `complete`, some owners may not have been found: then only what has more owners than
        counted is certain to be wrong. The sums of `foreign` maps may be wrong on the safe side.
        """
        ranges = _Ranges(self.name, self._findings, complete)
        overflow = dict(self._overflow or {})
        used, unread = 0, False
        for number in range(self.nr_bitmaps):
            # Not kept where they were not kept before: a large pool has a great many.
            pairs = self._pairs[number] if self._pairs else self._read_bitmap(number)
            if pairs is None:
                unread = True
                first = number * ENTRIES_PER_BITMAP
                for block in [b for b in overflow if 0 <= b - first < ENTRIES_PER_BITMAP]:
                    del overflow[block]
                continue
            used += used_pairs(pairs).bit_count()
            self._compare_bitmap(number, pairs, found, overflow, ranges)
            if number in self.entries:
                self._check_entry(number, pairs, foreign)
        ranges.end()
        for block in sorted(overflow):
            self._findings.add(
                "count", self.where, f"block {block} has a count in the overflow tree to no purpose"
            )
        said = self._root.nr_allocated
        if not unread and (said < used if foreign else said != used):
            self._findings.add(
                "count",
                self.where,
                f"says {said} blocks are allocated, but {used} are",
            )
        return ranges.leaked

    def _compare_bitmap(
        self,
        number: int,
        pairs: int,
        found: ReferenceCounts,
        overflow: dict[int, int],
        ranges: _Ranges,
    ) -> None:
        begin = number * ENTRIES_PER_BITMAP
        end = min(begin + ENTRIES_PER_BITMAP, self.nr_blocks)
        different = used_pairs(pairs ^ found.pairs(begin, min(end, found.nr_blocks)))
        for entry in entries_of(different | full_pairs(pairs)):
            block = begin + entry
            if block >= end:
                self._findings.add("bitmap", self.where, f"block {block} is counted past the end")
                break
            count = count_at(pairs, entry)
            if count == OVERFLOW:
                if self._overflow is None:
                    continue
                above = overflow.pop(block, None)
                if above is None:
                    self._findings.add(
                        "count", self.where, f"block {block} has no count in the overflow tree"
                    )
                    continue
                count = above
            ranges.compare(block, count, found[block] if block < found.nr_blocks else 0)

    def _check_entry(self, number: int, pairs: int, foreign: bool) -> None:
        entry = self.entries[number]
        where = f"{self.where}, index entry {number}"
        used = used_pairs(pairs)
        # Of the last bitmap the kernel counts what is past the end as free, its tools do not.
        room = self.nr_blocks - number * ENTRIES_PER_BITMAP
        free = [
            all_of_it - used.bit_count()
            for all_of_it in (ENTRIES_PER_BITMAP, min(room, ENTRIES_PER_BITMAP))
        ]
        if entry.nr_free > free[0] if foreign else entry.nr_free not in free:
            self._findings.add("index", where, f"says {entry.nr_free} are free, but {free[1]} are")
        first_free = next(entries_of(~used & LOW_BITS), ENTRIES_PER_BITMAP)
        if entry.none_free_before > first_free and not foreign:
            self._findings.add(
                "index",
                where,
                f"says none is free before {entry.none_free_before}, but {first_free} is",
            )

    def _read_bitmap(self, number: int) -> int | None:
        entry = self.entries.get(number)
        if entry is None:
            return None
        first = number * ENTRIES_PER_BITMAP
        last = min(first + ENTRIES_PER_BITMAP, self.nr_blocks) - 1
        where = f"{self.where}, bitmap {number}"
        data = self._read(entry.blocknr, Kind.BITMAP, where, f"counts of blocks {first}..{last}")
        return None if data is None else int.from_bytes(data[BITMAP_HEADER_SIZE:], "little")

    def _read(
        self, block: int, kind: Kind, where: str, lost: str = "all of it"
    ) -> bytearray | None:
        """A block of the map's own, counted; None, and told, if it cannot be read."""
        try:
            self._metadata.add(block)
            data = self._store.read(block)
            verify(data, kind, block)
        except IndexError:
            problem, message = "index", f"is past the end, {self._metadata.nr_blocks}"
        except Corrupt as damage:
            problem, message = damage.kind, damage.message
        except StoreError as error:
            problem, message = "io", str(error)
        else:
            return data
        self._findings.add(problem, f"block {block}", f"{message}; lost: {where}, {lost}")
        return None


class _Ranges:
    """Blocks whose counts are wrong, told as ranges."""

    def __init__(self, name: str, findings: Findings, complete: bool) -> None:
        self._name = name
        self._findings = findings
        self._complete = complete
        self.leaked = 0
        #: begin, end, stored, found
        self._range: tuple[int, int, int, int] | None = None

    def compare(self, block: int, stored: int, found: int) -> None:
        if stored == found or (stored > found and not self._complete):
            return
        if not found:
            self.leaked += 1
        if self._range and self._range[1:] == (block, stored, found):
            self._range = (self._range[0], block + 1, stored, found)
            return
        self.end()
        self._range = (block, block + 1, stored, found)

    def end(self) -> None:
        if self._range is None:
            return
        begin, end, stored, found = self._range
        self._range = None
        blocks = f"blocks {begin}..{end - 1}" if end - begin > 1 else f"block {begin}"
        where = f"{self._name} {blocks}"
        if found:
            self._findings.add("count", where, f"counted {stored} times, found {found} times")
        else:
            self._findings.add("leak", where, f"counted {stored} times, but without an owner")
