"""Blocks whose count is 0 but which must not be handed out.

A block freed in a transaction is not used again before that transaction is durable, or a crash
would find the last commit's block overwritten; nor before its user (who may have to wait for
readers, and to punch it out of the data device) says so.  And a block that was handed out but is
not counted yet is nobody else's.  So a block that is not counted is in one of these sets, or free:

    reserved   handed out, to be counted when its data is written
    open       freed in the open transaction
    frozen     freed in the transaction that is being committed
    durable    freed by a commit, not yet released by the user

Each is kept by bitmap: number -> set of entries (see `pairs`).  Callers name exactly the blocks
they put in; `count` relies on it.

Thread safety: the caller holds the metadata lock.
"""

from __future__ import annotations

from collections.abc import Iterator

from thinmeta.format.bitmap import ENTRIES_PER_BITMAP
from thinmeta.spacemap.pairs import entry_set, runs

Sets = dict[int, int]
Range = tuple[int, int]
"""(first block, how many)."""


def pieces(begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The blocks begin..end-1 as (bitmap, first entry, entry behind the last)."""
    while begin < end:
        bitmap, first = divmod(begin, ENTRIES_PER_BITMAP)
        stop = min(end - begin + first, ENTRIES_PER_BITMAP)
        yield bitmap, first, stop
        begin += stop - first


def ranges(sets: Sets) -> list[Range]:
    """The blocks of these sets as ranges, ascending, adjacent ones joined."""
    found: list[Range] = []
    for bitmap in sorted(sets):
        base = bitmap * ENTRIES_PER_BITMAP
        for begin, end in runs(sets[bitmap]):
            if found and sum(found[-1]) == base + begin:
                found[-1] = (found[-1][0], found[-1][1] + end - begin)
            else:
                found.append((base + begin, end - begin))
    return found


class Withheld:
    """The four sets."""

    def __init__(self) -> None:
        self._reserved: Sets = {}
        self._open: Sets = {}
        self._frozen: Sets = {}
        self._durable: Sets = {}
        self.count = 0
        """Blocks in all sets."""

    def of_bitmap(self, bitmap: int) -> int:
        """The set of this bitmap's entries that are withheld."""
        return (
            self._reserved.get(bitmap, 0)
            | self._open.get(bitmap, 0)
            | self._frozen.get(bitmap, 0)
            | self._durable.get(bitmap, 0)
        )

    @property
    def freed(self) -> bool:
        """Whether blocks were freed that a commit, or a release, will make free."""
        return bool(self._open or self._frozen or self._durable)

    def reserve(self, begin: int, end: int) -> None:
        """Blocks begin..end-1, which are free, are handed out."""
        self._add(self._reserved, begin, end)

    def unreserve(self, begin: int, end: int) -> None:
        """Reserved blocks are counted now, or given back."""
        self._remove(self._reserved, begin, end)

    def free(self, begin: int, end: int) -> None:
        """The open transaction has freed the blocks begin..end-1."""
        self._add(self._open, begin, end)

    def freeze(self) -> None:
        """The open transaction is closed."""
        self._frozen, self._open = self._open, {}

    def frozen(self) -> list[Range]:
        """What the transaction that is being committed has freed."""
        return ranges(self._frozen)

    def committed(self) -> list[Range]:
        """The frozen transaction is durable; what it freed, still withheld until `release`."""
        freed = self.frozen()
        for bitmap, entries in self._frozen.items():
            self._durable[bitmap] = self._durable.get(bitmap, 0) | entries
        self._frozen = {}
        return freed

    def release(self, freed: list[Range]) -> None:
        """These durably freed blocks may be handed out again."""
        for begin, count in freed:
            self._remove(self._durable, begin, begin + count)

    def abandon(self) -> None:
        """What no commit has freed is in use, as it was; the rest stays as it is."""
        for sets in (self._open, self._frozen):
            self.count -= sum(entries.bit_count() for entries in sets.values())
        self._open, self._frozen = {}, {}

    def _add(self, sets: Sets, begin: int, end: int) -> None:
        for bitmap, first, stop in pieces(begin, end):
            sets[bitmap] = sets.get(bitmap, 0) | entry_set(first, stop)
        self.count += end - begin

    def _remove(self, sets: Sets, begin: int, end: int) -> None:
        for bitmap, first, stop in pieces(begin, end):
            left = sets[bitmap] & ~entry_set(first, stop)
            if left:
                sets[bitmap] = left
            else:
                del sets[bitmap]
        self.count -= end - begin
