"""thinpoold as a peer: one pool, with the default 64 KiB blocks, a volume for each thing asked."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import fio, nbd_client
from .fairness import Fairness
from .peers import LEVEL_WRITES, Peer
from .process import private_memory


class Thinpoold(Peer):
    """With all that its defaults give: the filter, where there is one."""

    name = "thinpoold"
    options: tuple[str, ...] = ()  # of `thinpool start`
    settings: tuple[str, ...] = ()  # words of `thinpool set`
    pool_size = "1T"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.pool = directory / "pool"
        self._mapped: str | None = None
        self._base: str | None = None
        self._plain: str | None = None
        self._chain: list[str] = []
        self._fairness: Fairness | None = None
        self.thinpool("init", str(self.pool), "--size", self.pool_size)
        if self.settings:
            self.thinpool("set", *self.settings)
        self.start()

    def start(self) -> None:
        self.thinpool("start", str(self.pool), *self.options)
        self.pid = int(self.status()["pid"])

    def thinpool(self, *words: str) -> str:
        done = subprocess.run(
            ["thinpool", *words],
            env=os.environ | {"THINPOOL_POOL": str(self.pool)},
            check=True,
            capture_output=True,
        )
        return done.stdout.decode()

    def status(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(self.thinpool("status", "--json"))
        return facts

    def uri(self, name: str) -> str:
        return self.thinpool("uri", name).strip()

    def create(self, size: int) -> str:
        """A new volume's name."""
        name = f"volume{next(self._numbers)}"
        self.thinpool("create", name, str(size))
        return name

    def filled(self, size: int) -> str:
        """The name of a new volume, every byte of it written."""
        name = self.create(size)
        fio.fill(self.uri(name), size, self.directory)
        return name

    def snapshot(self, origin: str) -> str:
        """A new snapshot's name."""
        name = f"snapshot{next(self._numbers)}"
        self.thinpool("snapshot", origin, name)
        return name

    def delete(self, name: str) -> None:
        """Deletes a volume, and waits until the space it took is given back."""
        self.thinpool("delete", name)
        while self.status().get("deleting"):
            time.sleep(0.05)

    def mapped(self, size: int) -> str:
        if self._mapped is None:
            self._mapped = self.filled(size)
        return self.uri(self._mapped)

    @contextlib.contextmanager
    def empty(self, size: int) -> Iterator[str]:
        name = self.create(size)
        try:
            yield self.uri(name)
        finally:
            self.delete(name)

    @contextlib.contextmanager
    def shared(self, size: int) -> Iterator[str]:
        if self._base is None:
            self._base = self.filled(size)
        snapshot = self.snapshot(self._base)
        try:
            yield self.uri(self._base)
        finally:
            self.delete(snapshot)

    @contextlib.contextmanager
    def levels(self, size: int, levels: int) -> Iterator[str]:
        if not levels:
            self._plain = self._plain or self.filled(size)
            yield self.uri(self._plain)
            return
        if not self._chain:
            self._chain = [self.filled(size)]
        while len(self._chain) <= levels:
            name = self.snapshot(self._chain[-1])
            nbd_client.scatter(self.uri(name), size, LEVEL_WRITES, len(self._chain))
            self._chain.append(name)
        yield self.uri(self._chain[levels])

    def fairness(self) -> Fairness:
        self._fairness = self._fairness or Fairness(self)
        return self._fairness

    def processes(self) -> list[int]:
        return [self.pid]

    def memory(self) -> int:
        return private_memory(self.pid)

    def close(self) -> None:
        try:
            self.thinpool("stop")
        except subprocess.CalledProcessError:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


class PythonAlone(Thinpoold):
    """Without the filter."""

    name = "thinpoold, Python alone"
    options = ("--fastpath", "off")


class FourThreads(Thinpoold):
    """Four threads a connection, as with an nbdkit that is safe with them."""

    name = "thinpoold, 4 threads"
    options = ("--threads", "4")


class OwnCache(Thinpoold):
    """With O_DIRECT and a bounded cache of its own, in place of the kernel's page cache."""

    name = "thinpoold, cache=bufio"
    settings = ("cache=bufio",)
