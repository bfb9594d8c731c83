"""Random clients, administrators, deaths and failures, against a model of what must be there.

    a death of the process     all that was answered
    another boot, a failure    what was flushed, and of the rest each block old or new

Data that was not flushed stays in the page cache here, whatever happens: losing it is the matter of
tests/powerloss.
"""

import errno
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.unit.data.test_recent import BLOCK, blocks, die
from thinmeta.check import check
from thinmeta.errors import NoMetadataSpace, StoreError
from thinmeta.store.lmdb import LmdbStore
from thinpoold import admin, boot, discard
from thinpoold.device import DataDevice
from thinpoold.errors import DeviceError, NotRecovered
from thinpoold.modes import Mode
from thinpoold.pool import Pool, create_pool
from thinpoold.volume import Volume

SIZE = 12
MOST_VOLUMES = 4
STEPS = 1200


class Model:
    """A pool, and what its volumes hold: by name, a number for each block."""

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now: dict[str, list[int]] = {}
        # What else a block may hold after a power cut.
        self.maybe: dict[tuple[str, int], set[int]] = {}
        self._directory, self._patch = directory / "pool", patch
        self._boot, self._boots = directory / "boot_id", 0
        self._volumes: dict[str, Volume] = {}
        self._made = self._written = 0
        patch.setattr(boot, "BOOT_ID", self._boot)
        self._reboot()
        # So large that it is never full: for that a flush within a flush would have to wait.
        create_pool(self._directory, size=1 << 30)
        self.pool = Pool.open(self._directory)
        admin.create(self.pool, self._fresh(), SIZE * BLOCK)
        self.now["v1"] = [0] * SIZE

    # Clients

    def write(self) -> None:
        name, first, count = self._place()
        self._written = self._written % 250 + 1
        self._volume(name).pwrite(bytes([self._written]) * count * BLOCK, first * BLOCK)
        self._put(name, first, count, self._written)

    def trim(self) -> None:
        name, first, count = self._place()
        discard.trim(self._volume(name), first * BLOCK, count * BLOCK)
        self._put(name, first, count, 0)

    def flush(self) -> None:
        self._beside_others(self.pool.core.sync)

    def commit(self) -> None:
        self._beside_others(self.pool.commit)

    def _beside_others(self, flush: Callable[[], None]) -> None:
        """While the data device is flushed, others go on; what they do need not be durable."""
        real = DataDevice.flush

        def busy(device: DataDevice) -> None:
            real(device)
            for _ in range(self.rng.randrange(3)):
                self.rng.choice([self.write, self.trim])()

        self.maybe.clear()
        with self._patch.context() as patch:
            patch.setattr(DataDevice, "flush", busy)
            flush()

    # Administrators

    def snapshot(self) -> None:
        if len(self.now) < MOST_VOLUMES:
            origin, name = self._any(), self._fresh()
            admin.snapshot(self.pool, [(origin, name)])
            self.now[name] = list(self.now[origin])
            self.maybe.clear()

    def delete(self) -> None:
        if len(self.now) > 1:
            self._disconnect()
            name = self._any()
            admin.delete(self.pool, [name])
            del self.now[name]
            self.maybe.clear()

    def rollback(self) -> None:
        if len(self.now) > 1:
            self._disconnect()
            name, other = self.rng.sample(sorted(self.now), 2)
            admin.rollback(self.pool, name, other, discard_current=True)
            self.now[name] = list(self.now[other])
            self.maybe.clear()

    # Deaths and failures

    def kill(self) -> None:
        die(self.pool)
        self._open_again(strict=not self._fail_to_open())

    def cut_power(self) -> None:
        die(self.pool)
        self._reboot()
        self._fail_to_open()
        self._open_again(strict=False)

    def restart(self) -> None:
        self.pool.close()
        self._open_again(strict=True)

    def fail_a_commit(self) -> None:
        error = self.rng.choice([NoMetadataSpace("full"), StoreError(errno.EIO)])
        with self._failing(LmdbStore, "commit", error):
            self._try(self.pool.commit)
            # What clients did is durable all the same, as notes.
            self.pool.core.sync()
            self._verify(strict=True)
        if isinstance(error, NoMetadataSpace) and self.rng.random() < 0.5:
            self._go_on_as_it_is()
        else:
            self._go_on(strict=True)

    def _go_on_as_it_is(self) -> None:
        """There is room again: the pool finds that out by itself."""
        while self.pool.core.modes.mode is not Mode.WRITE:
            self.pool.core._tick()
        self._verify(strict=True)
        self.maybe.clear()

    def fail_the_data(self) -> None:
        with self._failing(DataDevice, "flush", DeviceError("no", errno.EIO)):
            self._try(self.rng.choice([self.pool.core.sync, self.pool.core.flush]))
        for name in {name for name, _ in self.maybe}:
            assert self.pool.core.ledger.lost(self.pool.registry.get(name).uuid)
        self._go_on(strict=False)

    def _go_on(self, *, strict: bool) -> None:
        """The pool has gone back; what it shows now it has after the next start, too."""
        self._verify(strict=strict)
        self._volumes.clear()
        die(self.pool) if self.rng.random() < 0.5 else self.pool.close()
        if self.rng.random() < 0.5:
            self._reboot()
        self._open_again(strict=True)

    def _fail_to_open(self) -> bool:
        """At times let an opening fail first; whether what was not flushed may be gone."""
        case = self.rng.randrange(6)
        if case == 0:
            with self._failing(LmdbStore, "commit", NoMetadataSpace("full")):
                self._try(self._open_and_die)
        elif case == 1:
            with self._failing(DataDevice, "flush", DeviceError("no", errno.EIO)):
                self._try(self._open_and_die)
        return case == 1

    def _open_and_die(self) -> None:
        die(Pool.open(self._directory))

    # Within

    def _open_again(self, *, strict: bool) -> None:
        self._volumes.clear()
        self.pool = Pool.open(self._directory)
        self._verify(strict=strict)
        # It is committed.
        self.maybe.clear()
        result = check(self.pool.store)
        assert result.ok, [str(problem) for problem in result.errors]
        assert not result.leaked_blocks

    def _verify(self, *, strict: bool) -> None:
        assert {record.name for record in self.pool.registry} == set(self.now)
        for name, expected in self.now.items():
            volume = self.pool.open_volume(name)
            for number, found in enumerate(blocks(volume)):
                others = set() if strict else self.maybe.get((name, number), set())
                assert found in {expected[number], *others}, (name, number)
                expected[number] = found
            self.pool.close_volume(volume)

    def _put(self, name: str, first: int, count: int, number: int) -> None:
        for block in range(first, first + count):
            self.maybe.setdefault((name, block), set()).add(self.now[name][block])
            self.now[name][block] = number

    def _place(self) -> tuple[str, int, int]:
        first = self.rng.randrange(SIZE)
        return self._any(), first, self.rng.randint(1, min(4, SIZE - first))

    def _any(self) -> str:
        return self.rng.choice(sorted(self.now))

    def _fresh(self) -> str:
        self._made += 1
        return f"v{self._made}"

    def _volume(self, name: str) -> Volume:
        if name not in self._volumes:
            self._volumes[name] = self.pool.open_volume(name)
        return self._volumes[name]

    def _disconnect(self) -> None:
        while self._volumes:
            self.pool.close_volume(self._volumes.popitem()[1])

    def _reboot(self) -> None:
        self._boots += 1
        self._boot.write_text(f"{self._boots:032x}\n")

    @contextmanager
    def _failing(self, kind: type, name: str, error: Exception) -> Iterator[None]:
        def fail(*arguments: Any) -> None:
            raise error

        with self._patch.context() as patch:
            patch.setattr(kind, name, fail)
            yield

    @staticmethod
    def _try(function: Callable[[], None]) -> None:
        try:
            function()
        except (NoMetadataSpace, StoreError, DeviceError, NotRecovered):
            pass


WEIGHTS = {
    Model.write: 40,
    Model.trim: 12,
    Model.flush: 16,
    Model.commit: 4,
    Model.snapshot: 4,
    Model.delete: 3,
    Model.rollback: 2,
    Model.kill: 4,
    Model.cut_power: 4,
    Model.restart: 1,
    Model.fail_a_commit: 2,
    Model.fail_the_data: 2,
}


def test_whatever_happens_to_a_pool_what_it_promised_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    model = Model(tmp_path, monkeypatch, seed)
    for step in model.rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=STEPS):
        step(model)
    model.pool.close()
