"""The data path, side by side: every server does each piece of work in turn, round after round.

Interleaved because the machine's speed drifts by more than what is to be seen; the order within a
round rotates, because the one that comes first finds the disk idle. Before each piece what the one
before it left unwritten is written out, outside the time that counts.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .servers import FilePlugin, Peer, QemuNbd, Thinpoold
from .workloads import Workload, fill, run_fio

OURS, CEILING, RIVAL = Thinpoold.name, FilePlugin.name, QemuNbd.name
PEERS: tuple[Callable[[Path], Peer], ...] = (Thinpoold, FilePlugin, QemuNbd)


@dataclass(frozen=True)
class Row:
    """One workload's rates, a value a round, by the server's name."""

    workload: Workload
    rates: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class DataPath:
    """All that was measured through NBD. `memory` is in bytes, at the end, by the server's name."""

    rows: list[Row]
    memory: dict[str, int]
    fastpath: bool
    mapped_size: int


def measure(
    directory: Path, workloads: Sequence[Workload], *, size: int, rounds: int, seconds: float
) -> DataPath:
    """Runs every workload on every server `rounds` times, for at most `seconds` each."""
    rows = [Row(workload) for workload in workloads]
    with contextlib.ExitStack() as stack:
        peers: list[Peer] = []
        for index, make in enumerate(PEERS):
            peer = make(directory / str(index))
            stack.callback(peer.close)
            peers.append(peer)
        mapped = {}
        for peer in peers:
            say(f"filling a volume of {peer.name}")
            mapped[peer.name] = peer.mapped(size)
            fill(mapped[peer.name], size, directory)
        for number in range(rounds):
            for row in rows:
                first = number % len(peers)
                for peer in peers[first:] + peers[:first]:
                    write_out(directory)
                    with contextlib.ExitStack() as use:
                        workload = row.workload
                        uri = mapped[peer.name]
                        if workload.fresh:
                            uri = use.enter_context(peer.empty(workload.spread))
                        rate = run_fio(
                            workload, uri, seconds=seconds, seed=number + 1, scratch=directory
                        )
                    row.rates.setdefault(peer.name, []).append(rate)
                    say(f"{number + 1}/{rounds} {workload.name}: {peer.name} {rate:.1f}")
        memory = {peer.name: peer.memory() for peer in peers}
        [ours] = [peer for peer in peers if isinstance(peer, Thinpoold)]
        fastpath = bool(ours.status().get("fastpath"))
    return DataPath(rows, memory, fastpath, size)


def write_out(directory: Path) -> None:
    """Writes the unwritten pages of the file system under `directory` to its disk."""
    libc = ctypes.CDLL(None, use_errno=True)
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if libc.syncfs(folder):
            raise OSError(ctypes.get_errno(), "syncfs", str(directory))
    finally:
        os.close(folder)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
