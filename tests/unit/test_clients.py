"""The connections of a server in this very process: who ended, who is hung up on."""

import fcntl
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import NoReturn

import pytest

from tests.support.descriptors import descriptors_left
from tests.support.tools import PATIENCE
from thinpoold import clients


@pytest.fixture
def server(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "nbd.sock"))
        listener.listen()
        yield listener


def connect(server: socket.socket) -> tuple[socket.socket, socket.socket]:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.connect(server.getsockname())
    peer, _ = server.accept()
    return client, peer


def send_for_ever(client: socket.socket) -> NoReturn:
    while True:
        client.send(b"d")


def test_the_control_socket_is_not_for_nbd(server: socket.socket, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
        control.bind(str(tmp_path / "control.sock"))
        control.listen()
        assert str(tmp_path / "nbd.sock") in clients.listening()
        assert str(tmp_path / "control.sock") not in clients.listening()


def test_hanging_up_shuts_both_ways_and_closes_nothing(server: socket.socket) -> None:
    addresses = frozenset([server.getsockname()])
    assert not clients.hang_up(addresses)
    client, peer = connect(server)
    with closing(client), closing(peer):
        assert clients.hang_up(addresses)
        assert client.recv(1) == b""
        assert peer.recv(1) == b""
        with pytest.raises(BrokenPipeError):
            peer.send(b"x")
        os.fstat(peer.fileno())


def test_what_was_asked_is_answered_before_the_end(server: socket.socket) -> None:
    client, peer = connect(server)
    client.sendall(b"abc")
    answered = threading.Event()

    def serve() -> None:
        # One thread, as nbdkit's: it takes a request, answers it, and takes the next.
        with peer:
            while request := peer.recv(1):
                answered.wait()
                peer.sendall(request.upper())

    with closing(client), ThreadPoolExecutor(2) as threads:
        serving = threads.submit(serve)
        addresses = frozenset([server.getsockname()])
        ending = threads.submit(clients.finish_all, addresses, PATIENCE)
        # No more is taken: then nothing can be lost on the way.
        with pytest.raises(BrokenPipeError):
            send_for_ever(client)
        waited = not ending.done()
        answered.set()
        got = b"".join(iter(lambda: client.recv(4096), b""))
        serving.result()
        ending.result()
        assert waited
        assert got.startswith(b"ABC")


def test_who_does_not_come_to_an_end_is_not_waited_for(server: socket.socket) -> None:
    client, peer = connect(server)
    with closing(client), closing(peer):
        clients.finish_all(frozenset([server.getsockname()]), 0)
        assert peer.recv(1) == b""
        peer.sendall(b"x")
        assert client.recv(1) == b"x"


def test_a_client_of_any_address_is_found_by_the_port() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as wildcard,
        socket.create_connection(wildcard.getsockname()[:2]) as client,
    ):
        peer, _ = wildcard.accept()
        with peer:
            assert clients.hang_up(frozenset([wildcard.getsockname()[1]]))
            assert client.recv(1) == b""


def test_connections_of_a_process_are_waited_for_once_they_have_ended(
    server: socket.socket,
) -> None:
    me = os.getpid()
    client, peer = connect(server)
    # It lives: nothing to wait for.
    assert clients.finish([me], shut=None, seconds=0) == 0
    client.close()
    assert clients.finish([me], shut=None, seconds=0) == 1
    assert clients.finish([me + 1], shut=None, seconds=0) == 0
    peer.close()
    assert clients.finish([me], shut=None, seconds=0) == 0


def test_connections_of_one_process_alone_are_hung_up_on(server: socket.socket) -> None:
    mine, my_peer = connect(server)
    script = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.recv(1)"
    )
    with (
        closing(mine),
        closing(my_peer),
        subprocess.Popen([sys.executable, "-c", script, server.getsockname()]) as other,
    ):
        peer, _ = server.accept()
        with peer:
            assert clients.finish([other.pid], shut=socket.SHUT_RDWR, seconds=0) == 1
            # It got its end of file.
            assert other.wait() == 0
        mine.send(b"x")
        assert my_peer.recv(1) == b"x"


@pytest.mark.parametrize("left", range(4))
def test_clients_are_found_when_they_have_taken_all_descriptors(left: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        addresses = clients.listening() & {server.getsockname()[1]}
        with socket.create_connection(server.getsockname()) as client:
            peer, _ = server.accept()
            with peer, descriptors_left(left):
                assert clients.listening() >= addresses
                assert clients.places(addresses) == {client.getsockname()}
                assert clients.hang_up_at(addresses, {client.getsockname()}) == 1
                assert client.recv(1) == b""


def test_a_connection_that_was_looked_at_ends_when_it_is_closed(server: socket.socket) -> None:
    """A duplicate that stayed would keep it open."""
    client, peer = connect(server)
    with closing(client):
        clients.places(frozenset([server.getsockname()]))
        peer.close()
        assert client.recv(1) == b""


def test_locks_on_files_are_kept(tmp_path: Path) -> None:
    """LMDB's lock file is one; whoever closes a duplicate of its descriptor would lose the lock."""
    held = tmp_path / "lock"
    probe = (
        "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+b'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    )
    command = [sys.executable, "-c", probe, str(held)]
    with held.open("w+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        clients.listening()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "BlockingIOError" in done.stderr
    subprocess.run(command, check=True)
