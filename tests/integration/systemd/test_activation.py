"""Sockets that are there before the daemon is."""

import os
import socket
import subprocess
import threading
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import PoolMaker
from tests.integration.systemd.daemons import Daemon, Manager, daemon, listener
from tests.support.client import NbdClient
from tests.support.pools import BIN, PoolRig
from tests.support.tools import PATIENCE, program, run


@pytest.fixture
def rig(new_pool: PoolMaker) -> PoolRig:
    """A pool that does not run, with a volume."""
    rig = new_pool(start=False)
    rig.create("a", "1M")
    return rig


def own_socket(rig: PoolRig) -> Path:
    return rig.directory / "run" / "nbd.sock"


def test_the_first_client_starts_the_daemon(rig: PoolRig) -> None:
    """As systemd does it, by systemd's own program."""
    path = own_socket(rig)
    path.parent.mkdir(mode=0o700)
    command = [program("systemd-socket-activate"), f"--listen={path}", "-E", "PATH"]
    command += [str(BIN / "thinpoold"), "--foreground", str(rig.directory)]
    with subprocess.Popen(command, env=rig.env, stderr=subprocess.PIPE) as process:
        waiting = Daemon(process)
        waiting.says("Listening on")
        assert not rig.status().get("running")
        size = run("nbdinfo", "--size", f"nbd+unix:///a?socket={path}").stdout
        assert int(size) == 1 << 20
        # The process that listened is the daemon now, and says where it listens.
        assert rig.status()["pid"] == process.pid
        assert rig.uri("a") == f"nbd+unix:///a?socket={path}"
        assert waiting.terminate() == 0
    assert path.exists()
    assert [path.name for path in path.parent.iterdir()] == [path.name]


def test_clients_wait_while_the_daemon_starts_again(rig: PoolRig) -> None:
    path = own_socket(rig)
    with closing(listener(path)) as given:
        with daemon(rig, sockets=[given]) as first:
            with NbdClient(path, "a") as client:
                client.write(0, b"x" * 4096)
            assert first.terminate() == 0
        # Nobody serves. A client that comes now is neither refused nor lost.
        answer: list[bytes] = []

        def read() -> None:
            with NbdClient(path, "a") as client:
                answer.append(client.read(0, 4096))

        waiting = threading.Thread(target=read)
        waiting.start()
        with daemon(rig, sockets=[given]) as second:
            waiting.join(PATIENCE)
            assert answer == [b"x" * 4096]
            assert second.terminate() == 0


def test_stopping_through_the_cli_leaves_the_socket(rig: PoolRig) -> None:
    path = own_socket(rig)
    with closing(listener(path)) as given, daemon(rig, sockets=[given]) as running:
        with NbdClient(path, "a"):
            pass
        rig.cli("stop")
        assert running.process.wait(PATIENCE) == 0
        assert path.exists()


def test_one_more_socket_on_loopback(rig: PoolRig) -> None:
    path = own_socket(rig)
    with (
        closing(listener(path)) as unix,
        closing(socket.create_server(("127.0.0.1", 0))) as tcp,
        daemon(rig, sockets=[unix, tcp]) as running,
    ):
        port = tcp.getsockname()[1]
        with NbdClient(path, "a") as client:
            client.write(512, b"y" * 512)
        size = run("nbdinfo", "--size", f"nbd://127.0.0.1:{port}/a").stdout
        assert int(size) == 1 << 20
        assert rig.uri("a") == f"nbd+unix:///a?socket={path}"
        assert running.terminate() == 0


def test_the_world_is_not_served(rig: PoolRig) -> None:
    with (
        closing(socket.create_server(("0.0.0.0", 0))) as tcp,
        daemon(rig, sockets=[tcp]) as running,
    ):
        running.says("without TLS only loopback")
        assert running.process.wait(PATIENCE) == 1


def test_listen_and_sockets_exclude_each_other(rig: PoolRig) -> None:
    with (
        closing(listener(own_socket(rig))) as given,
        daemon(rig, "--listen", "127.0.0.1:10809", sockets=[given]) as running,
    ):
        running.says("leave --listen out")
        assert running.process.wait(PATIENCE) == 1


def test_another_processs_sockets_are_none_of_ours(rig: PoolRig, tmp_path: Path) -> None:
    manager = Manager(tmp_path / "notify")
    notify, process = str(manager.path), str(os.getpid())
    with (
        closing(manager.socket),
        daemon(rig, NOTIFY_SOCKET=notify, LISTEN_FDS="1", LISTEN_PID=process) as running,
    ):
        manager.expect(READY="1")
        assert rig.uri("a") == f"nbd+unix:///a?socket={own_socket(rig)}"
        assert running.terminate() == 0
    assert not own_socket(rig).exists()
