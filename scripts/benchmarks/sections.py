"""What is measured through NBD: which work, given to which servers."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .fairness import KINDS as KINDS_OF_REQUESTS
from .ours import FourThreads, OwnCache, PythonAlone, Thinpoold
from .peers import FileOneThread, FilePlugin, Peer, PythonNoop, QemuNbd
from .pieces import GIB, KIB, MIB, Beside, FirstFlush, Flood, Load, Piece, ReadLevels
from .qcow2 import InternalSnapshots, Overlays

Kind = Callable[[Path], Peer]

OURS, PYTHON = Thinpoold.name, PythonAlone.name
THREADS, BUFIO = FourThreads.name, OwnCache.name
FILE, FILE_ONE, NOOP = FilePlugin.name, FileOneThread.name, PythonNoop.name
QCOW2, INTERNAL, OVERLAY = QemuNbd.name, InternalSnapshots.name, Overlays.name

KINDS: dict[str, Kind] = {
    OURS: Thinpoold,
    PYTHON: PythonAlone,
    THREADS: FourThreads,
    BUFIO: OwnCache,
    FILE: FilePlugin,
    FILE_ONE: FileOneThread,
    NOOP: PythonNoop,
    QCOW2: QemuNbd,
    INTERNAL: InternalSnapshots,
    OVERLAY: Overlays,
}

MAPPED, THREADED, FIRST, SHARED = "mapped", "threads", "first-write", "after-snapshot"
FLUSHES, LEVELS, FLOOD, FIRST_FLUSH = "flush", "levels", "flood", "first-flush"
BESIDE = "beside"
KEYS = (MAPPED, THREADED, FIRST, SHARED, FLUSHES, LEVELS, FLOOD, FIRST_FLUSH, BESIDE)
LEVEL_COUNTS = (0, 1, 10, 100)


@dataclass(frozen=True)
class Section:
    """One table. `ratios` are pairs of `servers`, the first over the second of which is shown."""

    key: str
    title: str
    pieces: Sequence[Piece]
    servers: Sequence[str]
    ratios: Sequence[tuple[str, str]]
    most_rounds: int = 100


def table(*, quick: bool) -> list[Section]:
    """All sections, in the order in which they are measured."""
    kinds = tuple(KINDS_OF_REQUESTS)[:: 3 if quick else 1]
    absent = set() if filter_can_be_left_out() else {PYTHON}
    sections = [
        Section(
            MAPPED,
            "Mapped blocks",
            [
                Load(
                    f"{name}, depth {depth}{over(connections)}", pattern, block, depth, connections
                )
                for name, pattern, block in (
                    ("random read 4 KiB", "randread", 4 * KIB),
                    ("random write 4 KiB", "randwrite", 4 * KIB),
                    ("sequential read 128 KiB", "read", 128 * KIB),
                    ("sequential write 128 KiB", "write", 128 * KIB),
                )
                for depth, connections in (
                    ((1, 1), (16, 4)) if quick else ((1, 1), (4, 1), (16, 1), (4, 4), (16, 4))
                )
            ],
            (OURS, PYTHON, FILE, NOOP, QCOW2),
            # The last says what nbdkit has to give.
            ((OURS, FILE), (OURS, QCOW2), (FILE, QCOW2)),
        ),
        Section(
            THREADED,
            "As many threads as the file plugin, and the file plugin with as few",
            [
                Load("random read 4 KiB, depth 16", "randread", 4 * KIB, 16),
                Load("random write 4 KiB, depth 16", "randwrite", 4 * KIB, 16),
                Load("random read 4 KiB, depth 16 over 4 connections", "randread", 4 * KIB, 16, 4),
                Load("sequential read 128 KiB, depth 16", "read", 128 * KIB, 16),
            ][: 2 if quick else None],
            (THREADS, FILE, OURS, FILE_ONE),
            ((THREADS, FILE), (OURS, FILE_ONE)),
        ),
        Section(
            FIRST,
            "First writes, into an empty volume",
            [
                Load(
                    "first write, sequential 128 KiB, depth 4",
                    "write",
                    128 * KIB,
                    4,
                    on="empty",
                    spread=GIB // 4 if quick else 2 * GIB,
                    amount=GIB // 4 if quick else 2 * GIB,
                ),
                # Spread so thin that nearly every write is the first one to its 64 KiB block.
                Load(
                    "first write, random 4 KiB, depth 16",
                    "randwrite",
                    4 * KIB,
                    16,
                    on="empty",
                    spread=64 * GIB,
                    amount=8 * MIB if quick else 64 * MIB,
                ),
            ],
            (OURS, PYTHON, FILE, QCOW2),
            ((OURS, FILE), (OURS, QCOW2)),
        ),
        Section(
            SHARED,
            "First writes after a snapshot",
            [
                Load(
                    "random 4 KiB, depth 16 (64 KiB copied for each)",
                    "randwrite",
                    4 * KIB,
                    16,
                    on="shared",
                    amount=2 * MIB if quick else 16 * MIB,
                ),
            ],
            (OURS, PYTHON, INTERNAL, OVERLAY),
            ((OURS, INTERNAL), (OURS, OVERLAY)),
        ),
        Section(
            FLUSHES,
            "A flush after each write",
            [
                Load("random 4 KiB, depth 1", "randwrite", 4 * KIB, 1, flush=True),
                Load(
                    "random 4 KiB, depth 16 over 4 connections",
                    "randwrite",
                    4 * KIB,
                    16,
                    4,
                    flush=True,
                ),
                Load(
                    "first write, random 4 KiB, depth 1",
                    "randwrite",
                    4 * KIB,
                    1,
                    on="empty",
                    spread=64 * GIB,
                    # Not by the clock alone: fio's ramp would count blocks as mapped already.
                    amount=GIB,
                    flush=True,
                ),
            ],
            (OURS, PYTHON, FILE, QCOW2),
            ((OURS, FILE), (OURS, QCOW2)),
        ),
        Section(
            LEVELS,
            "Reads through snapshots",
            [ReadLevels(levels) for levels in ((0, 10) if quick else LEVEL_COUNTS)],
            (OURS, INTERNAL, OVERLAY),
            ((OURS, INTERNAL), (OURS, OVERLAY)),
        ),
        Section(
            FLOOD,
            "One volume while another is flooded",
            [Flood()],
            (OURS, PYTHON, BUFIO, FILE, QCOW2),
            ((OURS, FILE), (OURS, QCOW2)),
        ),
        Section(
            FIRST_FLUSH,
            "The first flush after much",
            [FirstFlush(GIB // 2 if quick else 8 * GIB)],
            (OURS, BUFIO, FILE, QCOW2),
            ((OURS, FILE), (OURS, QCOW2)),
            most_rounds=1,
        ),
        Section(
            BESIDE,
            "One volume beside four busy clients of another, each kind of request beside each",
            [Beside(kind, kinds) for kind in kinds],
            (OURS,),
            (),
        ),
    ]
    return [without(section, absent) for section in sections]


def over(connections: int) -> str:
    return f" over {connections} connections" if connections > 1 else ""


def without(section: Section, absent: set[str]) -> Section:
    servers = [name for name in section.servers if name not in absent]
    return Section(
        section.key, section.title, section.pieces, servers, section.ratios, section.most_rounds
    )


def filter_can_be_left_out() -> bool:
    """Whether this thinpoold has a filter at all; without one, all of it is Python alone."""
    shown = subprocess.run(["thinpool", "start", "--help"], check=True, capture_output=True)
    return b"--fastpath" in shown.stdout
