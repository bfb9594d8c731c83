"""Sockets handed over by a service manager."""

import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from thinpoold import activation, daemon
from thinpoold.errors import UserError
from thinpoold.paths import NBD_SOCKET, PoolPaths, pool_paths


@pytest.fixture
def paths(tmp_path: Path) -> PoolPaths:
    paths = pool_paths(tmp_path)
    paths.run_dir.mkdir()
    return paths


@pytest.fixture
def unix(paths: PoolPaths) -> Iterator[socket.socket]:
    with closing(listener(str(paths.nbd_socket))) as given:
        yield given


def listener(path: str) -> socket.socket:
    given = socket.socket(socket.AF_UNIX)
    given.bind(path)
    given.listen()
    return given


def test_the_variables_are_for_one_process() -> None:
    ours = str(os.getpid())
    assert activation.handed_over({"LISTEN_PID": ours, "LISTEN_FDS": "2"}) == [3, 4]
    for variables in (
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_PID": "1", "LISTEN_FDS": "1"},
        {"LISTEN_PID": ours},
        {"LISTEN_PID": ours, "LISTEN_FDS": "-1"},
        {"LISTEN_PID": ours, "LISTEN_FDS": "0"},
    ):
        assert activation.handed_over(variables) == []


def test_the_pools_own_socket_stays_in_place(paths: PoolPaths, unix: socket.socket) -> None:
    _, uri, keep = daemon.given_sockets(paths, [unix.fileno()], daemon.Options())
    assert uri == f"nbd+unix:///?socket={paths.nbd_socket}"
    paths.control_socket.touch()
    assert NBD_SOCKET not in daemon.make_run_dir(paths, keep)
    assert [path.name for path in paths.run_dir.iterdir()] == [NBD_SOCKET]


def test_another_path_is_as_good(paths: PoolPaths, tmp_path: Path) -> None:
    with closing(listener(str(tmp_path / "s"))) as given:
        _, uri, keep = daemon.given_sockets(paths, [given.fileno()], daemon.Options())
    assert uri == f"nbd+unix:///?socket={tmp_path / 's'}"
    assert not keep


@pytest.mark.parametrize(("address", "host"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_loopback(paths: PoolPaths, address: str, host: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with closing(socket.create_server((address, 0), family=family)) as given:
        port = given.getsockname()[1]
        _, uri, keep = daemon.given_sockets(paths, [given.fileno()], daemon.Options())
    assert uri == f"nbd://{host}:{port}/"
    assert not keep


def test_the_first_socket_is_the_uri_and_all_are_looked_at(
    paths: PoolPaths, unix: socket.socket
) -> None:
    with (
        closing(socket.create_server(("0.0.0.0", 0))) as world,
        pytest.raises(UserError, match="without TLS only loopback"),
    ):
        daemon.given_sockets(paths, [unix.fileno(), world.fileno()], daemon.Options())
    with closing(socket.create_server(("127.0.0.1", 0))) as loopback:
        _, uri, keep = daemon.given_sockets(
            paths, [loopback.fileno(), unix.fileno()], daemon.Options()
        )
    assert uri.startswith("nbd://127.0.0.1:")
    assert keep == {NBD_SOCKET}


def test_listen_beside_sockets_is_refused(paths: PoolPaths, unix: socket.socket) -> None:
    with pytest.raises(UserError, match="leave --listen out"):
        daemon.given_sockets(paths, [unix.fileno()], daemon.Options("127.0.0.1:10809"))


def test_what_is_no_listening_socket_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file, pytest.raises(UserError, match="as a socket"):
        activation.address_of(file.fileno())
    with pytest.raises(UserError, match="file descriptor 12345"):
        activation.address_of(12345)
    near, far = socket.socketpair()
    with closing(near), closing(far), pytest.raises(UserError, match="Accept=no"):
        activation.address_of(near.fileno())
    with closing(listener(f"\0{tmp_path}")) as abstract, pytest.raises(UserError, match="URIs"):
        activation.address_of(abstract.fileno())
