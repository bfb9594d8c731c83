"""Pools in this process: metadata in memory, data in a temporary file, doubles that fail on demand.

Nothing is timed: threads meet at events, and whoever waits in vain fails the test.

Thread-safety: a rig belongs to the test; its pool is the product's.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from thinmeta.check import check
from thinmeta.errors import StoreError
from thinmeta.store.memory import MemoryStore
from thinmeta.thin import ThinMetadata
from thinpoold import admin, boot, discard, pool_record
from thinpoold.device import Buffer, DataDevice
from thinpoold.direct import DirectDevice
from thinpoold.errors import DeviceError
from thinpoold.ledger import Ledger
from thinpoold.losses import Losses
from thinpoold.paths import pool_paths
from thinpoold.pool import Pool
from thinpoold.pool_record import PoolRecord
from thinpoold.recent import RecentChanges
from thinpoold.recovery import recover
from thinpoold.settings import MIN_DATA_CACHE, Settings
from thinpoold.volume import Volume

BLOCK = 64 << 10
PATIENCE = 60.0


class FaultyDevice(DataDevice):
    """A data device whose `fail_at`-th call, and all after it if `stays`, raises `number`.

    `gates` holds calls up: a test sets one for a method's name, to have it wait there.
    """

    def __init__(self, path: Path, fd: int, **more: Any) -> None:
        super().__init__(path, fd, **more)
        self.calls: list[str] = []
        self.fail_at: int | None = None
        self.fail_only: frozenset[str] = frozenset()
        self.stays = False
        self.number = 5
        self.gates: dict[str, tuple[threading.Event, threading.Event]] = {}
        self.log = False

    def _call(self, name: str) -> None:
        if name in self.gates:
            reached, go = self.gates[name]
            reached.set()
            assert go.wait(PATIENCE)
        if not self.log or (self.fail_only and name not in self.fail_only):
            return
        self.calls.append(name)
        if self.fail_at is not None:
            number = len(self.calls) - 1
            if number == self.fail_at or (self.stays and number > self.fail_at):
                raise DeviceError(f"{name}: told to fail", self.number)

    def hold(self, name: str) -> tuple[threading.Event, threading.Event]:
        """Hold up calls of `name`: (set when one has come, to be set to let them go)."""
        self.gates[name] = (threading.Event(), threading.Event())
        return self.gates[name]

    def read(self, into: bytearray | memoryview, offset: int) -> None:
        self._call("read")
        super().read(into, offset)

    def write(self, data: Buffer, offset: int) -> None:
        self._call("write")
        super().write(data, offset)

    def write_all(self, parts: list[Buffer], offset: int) -> None:
        self._call("write_all")
        super().write_all(parts, offset)

    def copy(self, source: int, target: int, count: int) -> None:
        self._call("copy")
        super().copy(source, target, count)

    def flush(self) -> None:
        self._call("flush")
        super().flush()

    def zero(self, offset: int, count: int) -> None:
        self._call("zero")
        super().zero(offset, count)

    def punch(self, offset: int, count: int) -> bool:
        self._call("punch")
        return super().punch(offset, count)

    def is_zero(self, offset: int, count: int) -> bool:
        self._call("is_zero")
        return super().is_zero(offset, count)


class FaultyDirectDevice(FaultyDevice, DirectDevice):
    """The same, past the page cache."""


class FaultyStore(MemoryStore):
    """A store that can hold up a commit, and fail at its `fail_at`-th read."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.at_commit: Callable[[], None] = lambda: None
        self.reads = 0
        self.fail_at: int | None = None

    def read(self, block: int) -> bytearray:
        number, self.reads = self.reads, self.reads + 1
        if number == self.fail_at:
            raise StoreError(5)
        return super().read(block)

    def commit(
        self,
        blocks: Mapping[int, bytes | bytearray],
        erased: Collection[int],
        records: Mapping[tuple[str, bytes], bytes | None],
    ) -> None:
        self.at_commit()
        super().commit(blocks, erased, records)


class Rig:
    """A pool over a store in memory and a file."""

    def __init__(
        self,
        directory: Path,
        *,
        blocks: int = 64,
        block_size: int = BLOCK,
        settings: Settings | None = None,
        notes: bool = False,
    ) -> None:
        """`notes`: with a ledger and notes of recent changes, in `directory`, as a served pool."""
        self.store = FaultyStore()
        self.path = directory / "data"
        self._paths = pool_paths(directory) if notes else None
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(fd, blocks * block_size)
        os.close(fd)
        metadata = ThinMetadata.create(
            self.store, data_block_sectors=block_size // 512, data_blocks=blocks
        )
        record = PoolRecord("rig", uuid.uuid4().bytes, "data", block_size, settings or Settings())
        pool_record.store(metadata, record)
        metadata.commit()
        metadata.close()
        self.pool = self._open()

    def _open(self) -> Pool:
        metadata = ThinMetadata.open(self.store)
        record = pool_record.load(metadata)
        self.device: FaultyDevice
        if record.settings.cache == "bufio":
            self.device = FaultyDirectDevice.open_direct(self.path, MIN_DATA_CACHE)
        else:
            self.device = FaultyDevice.open(self.path)
        if self._paths is None:
            return Pool(self.store, metadata, self.device, record)
        ledger, losses = Ledger(self._paths.ledger, record.uuid), Losses(self._paths.losses)
        recent = RecentChanges(self._paths.recent, record.uuid)
        ledger.open()
        self.device.ledger = ledger
        metadata.on_durable = ledger.committed
        freed = recover(metadata, self.device, recent, ledger, losses, record.block_size)
        ledger.begin(boot.current(), metadata.generation)
        recent.begin(metadata.generation)
        pool = Pool(
            self.store, metadata, self.device, record, recent=recent, ledger=ledger, losses=losses
        )
        pool.core.reclaimer.add(freed)
        return pool

    def crash(self) -> None:
        """Open the pool as after a killed daemon: data stays as it is in the file.

        Without notes that goes back to the last commit.
        """
        self.pool.core.stop()
        self.pool.core.recent.close()
        self.pool.core.ledger.end(clean=False)
        self.pool.device.close()
        self.pool.metadata.close()
        self.pool = self._open()

    def create(self, name: str = "v", size: int = 16 * BLOCK, **more: Any) -> Volume:
        admin.create(self.pool, name, size, **more)
        return self.pool.open_volume(name)

    def close(self) -> None:
        """Let go of the pool, and see that the last commit is sound."""
        self.device.log = False
        self.device.gates.clear()
        try:
            if not self.pool.core.modes.lost_data:
                self.pool.commit()
        finally:
            self.pool.core.stop()
            self.pool.core.recent.close()
            self.pool.core.ledger.end(clean=False)
            self.pool.device.close()
        result = check(self.store)
        assert result.ok, [str(problem) for problem in result.errors]


def read(volume: Volume, offset: int = 0, count: int | None = None) -> bytes:
    """`count` bytes of a volume, or all from `offset` on."""
    buffer = bytearray(volume.size - offset if count is None else count)
    volume.pread(buffer, offset)
    return bytes(buffer)


@contextmanager
def let_go(event: threading.Event) -> Iterator[None]:
    """Set the event at the end, so that a failure does not end in waiting."""
    try:
        yield
    finally:
        event.set()


def sweep(volume: Volume, *, may_trim: bool) -> None:
    """Zero all of a volume but its edges, write it and read it, each in one request."""
    discard.zero(volume, 100, volume.size - 200, may_trim=may_trim, fast=False)
    volume.pwrite(bytes(volume.size), 0)
    volume.pread(bytearray(volume.size), 0)


@contextmanager
def threads(count: int = 8) -> Iterator[ThreadPoolExecutor]:
    """Threads for a test; what one of them raises comes out of `finish`."""
    with ThreadPoolExecutor(count) as pool:
        yield pool


def finish(*futures: Future[Any]) -> list[Any]:
    """The futures' results; fails when one takes too long."""
    return [future.result(PATIENCE) for future in futures]


def spin(true: Callable[[], bool]) -> None:
    """Wait for what nobody announces: that another thread has come to wait."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        os.sched_yield()
