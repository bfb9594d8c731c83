"""The pieces of work that servers are given, and what is read off each.

A piece gives one value for each of its figures, each time it is done.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from . import fio, nbd_client, process
from .fairness import NEIGHBOURS
from .peers import NotOfferedError, Peer

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


class Settle(Protocol):
    """Between getting everything ready and the work."""

    def __call__(self, new: int = 0) -> None:
        """Has everything written out that earlier work left unwritten, and `new` bytes of memory
        ready for the page cache: about as much more as this piece will take."""


@dataclass(frozen=True)
class Figure:
    """One line of a table; those of the `processor` stand in a table of their own."""

    name: str
    unit: str
    less_is_better: bool = False
    processor: bool = False


@dataclass(frozen=True)
class Effort:
    """How much of it. `mapped` is the size in bytes of the volumes that are filled beforehand."""

    seconds: float
    mapped: int
    seed: int
    scratch: Path

    def run(self, *jobs: fio.Job, longer: float = 1.0) -> list[fio.Done]:
        """Has fio do the jobs at the same time."""
        seconds = self.seconds * longer
        return fio.run(jobs, seconds=seconds, seed=self.seed, scratch=self.scratch)


class Piece(Protocol):
    @property
    def figures(self) -> tuple[Figure, ...]: ...

    def do(self, peer: Peer, effort: Effort, settle: Settle) -> tuple[float, ...]:
        """Does it once: a value for each figure. Raises NotOfferedError, or what went wrong."""


@dataclass(frozen=True)
class Load:
    """Requests of one kind, as many as the server will take.

    `on` is the volume: "mapped", "empty", or "shared" (mapped, with a snapshot just made).
    `spread` and `amount` in bytes as in fio.Job, 0 for the whole mapped size and for no limit.
    """

    name: str
    pattern: str
    block: int
    depth: int
    connections: int = 1
    on: str = "mapped"
    spread: int = 0
    amount: int = 0
    flush: bool = False

    @property
    def figures(self) -> tuple[Figure, ...]:
        return (
            Figure(self.name, "MB/s" if self.block > 64 * KIB else "kIOPS"),
            Figure(self.name, "us", less_is_better=True, processor=True),
        )

    def do(self, peer: Peer, effort: Effort, settle: Settle) -> tuple[float, ...]:
        spread = self.spread or effort.mapped
        with contextlib.ExitStack() as use:
            if self.on == "empty":
                uri = use.enter_context(peer.empty(spread))
            elif self.on == "shared":
                uri = use.enter_context(peer.shared(effort.mapped))
            else:
                uri = peer.mapped(effort.mapped)
            settle(0 if self.on == "mapped" else max(self.amount, effort.mapped))
            job = fio.Job(
                uri,
                self.pattern,
                self.block,
                self.depth,
                spread,
                self.connections,
                self.amount,
                self.flush,
            )
            before = processor_seconds(peer)
            [done] = effort.run(job)
            spent = processor_seconds(peer) - before
        rate = done.bytes_per_second / 1e6 if self.block > 64 * KIB else done.iops / 1e3
        return rate, spent * 1e6 / done.requests


def processor_seconds(peer: Peer) -> float:
    """What the peer's servers have used of the processors."""
    return sum(process.processor_seconds(pid) for pid in peer.processes())


@dataclass(frozen=True)
class ReadLevels:
    """Random reads of what lies over `levels` snapshots."""

    levels: int

    @property
    def figures(self) -> tuple[Figure, ...]:
        return (Figure(level_name(self.levels), "kIOPS"),)

    def do(self, peer: Peer, effort: Effort, settle: Settle) -> tuple[float, ...]:
        size = effort.mapped // 2
        with peer.levels(size, self.levels) as uri:
            settle()
            job = fio.Job(uri, "randread", 4 * KIB, 16, size)
            [done] = effort.run(job)
        return (done.iops / 1e3,)


def level_name(levels: int) -> str:
    return f"random read 4 KiB, depth 16, through {levels} levels of snapshots"


@dataclass(frozen=True)
class Flood:
    """One client reads one volume, one request at a time, while another fills another volume."""

    longer: float = 4.0  # than other pieces: it takes a while until unwritten data weighs

    READER: ClassVar = "p99 of random reads 4 KiB, depth 1, nothing else going on"
    FLOODED: ClassVar = "the same while another volume is written at full speed"
    WRITER: ClassVar = "that writing, sequential 128 KiB, depth 16"
    figures: ClassVar = (
        Figure(READER, "us", less_is_better=True),
        Figure(FLOODED, "us", less_is_better=True),
        Figure(WRITER, "MB/s"),
    )

    def do(self, peer: Peer, effort: Effort, settle: Settle) -> tuple[float, ...]:
        size = 4 * effort.mapped
        read = fio.Job(peer.mapped(effort.mapped), "randread", 4 * KIB, 1, effort.mapped)
        settle()
        [alone] = effort.run(read)
        with peer.empty(size) as uri:
            settle(size)
            write = fio.Job(uri, "write", 128 * KIB, 16, size)
            flooded, writing = effort.run(read, write, longer=self.longer)
        return alone.p99_us, flooded.p99_us, writing.bytes_per_second / 1e6


@dataclass(frozen=True)
class FirstFlush:
    """Much is written to an empty volume and not flushed; then one flush. Then the same again, over
    what is mapped by now: qcow2 syncs its file now and then while it allocates, and only then."""

    size: int

    @property
    def figures(self) -> tuple[Figure, ...]:
        much = f"{self.size / GIB:g} GiB"
        return tuple(
            Figure(name, "s", less_is_better=True)
            for name in (
                f"writing {much} of first writes in sequence",
                f"{FLUSH} {much} of first writes",
                f"writing {much} over mapped blocks in sequence",
                f"{FLUSH} {much} over mapped blocks",
            )
        )

    def do(self, peer: Peer, effort: Effort, settle: Settle) -> tuple[float, ...]:
        with peer.empty(self.size) as uri:
            settle(self.size)
            first = nbd_client.write_then_flush(uri, self.size)
            settle()
            return *first, *nbd_client.write_then_flush(uri, self.size)


class Beside:
    """One kind of request to a volume, alone, and while four clients send each of `others` to
    another volume."""

    def __init__(self, kind: str, others: tuple[str, ...]) -> None:
        self.kind = kind
        self._others = others

    @property
    def figures(self) -> tuple[Figure, ...]:
        beside = (f"{self.kind} beside {NEIGHBOURS} clients' {other}" for other in self._others)
        return tuple(Figure(name, "a second") for name in (f"{self.kind} alone", *beside))

    def do(self, peer: Peer, effort: Effort, settle: Settle) -> tuple[float, ...]:
        fairness = peer.fairness()
        settle()
        pairs = [fairness.beside(self.kind, other, effort.seconds) for other in self._others]
        return fairness.alone(self.kind, effort.seconds), *(pair.own for pair in pairs)


FLUSH = "the first flush after"


__all__ = [
    "FLUSH",
    "GIB",
    "KIB",
    "MIB",
    "Beside",
    "Effort",
    "Figure",
    "FirstFlush",
    "Flood",
    "Load",
    "NotOfferedError",
    "Piece",
    "ReadLevels",
    "level_name",
]
