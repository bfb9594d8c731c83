"""Cells: a request has a range of virtual blocks to itself while it gives them new data blocks.

After dm-bio-prison, with ranges instead of single blocks. Whoever needs a new data block for a
virtual block (first write, breaking of sharing) holds a cell over it from the look-up to the
insertion; others who need the same wait and then find it done.

Invariants

1. Held cells do not overlap.
2. Overlapping cells are granted in the order in which they were asked for, so nobody starves.
3. A thread holds at most one cell, and does not wait for another while it does: no deadlock.

Reads, and writes in place, need no cell: what they see in the table stays true until a grace period
of the gate has passed.

Thread-safety: any thread. `_lock` guards `_line`.
"""

from __future__ import annotations

import threading


class Cells:
    """The cells of one volume."""

    def __init__(self) -> None:
        # Taken by itself where nobody waits: the condition's own `with` costs twice as much.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        # Held and awaited ranges, in the order of their coming.
        self._line: list[tuple[int, int]] = []

    def hold(self, begin: int, end: int) -> _Holding:
        """Hold virtual blocks begin..end-1 for the context."""
        return _Holding(self, (begin, end))

    def acquire(self, cell: tuple[int, int]) -> None:
        """Wait until the cell is held. A fresh tuple each time: it is found again by identity."""
        line = self._line
        with self._lock:
            line.append(cell)
            if len(line) > 1:
                self._wait(cell)

    def release(self, cell: tuple[int, int]) -> None:
        """Let go of a cell that is held."""
        line = self._line
        with self._lock:
            if len(line) == 1:
                line.clear()
            else:
                self._drop(cell)

    def _wait(self, cell: tuple[int, int]) -> None:
        try:
            while self._is_behind_another(cell):
                self._changed.wait()
        except BaseException:
            self._drop(cell)
            raise

    def _is_behind_another(self, cell: tuple[int, int]) -> bool:
        begin, end = cell
        for other in self._line:
            if other is cell:
                return False
            if other[0] < end and begin < other[1]:
                return True
        return False

    def _drop(self, cell: tuple[int, int]) -> None:
        for place, other in enumerate(self._line):
            if other is cell:
                del self._line[place]
                break
        if self._line:
            self._changed.notify_all()


class _Holding:
    """The context of a cell. A class: a generator would take three times as long."""

    __slots__ = ("_cell", "_cells")

    def __init__(self, cells: Cells, cell: tuple[int, int]) -> None:
        self._cells = cells
        self._cell = cell

    def __enter__(self) -> None:
        self._cells.acquire(self._cell)

    def __exit__(self, *_: object) -> None:
        self._cells.release(self._cell)
