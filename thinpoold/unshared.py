"""Data blocks that have one owner now, but had more at the last commit.

When a volume gives up a shared data block (it broke the sharing, or discarded it), the block may be
its other owner's alone, and the metadata says that it can be written in place. But a crash would
bring the last commit back, where both own it, and the one that gave it up would find the other's
new bytes. So until the commit that makes the giving up durable, such a block still counts as
shared: the owner that is left copies it once more.

Nor may it be written in place before a grace period has passed after that commit: a request of the
one that gave it up may have looked its mapping up before, and be reading it still.

Kept as disjoint ranges of data blocks: those of the open transaction, those of the one being
committed, and those of commits whose grace period is not over. A deleted volume gives up its blocks
after the commit that made it nobody's, and has no requests (`deletion`), so they are not among
them.

Thread-safety: the caller holds the metadata lock.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import pairwise


class Ranges:
    """A set of numbers as disjoint, sorted ranges begin..end-1."""

    def __init__(self) -> None:
        self._begins: list[int] = []
        self._ends: list[int] = []

    def __bool__(self) -> bool:
        return bool(self._begins)

    def __len__(self) -> int:
        return len(self._begins)

    def add(self, begin: int, end: int) -> None:
        """Add begin..end-1."""
        # All ranges that touch the new one become one with it.
        low = bisect_left(self._ends, begin)
        high = bisect_right(self._begins, end)
        if low < high:
            begin = min(begin, self._begins[low])
            end = max(end, self._ends[high - 1])
        self._begins[low:high] = [begin]
        self._ends[low:high] = [end]

    def overlaps(self, begin: int, end: int) -> bool:
        """Whether any of begin..end-1 is in the set."""
        at = bisect_right(self._ends, begin)
        return at < len(self._begins) and self._begins[at] < end

    def bounds(self, begin: int, end: int) -> list[int]:
        """Where ranges of the set begin or end inside begin..end-1, but not at its own begin."""
        found = []
        for at in range(bisect_right(self._ends, begin), len(self._begins)):
            if self._begins[at] >= end:
                break
            found += [bound for bound in (self._begins[at], self._ends[at]) if begin < bound < end]
        return found


class Unshared:
    """The blocks of the open and of the frozen transaction, and of commits before."""

    def __init__(self) -> None:
        self._open = Ranges()
        self._frozen = Ranges()
        # Of durable commits, until `release`.
        self._durable: tuple[Ranges, ...] = ()

    def add(self, begin: int, count: int) -> None:
        """An owner of these data blocks, which others own as well, has given them up."""
        self._open.add(begin, begin + count)

    def holds(self, begin: int, count: int) -> bool:
        """Whether any of these data blocks still counts as shared."""
        if not self._open and not self._frozen and not self._durable:
            return False
        end = begin + count
        return any(ranges.overlaps(begin, end) for ranges in self._all())

    def alike(self, begin: int, count: int) -> list[tuple[int, int]]:
        """Cut these data blocks into pieces, (first, how many), that are held whole or not at all.

        A block that is not held may be being written in place: whoever copies one beside it that is
        must leave it alone.
        """
        if not self.holds(begin, count):
            return [(begin, count)]
        end = begin + count
        inside = {bound for ranges in self._all() for bound in ranges.bounds(begin, end)}
        cuts = [begin, *sorted(inside), end]
        return [(first, last - first) for first, last in pairwise(cuts)]

    def _all(self) -> tuple[Ranges, ...]:
        return (self._open, self._frozen, *self._durable)

    def freeze(self) -> None:
        """The open transaction is being committed."""
        self._frozen, self._open = self._open, Ranges()

    def committed(self) -> None:
        """The frozen transaction is durable."""
        if self._frozen:
            self._durable += (self._frozen,)
        self._frozen = Ranges()

    @property
    def durable(self) -> tuple[Ranges, ...]:
        """What waits for the end of a grace period."""
        return self._durable

    def release(self, durable: tuple[Ranges, ...]) -> None:
        """A grace period has passed since `durable` was this."""
        self._durable = tuple(one for one in self._durable if not any(one is it for it in durable))

    def abandon(self) -> None:
        """The last commit is what counts again, with all it shares."""
        self._open, self._frozen = Ranges(), Ranges()
