"""Clients at a port that never open a volume, against a server in this very process."""

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support.tools import PATIENCE
from thinpoold import clients
from thinpoold.clients import Place
from thinpoold.handshakes import Handshakes


class Clock:
    """Goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Server:
    """Accepts what connects, and never says a word."""

    def __init__(self, family: int, address: str) -> None:
        self._stack = ExitStack()
        self.accepted: list[socket.socket] = []
        self.listener = self._stack.enter_context(
            socket.create_server((address, 0), family=family, dualstack_ipv6=address == "::")
        )
        self.port = int(self.listener.getsockname()[1])

    def connect(self, address: str) -> socket.socket:
        client = self._stack.enter_context(socket.create_connection((address, self.port)))
        self.accepted.append(self._stack.enter_context(self.listener.accept()[0]))
        return client

    def close(self) -> None:
        self._stack.close()


@pytest.fixture(params=[(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::")])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    found = Server(*request.param)
    yield found
    found.close()


def is_open(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return client.recv(1) != b""
    except BlockingIOError:
        return True


def test_who_opens_nothing_in_time_is_hung_up_on(server: Server) -> None:
    clock, opened = Clock(), set[Place]()
    addresses = clients.ports(clients.listening()) & {server.port}
    watch = Handshakes(addresses, lambda: opened, seconds=60, clock=clock)
    silent, busy = server.connect("127.0.0.1"), server.connect("127.0.0.1")
    opened.add(("127.0.0.1", busy.getsockname()[1]))
    assert watch.look() == 0
    clock.now += 59
    late = server.connect("127.0.0.1")
    assert watch.look() == 0
    clock.now += 1
    assert watch.look() == 1
    assert [is_open(one) for one in (silent, busy, late)] == [False, True, True]
    clock.now += 60
    assert watch.look() == 2  # The one that was shut is still there: its server has not closed it.
    assert [is_open(one) for one in (silent, busy, late)] == [False, True, False]


def test_it_starts_and_ends(server: Server) -> None:
    watch = Handshakes(frozenset([server.port]), set, seconds=0.01)
    client = server.connect("127.0.0.1")
    watch.start()
    assert client.recv(1) == b""
    watch.stop()


def test_a_look_that_fails_is_not_the_last(server: Server) -> None:
    failures = [OSError(errno.ENFILE, "too many open files in system")]

    def opened() -> set[Place]:
        if failures:
            raise failures.pop()
        return set()

    watch = Handshakes(frozenset([server.port]), opened, seconds=0.01)
    client = server.connect("127.0.0.1")
    client.settimeout(PATIENCE)
    watch.start()
    assert client.recv(1) == b""
    assert not failures
    watch.stop()


def test_unix_sockets_are_no_ports() -> None:
    assert clients.ports(frozenset(["/run/nbd.sock", 10809])) == {10809}


def test_those_that_come_and_those_that_are_there_are_kept_alive(server: Server) -> None:
    family = server.listener.family
    address = "127.0.0.1" if family == socket.AF_INET else "::1"
    early = server.connect(address)
    clients.keep_alive(frozenset([server.port]), idle=7, interval=5, probes=3)
    late = server.connect(address)
    unasked = socket.create_server(("127.0.0.1", 0))
    with unasked:
        assert not unasked.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    for client, accepted in zip((early, late), server.accepted, strict=True):
        assert accepted.getpeername()[1] == client.getsockname()[1]
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        for option, value in (
            (socket.TCP_KEEPIDLE, 7),
            (socket.TCP_KEEPINTVL, 5),
            (socket.TCP_KEEPCNT, 3),
        ):
            assert accepted.getsockopt(socket.IPPROTO_TCP, option) == value
