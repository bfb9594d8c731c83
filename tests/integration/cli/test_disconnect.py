"""thinpool disconnect: a client that will not let go of a volume is made to."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from tests.conftest import PoolMaker
from tests.integration.cli.outcomes import refused, wrong_usage
from tests.support.client import NbdError
from tests.support.pools import PoolRig
from tests.support.tools import PATIENCE, free_port
from thinpoold.attach.handshake import Server, open_export

_CLIENT = """
import sys
from thinpoold.attach.handshake import Server, greet, negotiate, open_export
socket, volumes = sys.argv[1], sys.argv[2:]
if volumes[0] == "at-once":
    peers = [Server(socket).connect(60) for _ in volumes[1:]]
    for peer, volume in zip(peers, volumes[1:]):
        negotiate(peer, volume)
else:
    peers = [open_export(Server(socket), volume, 60)[0] for volume in volumes]
print("open", flush=True)
sys.stdin.readline()
for peer in peers:
    peer.setblocking(False)
    try:
        print("gone" if peer.recv(1) == b"" else "data", flush=True)
    except BlockingIOError:
        print("there", flush=True)
"""


class Client:
    """A process that has volumes open, one connection for each that is named."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        assert process.stdout is not None
        self.stdout = process.stdout
        assert self.stdout.readline() == "open\n"

    @property
    def pid(self) -> int:
        return self.process.pid

    def finds(self) -> list[str]:
        """What it sees of its connections, in their order."""
        out, _ = self.process.communicate("\n", PATIENCE)
        return out.split()


@contextmanager
def client(rig: PoolRig, *volumes: str) -> Iterator[Client]:
    command: Sequence[str] = [sys.executable, "-c", _CLIENT, rig.socket, *volumes]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Client(process)
        finally:
            process.kill()


@pytest.fixture
def two(pool: PoolRig) -> PoolRig:
    pool.create("v", "1M")
    pool.create("w", "1M")
    return pool


def clients(rig: PoolRig) -> list[int]:
    return [rig.volumes()[name]["clients"] for name in "vw"]


def test_one_that_is_stopped_lets_go(two: PoolRig) -> None:
    with client(two, "v") as stuck:
        os.kill(stuck.pid, signal.SIGSTOP)
        refused(two, "delete", "v", says="open")
        assert two.cli("disconnect", "v") == "disconnected 1 connection of v\n"
        two.cli("delete", "v")
        two.create("v", "1M")
        os.kill(stuck.pid, signal.SIGCONT)
        assert stuck.finds() == ["gone"]


def test_of_a_process_with_several_volumes_the_one_that_was_named(two: PoolRig) -> None:
    with client(two, "w", "v", "w", "v") as several, client(two, "v") as other:
        answer = two.json("disconnect", "v", str(several.pid))
        assert answer == {"name": "v", "disconnected": 2, "left": 0}
        assert clients(two) == [1, 2]
        assert several.finds() == ["there", "gone", "there", "gone"]
        assert other.finds() == ["there"]


def test_what_cannot_be_told_apart_is_left_alone(two: PoolRig) -> None:
    with client(two, "at-once", "v", "w") as both:
        refused(two, "disconnect", "v", says="cannot be told apart")
        assert clients(two) == [1, 1]
        assert both.finds() == ["there", "there"]
    with client(two, "at-once", "v", "v") as both:
        two.cli("disconnect", "v")
        assert both.finds() == ["gone", "gone"]


def test_a_client_over_tcp_by_its_address(new_pool: PoolMaker) -> None:
    rig = new_pool(start=False)
    rig.create("v", "1M")
    rig.create("w", "1M")
    port = free_port()
    rig.start("--listen", f"127.0.0.1:{port}")
    here = Server(("127.0.0.1", port))
    first, _ = open_export(here, "v", PATIENCE)
    second, _ = open_export(here, "w", PATIENCE)
    with first, second:
        refused(rig, "disconnect", "v", "192.0.2.7", says="there are: 127.0.0.1")
        assert rig.json("disconnect", "v", "127.0.0.1")["disconnected"] == 1
        assert first.recv(1) == b""
        second.setblocking(False)
        with pytest.raises(BlockingIOError):
            second.recv(1)


def test_who_connects_again_is_let_in(two: PoolRig) -> None:
    with two.connect("v") as cut:
        cut.write(0, b"x" * 4096)
        two.cli("disconnect", "v", str(os.getpid()))
        with pytest.raises(NbdError):
            cut.read(0, 4096)
    with two.connect("v") as again:
        assert again.read(0, 4096) == b"x" * 4096


def test_refusals(two: PoolRig) -> None:
    refused(two, "disconnect", "none", says="no volume")
    refused(two, "disconnect", "v", says="nobody has volume 'v' open")
    with client(two, "v") as there:
        refused(two, "disconnect", "v", "1", says=f"has no client 1; there are: {there.pid}")
        refused(two, "disconnect", "v", "qemu", says="name a process id or an address")
        assert there.finds() == ["there"]
    wrong_usage(two, "disconnect", says="VOL")
    two.stop()
    refused(two, "disconnect", "v", says="not running")
