"""Allocation ahead: a volume's next data blocks, reserved as a run before they are needed.

So what a volume writes in sequence lies in sequence on the data device, even while others write;
and most new blocks are had without a search, and without asking for each whether it reads as zero,
which is asked of the run once.

A run starts with one block and doubles while the volume goes on, to `MOST_BLOCKS`; and no volume
holds more than one in `SHARE` of the blocks that are free. Who finds no free block takes all of
that back first, so space is never short because of it.

Invariant: the blocks of a run that were not taken are reserved, and nobody writes to them. What was
found to be zero stays so until it is taken.

Thread-safety: the core's lock guards all but `Run.zero`, which only ever becomes better known.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from thinmeta.thin import ThinMetadata

MOST_BLOCKS: Final = 64
SHARE: Final = 256


class Run:
    """Data blocks begin..end-1; `zero`: whether all are known to read as zero, None: not asked."""

    __slots__ = ("begin", "end", "zero")

    def __init__(self, begin: int, end: int) -> None:
        self.begin = begin
        self.end = end
        self.zero: bool | None = None


class Taken(NamedTuple):
    """`blocks` reserved blocks from `begin` on, the whole or a part of `run`."""

    begin: int
    blocks: int
    run: Run


class Ahead:
    """What one volume has reserved ahead."""

    __slots__ = ("_next", "_run", "_size")

    def __init__(self) -> None:
        self._run = Run(0, 0)
        self._next = 0
        self._size = 1

    def take(self, count: int) -> Taken | None:
        """Take up to `count` blocks of the run; None when it has none left."""
        begin, left = self._next, self._run.end - self._next
        if not left:
            return None
        count = min(count, left)
        self._next = begin + count
        return Taken(begin, count, self._run)

    def wanted(self, count: int, free: int) -> int:
        """How many blocks to reserve for a volume that needs `count`, with so many free."""
        self._size = min(2 * self._size, MOST_BLOCKS)
        return max(count, min(self._size, free // SHARE))

    def fill(self, begin: int, count: int) -> None:
        """These blocks were reserved; there is no other run."""
        self._run = Run(begin, begin + count)
        self._next = begin

    def give_back(self, metadata: ThinMetadata) -> bool:
        """Give back what was not taken; whether that was anything."""
        left = self._run.end - self._next
        if left:
            metadata.unreserve(self._next, left)
            self.fill(0, 0)
        return bool(left)
