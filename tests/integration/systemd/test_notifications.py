"""What the daemon tells a service manager, and when it no longer does."""

import signal
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from tests.conftest import PoolMaker
from tests.integration.systemd.daemons import Manager, daemon
from tests.support.client import NbdClient
from tests.support.pools import PoolRig
from tests.support.tools import PATIENCE

ALIVE = {"WATCHDOG": "1"}


@pytest.fixture
def rig(new_pool: PoolMaker) -> PoolRig:
    rig = new_pool(start=False)
    rig.create("a", "1M")
    return rig


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    yield manager
    manager.socket.close()


def test_ready_when_it_serves_and_stopping_when_it_ends(rig: PoolRig, manager: Manager) -> None:
    with daemon(rig, NOTIFY_SOCKET=str(manager.path)) as running:
        ready = manager.receive()
        assert ready == {"READY": "1", "STATUS": "write: 0 of 256M used, 1 volumes, 0 clients"}
        rig._note_sockets()
        # Ready is ready: both sockets answer at once.
        assert rig.status()["pid"] == running.pid
        with rig.connect("a") as client:
            client.write(0, b"z" * 512)
            running.process.terminate()
            assert "stopping" in manager.expect(STOPPING="1")["STATUS"]
            assert running.process.wait(PATIENCE) == 0
    rig._forget()
    assert manager.waiting() == []


def test_without_a_watchdog_there_are_no_pings(rig: PoolRig, manager: Manager) -> None:
    with daemon(rig, NOTIFY_SOCKET=str(manager.path)) as running:
        manager.expect(READY="1")
        running.terminate()
    assert not any("WATCHDOG" in message for message in manager.waiting())


def test_pings_while_it_lives(rig: PoolRig, manager: Manager) -> None:
    with daemon(rig, NOTIFY_SOCKET=str(manager.path), WATCHDOG_USEC="4000000") as running:
        manager.expect(READY="1")
        for _ in range(3):
            manager.expect(**ALIVE)
        rig._note_sockets()
        with rig.connect("a"):
            status = ""
            while "1 clients" not in status:
                status = manager.receive().get("STATUS", status)
        running.terminate()
    rig._forget()


def test_no_pings_while_commits_hang(rig: PoolRig, manager: Manager) -> None:
    with daemon(rig, NOTIFY_SOCKET=str(manager.path), WATCHDOG_USEC="4000000") as running:
        manager.expect(**ALIVE)
        rig._note_sockets()
        # Whoever has LMDB's one write transaction holds up all commits.
        path = str(rig.directory / "metadata.lmdb")
        with lmdb.open(path, subdir=False, max_dbs=8) as metadata:
            with metadata.begin(write=True), NbdClient(rig.socket, "a") as client:
                client.write(0, b"w" * 512)
                running.says("the commit timer has not come round")
                manager.waiting()
                running.says("the commit timer has not come round")
                assert not any(ALIVE.items() <= said.items() for said in manager.waiting())
            manager.expect(**ALIVE)
        assert running.terminate() == 0
    rig._forget()


def test_the_watchdogs_signal_leaves_a_trace(rig: PoolRig, manager: Manager) -> None:
    with daemon(rig, NOTIFY_SOCKET=str(manager.path), WATCHDOG_USEC="60000000") as running:
        manager.expect(READY="1")
        running.process.send_signal(signal.SIGABRT)
        running.says("Fatal Python error: Aborted")
        running.says("committer.py")
        assert running.process.wait(PATIENCE) == -signal.SIGABRT


def test_why_it_cannot_start(rig: PoolRig, manager: Manager) -> None:
    """Both before it became nbdkit and after."""
    with daemon(rig, "--listen", "0.0.0.0:1", NOTIFY_SOCKET=str(manager.path)) as running:
        assert "loopback" in manager.receive()["STATUS"]
        assert running.process.wait(PATIENCE) == 1
    (rig.directory / "data").rename(rig.directory / "away")
    with daemon(rig, NOTIFY_SOCKET=str(manager.path)) as running:
        assert "data" in manager.receive()["STATUS"]
        assert running.process.wait(PATIENCE) == 1
    (rig.directory / "away").rename(rig.directory / "data")
