"""What each sector of a volume may hold after a crash.

A sector's content is a stamp: the number of the operation that wrote it and the sector's place,
repeated; so what is read says by itself who wrote it, and a torn, misplaced or foreign sector
cannot pass for anything else.

For each sector the model keeps the operations whose outcome may be seen, oldest first. A crash may
leave any of them. What is durable cuts the list: a flush that began at time t makes the last
operation completed before t the oldest that can be seen.

Invariants:
1. Requests in flight to one volume never overlap, so the operations on a sector have one order.
2. A trim is weak: it may leave zero or what was there, so it never cuts.
3. Times are a logical clock's; nothing here asks the real one.

Thread-safety: none; one thread.
"""

# An outcome, not always an error.
# ruff: noqa: N818

import struct
from array import array
from dataclasses import dataclass, field
from itertools import count
from typing import Self

SECTOR = 512
STAMP = struct.Struct("<QQ")
REPEATS = SECTOR // STAMP.size
ZEROES = bytes(SECTOR)
MOST_NAMED = 5


class Lost(AssertionError):
    """A sector holds what it must not."""


def stamp(number: int, sector: int) -> bytes:
    """The content of one sector: `number` 0 is a sector of zeroes."""
    return STAMP.pack(number, sector) * REPEATS if number else ZEROES


def stamped(number: int, first: int, sectors: int) -> bytes:
    """The content of a run of sectors."""
    if not number:
        return bytes(sectors * SECTOR)
    return b"".join(STAMP.pack(number, first + n) * REPEATS for n in range(sectors))


def read_stamps(data: bytes, first: int = 0) -> list[int]:
    """The number in each sector of `data`; -1 where a sector is no stamp of its place."""
    words = memoryview(data).cast("Q")
    step = SECTOR // 8
    numbers = []
    for index in range(len(data) // SECTOR):
        number = words[index * step]
        whole = data[index * SECTOR : (index + 1) * SECTOR]
        numbers.append(number if whole == stamp(number, first + index) else -1)
    return numbers


@dataclass(eq=False, slots=True)
class Op:
    """One change to some sectors. `values`: what each may hold because of it."""

    values: tuple[int, ...]
    strong: bool = True
    done_at: int | None = None


@dataclass(slots=True)
class Clock:
    """Logical time, and the numbers of operations."""

    ticks: "count[int]" = field(default_factory=lambda: count(1))
    numbers: "count[int]" = field(default_factory=lambda: count(1))
    now: int = 0

    def tick(self) -> int:
        self.now = next(self.ticks)
        return self.now


def cut(ops: list[Op], before: int) -> list[Op]:
    """The operations that may still be seen once all that completed before `before` is durable."""
    for index in range(len(ops) - 1, 0, -1):
        op = ops[index]
        if op.strong and op.done_at is not None and op.done_at < before:
            return ops[index:]
    return ops


class VolumeStates:
    """The sectors of one volume."""

    def __init__(self, name: str, sectors: int) -> None:
        self.name = name
        self.settled = array("Q", bytes(8 * sectors))
        self.open: dict[int, list[Op]] = {}
        self.busy: list[range] = []
        self.shadows: list[VolumeStates] = []

    @property
    def sectors(self) -> int:
        return len(self.settled)

    def free(self, wanted: range) -> bool:
        """Whether no request in flight touches the range."""
        return not any(r.start < wanted.stop and wanted.start < r.stop for r in self.busy)

    def begin(self, where: range, op: Op) -> None:
        """A request is about to be sent: from now on its outcome may be seen."""
        self.busy.append(where)
        for shadow in self.shadows:
            shadow.may_hold(where, op.values)
        for sector in where:
            ops = self.open.get(sector)
            if ops is None:
                ops = self.open[sector] = [Op((self.settled[sector],), done_at=0)]
            ops.append(op)

    def end(self, where: range, op: Op, now: int) -> None:
        """The request was answered with success."""
        self.busy.remove(where)
        op.done_at = now

    def durable(self, where: range, op: Op) -> None:
        """A completed strong operation is durable: nothing older may be seen."""
        for sector in where:
            ops = self.open.get(sector, [])
            if op in ops:
                self.open[sector] = ops[ops.index(op) :]

    def flushed(self, before: int) -> None:
        """All that completed before `before` is durable."""
        for sector, ops in list(self.open.items()):
            left = cut(ops, before)
            if len(left) == 1 and len(left[0].values) == 1:
                self.settled[sector] = left[0].values[0]
                del self.open[sector]
            else:
                self.open[sector] = left

    def shadow(self, name: str, since: int) -> "VolumeStates":
        """What a snapshot may hold that is taken at some instant from `since` until `unshadow`.

        A flush in that time cuts what the volume may hold, not what the snapshot may.
        """
        copy = VolumeStates(name, 0)
        copy.settled = self.settled[:]
        for sector, ops in self.open.items():
            values = tuple({value for op in cut(ops, since) for value in op.values})
            # One undetermined base: what the origin's requests do later is not the copy's.
            copy.open[sector] = [Op(values, done_at=0)]
        self.shadows.append(copy)
        return copy

    def unshadow(self, copy: "VolumeStates") -> None:
        """The instant has passed."""
        self.shadows.remove(copy)

    def may_hold(self, where: range, values: tuple[int, ...]) -> None:
        """Adds to what a shadow may hold."""
        for sector in where:
            ops = self.open.get(sector)
            before = ops[0].values if ops else (self.settled[sector],)
            self.open[sector] = [Op(tuple({*before, *values}), done_at=0)]

    def resized(self, sectors: int) -> Self:
        """Cuts off what lies past the new end, or adds zeroes."""
        if sectors < self.sectors:
            del self.settled[sectors:]
            for sector in [s for s in self.open if s >= sectors]:
                del self.open[sector]
        else:
            self.settled.frombytes(bytes(8 * (sectors - self.sectors)))
        return self

    def allowed_now(self, sector: int, now: int) -> set[int]:
        """What a read may see, when no request in flight touches the sector."""
        ops = self.open.get(sector)
        if ops is None:
            return {self.settled[sector]}
        return {value for op in cut(ops, now) for value in op.values}

    def allowed_after_crash(self, sector: int) -> set[int]:
        """What a sector may hold after a crash."""
        ops = self.open.get(sector)
        if ops is None:
            return {self.settled[sector]}
        return {value for op in ops for value in op.values}

    def check_read(self, first: int, data: bytes, now: int) -> None:
        """Raises Lost when a live read shows what it must not."""
        wrong = []
        for index, number in enumerate(read_stamps(data, first)):
            allowed = self.allowed_now(first + index, now)
            if number not in allowed:
                wrong.append((first + index, number, sorted(allowed)))
        self._report("a read", wrong, data, first)

    def recover(self, data: bytes) -> None:
        """Takes what a volume holds after a crash as settled; raises Lost for what it must not."""
        numbers = read_stamps(data)
        if len(numbers) != self.sectors:
            raise Lost(f"{self.name}: {len(numbers)} sectors, not {self.sectors}")
        wrong = [
            (sector, number, sorted(self.allowed_after_crash(sector)))
            for sector, number in enumerate(numbers)
            if sector in self.open or number != self.settled[sector]
            if number not in self.allowed_after_crash(sector)
        ]
        self._report("after the crash", wrong, data, 0)
        self.settled = array("Q", numbers)
        self.open.clear()
        self.busy.clear()

    def _report(
        self, when: str, wrong: list[tuple[int, int, list[int]]], data: bytes, first: int
    ) -> None:
        if not wrong:
            return
        lines = [f"{self.name}: {len(wrong)} wrong sectors, {when}"]
        for sector, number, allowed in wrong[:MOST_NAMED]:
            at = (sector - first) * SECTOR
            seen = data[at : at + 16].hex() if number < 0 else str(number)
            lines.append(f"  sector {sector}: {seen}, allowed {allowed}")
        raise Lost("\n".join(lines))
