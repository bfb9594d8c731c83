"""A client over TCP whose machine died without a word: its volume does not stay open for ever."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PoolMaker
from tests.integration.systemd.daemons import daemon
from tests.support.pools import PoolRig
from tests.support.tools import PATIENCE, free_port, run
from thinpoold.attach.handshake import Server, open_export
from thinpoold.clients import KEEP_IDLE_SECONDS, KEEP_INTERVAL_SECONDS, KEEP_PROBES

# As /proc/net/tcp has it: no retransmission, no time-wait, no probe of a window.
_KEEPALIVE = "02"
_OPEN = """
import sys
from thinpoold.attach.handshake import Server, open_export
peer, _ = open_export(Server((sys.argv[1], int(sys.argv[2]))), "v", 60)
print("open", flush=True)
sys.stdin.read()
"""


def timer(server: int, client: int) -> str:
    """Which timer the kernel runs for the server's end of a connection on loopback."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, remote, timers = (line.split()[one] for one in (1, 2, 5))
        if (int(local[-4:], 16), int(remote[-4:], 16)) == (server, client):
            return timers.partition(":")[0]
    raise AssertionError("no such connection")


def await_asked(port: int) -> None:
    """Open the volume `v` there, and wait until the daemon asks whether its client lives.

    One that was waiting before the daemon came is asked after the daemon's next look at them all.
    """
    peer, _ = open_export(Server(("127.0.0.1", port)), "v", PATIENCE)
    deadline = time.monotonic() + PATIENCE
    with peer:
        while timer(port, int(peer.getsockname()[1])) != _KEEPALIVE:
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.fixture
def stopped(new_pool: PoolMaker) -> PoolRig:
    rig = new_pool(start=False)
    rig.create("v", "1M")
    return rig


def test_the_daemon_asks_whether_its_clients_live(stopped: PoolRig) -> None:
    port = free_port()
    stopped.start("--listen", f"127.0.0.1:{port}")
    await_asked(port)


def test_also_at_a_port_that_a_service_manager_opened(stopped: PoolRig) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as given,
        daemon(stopped, sockets=[given]) as running,
    ):
        await_asked(int(given.getsockname()[1]))
        assert running.terminate() == 0


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, str]]:
    """Another machine, as far as TCP can tell: a network namespace, and our address for it."""
    name = f"thinpoold{os.getpid()}"
    ours = f"th{os.getpid()}"
    run("ip", "netns", "add", name)
    try:
        run("ip", "link", "add", ours, "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "addr", "add", "10.201.77.1/30", "dev", ours)
        run("ip", "link", "set", ours, "up")
        run("ip", "-n", name, "addr", "add", "10.201.77.2/30", "dev", "eth0")
        run("ip", "-n", name, "link", "set", "eth0", "up")
        yield name, "10.201.77.1"
    finally:
        run("ip", "netns", "del", name)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a network")
def test_the_volume_of_a_machine_that_died_is_let_go(
    stopped: PoolRig, elsewhere: tuple[str, str]
) -> None:
    name, address = elsewhere
    port = free_port()
    stopped.start("--listen", f"{address}:{port}", "--insecure-no-tls")
    command = ["ip", "netns", "exec", name, sys.executable, "-c", _OPEN, address, str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"open\n"
        assert stopped.volumes()["v"]["clients"] == 1
        # From now on nothing that it sends arrives.
        run("ip", "-n", name, "route", "add", "blackhole", f"{address}/32")
        most = KEEP_IDLE_SECONDS + KEEP_PROBES * KEEP_INTERVAL_SECONDS
        deadline = time.monotonic() + most + PATIENCE
        while stopped.volumes()["v"]["clients"]:
            assert time.monotonic() < deadline
            time.sleep(1)
        client.kill()
    stopped.delete("v")
