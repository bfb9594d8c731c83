"""The watchdog and a disk that is slow: fed while the I/O under way moves, not once it stands."""

import os
import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import PoolMaker
from tests.integration.systemd.daemons import Daemon, Manager, daemon
from tests.support.pools import PoolRig
from tests.support.tools import PATIENCE, program

SOURCE = Path(__file__).with_name("slow_sync.c")
ALIVE = {"WATCHDOG": "1"}
NEVER_ROUND = "the commit timer has not come round"


class SlowDisk:
    """Holds up the syncs of the daemons that are started with `environment`."""

    def __init__(self, directory: Path) -> None:
        self._library = directory / "slow_sync.so"
        flags = ["-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
        subprocess.run([program("cc"), *flags, "-o", self._library, SOURCE, "-ldl"], check=True)
        self._on = directory / "on"
        self._paths = directory / "begun", directory / "go"
        for path in self._paths:
            os.mkfifo(path)
        self._begun, self._go = (os.open(path, os.O_RDWR) for path in self._paths)

    @property
    def environment(self) -> dict[str, str]:
        begun, go = map(str, self._paths)
        return {
            "LD_PRELOAD": str(self._library),
            "SLOW_SYNC_ON": str(self._on),
            "SLOW_SYNC_BEGUN": begun,
            "SLOW_SYNC_GO": go,
        }

    @contextmanager
    def slow(self) -> Iterator[None]:
        """Syncs wait for `end_sync` in here."""
        self._on.touch()
        try:
            yield
        finally:
            self._on.unlink()
            os.write(self._go, b"g" * 100)

    def await_sync(self) -> None:
        """Waits until one has begun."""
        assert select.select([self._begun], [], [], PATIENCE)[0], "nothing is synced"
        assert len(os.read(self._begun, 1)) == 1

    def end_sync(self) -> None:
        """Lets one go on."""
        os.write(self._go, b"g")

    def close(self) -> None:
        os.close(self._begun)
        os.close(self._go)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SlowDisk]:
    disk = SlowDisk(tmp_path)
    yield disk
    disk.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    manager.socket.settimeout(60)
    yield manager
    manager.socket.close()


@contextmanager
def watched(rig: PoolRig, manager: Manager, disk: SlowDisk) -> Iterator[Daemon]:
    """A daemon with a watchdog of four seconds, on a disk that is slow at times."""
    rig.env = {**rig.env, **disk.environment}
    with daemon(rig, NOTIFY_SOCKET=str(manager.path), WATCHDOG_USEC="4000000") as running:
        manager.expect(**ALIVE)
        rig._note_sockets()
        yield running
        assert running.terminate() == 0
    rig._forget()


@pytest.fixture
def rig(new_pool: PoolMaker) -> PoolRig:
    rig = new_pool(start=False)
    rig.create("a", "1M")
    return rig


@pytest.mark.parametrize("flush", [False, True], ids=["the timer's commit", "a client's flush"])
def test_fed_between_two_syncs(rig: PoolRig, manager: Manager, disk: SlowDisk, flush: bool) -> None:
    """A commit has several, and the timer comes round after the last of them."""
    with watched(rig, manager, disk) as running, rig.connect("a") as client:
        with disk.slow():
            client.write(0, b"w" * 512)
            if flush:
                client.raw.aio_flush()
                client.raw.poll(0)
            disk.await_sync()
            # It takes longer than two looks: nothing moves.
            running.says(NEVER_ROUND)
            manager.waiting()
            running.says(NEVER_ROUND)
            assert not any(ALIVE.items() <= said.items() for said in manager.waiting())
            # It ends, and the next begins.
            disk.end_sync()
            manager.expect(**ALIVE)
            disk.await_sync()
        manager.expect(**ALIVE)
        manager.expect(**ALIVE)
