"""What clients of one volume leave to the client of another, for every kind of request.

Four clients send requests of one kind to a volume, each one after the other; beside them one client
sends requests of the same or another kind to another volume. Mapped reads run no Python: what these
leave is what any four clients leave on this machine.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from . import nbd_client
from .requester import BLOCK, KINDS

NEIGHBOURS = 4
# Runs no Python where there is a filter.
QUIET = "mapped reads"
# These look at what is there: a volume every second block of which is mapped, in no order.
_LOOKING = ("mapped reads", "unmapped reads", "block status", "prefetch")
FRAGMENTED_BYTES = 1 << 30
_EMPTY_BYTES = 64 << 30
_ROOT = Path(__file__).resolve().parents[2]


class Pool(Protocol):
    """Where volumes are made."""

    def create(self, size: int) -> str: ...
    def delete(self, name: str) -> None: ...
    def uri(self, name: str) -> str: ...


@dataclass(frozen=True)
class Pair:
    """The rates of one kind, beside four of another: requests a second, theirs all together."""

    own: float
    others: float


class Fairness:
    """Measures in one pool. Two volumes that are looked at are made once, and kept."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._fragmented = [self._make_fragmented() for _ in range(2)]

    def alone(self, kind: str, seconds: float) -> float:
        with self._volume(kind, 0) as uri, _clients([(uri, kind, seconds)]) as clients:
            return next(_rates(clients))

    def beside(self, kind: str, other: str, seconds: float) -> Pair:
        with self._volume(kind, 0) as own, self._volume(other, 1) as theirs:
            # These go on until the other has ended.
            others = NEIGHBOURS * [(theirs, other, seconds + 0.2)]
            with _clients([(own, kind, seconds), *others]) as clients:
                first, *rest = _rates(clients)
        return Pair(first, sum(rest))

    @contextmanager
    def _volume(self, kind: str, which: int) -> Iterator[str]:
        if kind in _LOOKING:
            yield self._pool.uri(self._fragmented[which])
            return
        name = self._pool.create(_EMPTY_BYTES)
        try:
            yield self._pool.uri(name)
        finally:
            self._pool.delete(name)

    def _make_fragmented(self) -> str:
        name = self._pool.create(FRAGMENTED_BYTES)
        nbd_client.fragment(self._pool.uri(name), FRAGMENTED_BYTES, BLOCK)
        return name


Client = subprocess.Popen[str]


@contextmanager
def _clients(jobs: Iterable[tuple[str, str, float]]) -> Iterator[list[Client]]:
    """Clients that are connected, and have not begun."""
    with ExitStack() as stack:
        started = []
        for uri, kind, seconds in jobs:
            client = subprocess.Popen(
                [sys.executable, "-m", "scripts.benchmarks.requester", uri, kind, str(seconds)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=_ROOT,
            )
            stack.enter_context(client)
            stack.callback(client.kill)
            started.append(client)
        for client in started:
            assert client.stdout is not None
            if client.stdout.readline() != "connected\n":
                raise OSError("a client did not connect")
        yield started


def _rates(clients: list[Client]) -> Iterator[float]:
    """Have all begin, and wait for what each says at its end."""
    for client in clients:
        assert client.stdin is not None
        client.stdin.write("begin\n")
        client.stdin.flush()
    for client in clients:
        assert client.stdout is not None
        said = client.stdout.readline()
        if not said:
            raise OSError(f"a client ended with status {client.wait()}")
        yield float(said)


__all__ = ["KINDS", "NEIGHBOURS", "QUIET", "Fairness", "Pair", "Pool"]
