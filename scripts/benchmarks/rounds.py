"""Every server does each piece of work in turn, round after round.

Interleaved because the machine's speed drifts by more than what is to be seen; the order within a
round rotates, because the one that comes first finds the disk idle. Before each piece what the one
before it left unwritten is written out, outside the time that counts.

A server that fails at a piece is ended, and started anew for its next piece; one that cannot be
started is left out from then on. Failures are kept.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .peers import NotOfferedError, Peer
from .pieces import Effort, Figure, Piece
from .sections import KINDS, Kind, Section

BEGAN = time.monotonic()

_WARMING = 128 << 10

Values = list[float | None]  # one a round; None: failed, or not had


@dataclass(frozen=True)
class Row:
    """One figure's values, by the server's name."""

    figure: Figure
    values: dict[str, Values] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """One section's rows. `memory` is of each server afterwards, in bytes, by the server's name."""

    key: str
    title: str
    servers: Sequence[str]
    ratios: Sequence[tuple[str, str]]
    rounds: int
    rows: list[Row]
    memory: dict[str, int]

    @property
    def work(self) -> list[Row]:
        return [row for row in self.rows if not row.figure.processor]

    @property
    def processor(self) -> list[Row]:
        return [row for row in self.rows if row.figure.processor]


class Peers:
    """The servers by name: started when first needed, all ended when the context ends."""

    def __init__(self, directory: Path, kinds: Mapping[str, Kind] = KINDS) -> None:
        self._directory = directory
        self._kinds = kinds
        self._running: dict[str, Peer] = {}
        self._unstartable: set[str] = set()
        self._started = 0

    def __enter__(self) -> Peers:
        return self

    def __exit__(self, *exception: object) -> None:
        for name in list(self._running):
            self.end(name)

    def get(self, name: str) -> Peer:
        """The running server. Raises NotOfferedError if it could not be started before."""
        if name in self._unstartable:
            raise NotOfferedError
        if name not in self._running:
            self._started += 1
            try:
                self._running[name] = self._kinds[name](self._directory / f"peer{self._started}")
            except BaseException:
                self._unstartable.add(name)
                raise
        return self._running[name]

    def end(self, name: str) -> None:
        peer = self._running.pop(name, None)
        if peer is not None:
            try:
                peer.close()
            except (OSError, subprocess.SubprocessError) as error:
                say(f"{name} did not end in order: {told(error)}")

    def memory(self, names: Sequence[str]) -> dict[str, int]:
        found = {}
        for name in names:
            if name in self._running:
                with contextlib.suppress(NotOfferedError, OSError):
                    found[name] = self._running[name].memory()
        return found


class Runner:
    """Measures sections. `failures` says in plain words what was left out, and why."""

    def __init__(self, peers: Peers, scratch: Path, *, seconds: float, mapped: int) -> None:
        self._peers = peers
        self._scratch = scratch
        self._seconds = seconds
        self._mapped = mapped
        self.failures: list[str] = []

    def measure(self, section: Section, rounds: int) -> Measured:
        rounds = min(rounds, section.most_rounds)
        rows = {figure: Row(figure) for piece in section.pieces for figure in piece.figures}
        for number in range(rounds):
            first = number % len(section.servers)
            turn = [*section.servers[first:], *section.servers[:first]]
            for piece in section.pieces:
                for name in turn:
                    effort = Effort(self._seconds, self._mapped, number + 1, self._scratch)
                    values = self._do(section, piece, name, effort)
                    shown = ", ".join("-" if value is None else f"{value:.1f}" for value in values)
                    what = piece.figures[0].name
                    say(f"{section.key} {number + 1}/{rounds} {what}: {name}: {shown}")
                    for figure, value in zip(piece.figures, values, strict=True):
                        rows[figure].values.setdefault(name, []).append(value)
        return Measured(
            section.key,
            section.title,
            section.servers,
            section.ratios,
            rounds,
            list(rows.values()),
            self._peers.memory(section.servers),
        )

    def _do(
        self, section: Section, piece: Piece, name: str, effort: Effort
    ) -> Sequence[float | None]:
        try:
            return piece.do(self._peers.get(name), effort, self._settle)
        except NotOfferedError:
            pass
        except Exception as error:  # whatever it is: the others are still worth measuring
            self.failures.append(f"{section.key}, {piece.figures[0].name}: {name}: {told(error)}")
            say(f"FAILED: {self.failures[-1]}")
            self._peers.end(name)
        return [None] * len(piece.figures)

    def _settle(self, new: int = 0) -> None:
        write_out(self._scratch)
        warm_page_cache(self._scratch, new)


def told(error: Exception) -> str:
    """One line about an error, with the last words of a program that failed."""
    words = getattr(error, "stderr", None)
    last = words.decode("utf-8", "replace").strip().splitlines()[-1:] if words else []
    return " ".join([f"{type(error).__name__}: {error}", *last])


def write_out(directory: Path) -> None:
    """Writes the unwritten pages of the file system under `directory` to its disk."""
    libc = ctypes.CDLL(None, use_errno=True)
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if libc.syncfs(folder):
            raise OSError(ctypes.get_errno(), "syncfs", str(directory))
    finally:
        os.close(folder)


def warm_page_cache(directory: Path, size: int) -> None:
    """Writes a file of `size` bytes under `directory` and deletes it, so that the page cache finds
    memory next that was in use a moment ago.

    A virtual machine's host may have taken free memory back, and then each write to a page that is
    new waits for the host. Other memory of the same size does not do: the page cache would be given
    other pages.
    """
    piece = bytes(_WARMING)
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        for _ in range(size // _WARMING):
            file.write(piece)


def say(text: str) -> None:
    """Tells whoever waits, with the seconds since the run began."""
    print(f"{time.monotonic() - BEGAN:6.1f} {text}", file=sys.stderr, flush=True)
