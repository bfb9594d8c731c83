"""Cells: a request has a range of virtual blocks to itself while it gives them new data blocks.

After dm-bio-prison, with ranges instead of single blocks. Whoever needs a new data block for a
virtual block (first write, breaking of sharing) holds a cell over it from the look-up to the
insertion; others who need the same wait and then find it done.

Invariants

1. Held cells do not overlap.
2. Overlapping cells are granted in the order in which they were asked for, so nobody starves.
3. A thread holds at most one cell, and does not wait for another while it does: no deadlock.

Reads, and writes in place, need no cell: what they see in the table stays true until a grace period
of the gate has passed. So while a cell is held, nobody else may let others write its blocks in
place: its holder is copying what they would write. `Volume.fill` asks `covering` before it does.

Thread-safety: any thread. `_lock` guards `_line`; `covering` reads it without.
"""

from __future__ import annotations

import threading
from typing import TypeAlias

Cell: TypeAlias = tuple[int, int]
"""Virtual blocks begin..end-1, as (begin, end)."""


class Cells:
    """The cells of one volume."""

    def __init__(self) -> None:
        # Taken by itself where nobody waits: the condition's own `with` costs twice as much.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        # Held and awaited ranges, in the order of their coming.
        self._line: list[Cell] = []

    def hold(self, begin: int, end: int) -> _Holding:
        """Hold virtual blocks begin..end-1 for the context."""
        return _Holding(self, (begin, end))

    def acquire(self, cell: Cell) -> None:
        """Wait until the cell is held. A fresh tuple each time: it is found again by identity."""
        line = self._line
        with self._lock:
            line.append(cell)
            if len(line) > 1:
                self._wait(cell)

    def release(self, cell: Cell) -> None:
        """Let go of a cell that is held."""
        line = self._line
        with self._lock:
            if len(line) == 1:
                line.clear()
            else:
                self._drop(cell)

    def covering(self, begin: int, end: int) -> list[Cell]:
        """Cells, held or awaited, that overlap virtual blocks begin..end-1.

        With the metadata lock held, it has every cell whose holder has looked at the metadata: a
        cell is in the line before its holder takes that lock.
        """
        line = self._line
        if not line:
            return []
        return [cell for cell in tuple(line) if cell[0] < end and begin < cell[1]]

    def _wait(self, cell: Cell) -> None:
        try:
            while self._is_behind_another(cell):
                self._changed.wait()
        except BaseException:
            self._drop(cell)
            raise

    def _is_behind_another(self, cell: Cell) -> bool:
        begin, end = cell
        for other in self._line:
            if other is cell:
                return False
            if other[0] < end and begin < other[1]:
                return True
        return False

    def _drop(self, cell: Cell) -> None:
        for place, other in enumerate(self._line):
            if other is cell:
                del self._line[place]
                break
        if self._line:
            self._changed.notify_all()


class _Holding:
    """The context of a cell. A class: a generator would take three times as long."""

    __slots__ = ("_cell", "_cells")

    def __init__(self, cells: Cells, cell: Cell) -> None:
        self._cells = cells
        self._cell = cell

    def __enter__(self) -> None:
        self._cells.acquire(self._cell)

    def __exit__(self, *_: object) -> None:
        self._cells.release(self._cell)
