"""A verb goes to the daemon when one answers, else into the pool opened here under its lock."""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from thinpoold import lock
from thinpoold.attach import verbs
from thinpoold.cli import backend
from thinpoold.cli.backend import Backend
from thinpoold.control import jsonrpc
from thinpoold.control.server import ControlServer
from thinpoold.errors import ControlError, NoSuchPool, PoolLocked
from thinpoold.paths import METADATA_FILE, PoolPaths, pool_paths


@pytest.fixture
def paths(tmp_path_factory: pytest.TempPathFactory) -> PoolPaths:
    directory = tmp_path_factory.mktemp("p")
    (directory / METADATA_FILE).touch()
    found = pool_paths(directory)
    found.run_dir.mkdir()
    return found


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Calls that were made here, instead of making them."""
    calls: list[Any] = []

    def call_here(paths: PoolPaths, lock_fd: int, method: str, params: Any) -> str:
        with pytest.raises(PoolLocked):
            lock.acquire(paths, "another")
        calls.append((method, params))
        return "here"

    monkeypatch.setattr(backend, "call_here", call_here)
    return calls


def serve(paths: PoolPaths) -> ControlServer:
    server = ControlServer(
        paths.control_socket, lambda line: jsonrpc.encode_result(1, "daemon") + b"\n"
    )
    server.start()
    return server


def test_the_daemon_answers(paths: PoolPaths, here: list[Any]) -> None:
    server = serve(paths)
    held = lock.acquire(paths, lock.DAEMON)
    assert Backend(paths).call("info", name="a") == "daemon"
    os.close(held)
    server.close()
    assert here == []


def test_no_daemon(paths: PoolPaths, here: list[Any]) -> None:
    assert Backend(paths).call("info", name="a") == "here"
    assert here == [("info", {"name": "a"})]
    assert not lock.is_held(paths)


def test_a_socket_that_a_crash_left(paths: PoolPaths, here: list[Any]) -> None:
    paths.control_socket.touch()
    assert Backend(paths).call("list") == "here"


def test_it_waits_for_another_command(paths: PoolPaths, here: list[Any]) -> None:
    held = lock.acquire(paths, "thinpool create")
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(Backend(paths).call("list")))
    thread.start()
    assert here == []
    os.close(held)
    thread.join()
    assert results == ["here"]


def test_it_waits_for_a_daemon_that_starts(paths: PoolPaths, here: list[Any]) -> None:
    held = lock.acquire(paths, lock.DAEMON)
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(Backend(paths).call("list")))
    thread.start()
    server = serve(paths)
    thread.join()
    assert results == ["daemon"]
    os.close(held)
    server.close()
    assert here == []


@pytest.mark.usefixtures("here")
def test_it_does_not_wait_for_ever(paths: PoolPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "WAIT", 0.01)
    held = lock.acquire(paths, lock.DAEMON)
    with pytest.raises(ControlError, match=f"process {os.getpid()}, does not answer"):
        Backend(paths).call("list")
    os.close(held)
    held = lock.acquire(paths, "thinpool delete")
    with pytest.raises(PoolLocked, match="thinpool delete"):
        Backend(paths).call("list")
    os.close(held)


def test_no_pool(tmp_path: Path) -> None:
    with pytest.raises(NoSuchPool):
        Backend(pool_paths(tmp_path)).call("list")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({"uri": "nbd://"}, lambda answer: answer["stable_uri"]),
        ({"memory": {"resident": 1}}, lambda answer: answer["memory"]["bounds"]),
        ({"volumes": [{"name": "v"}]}, lambda answer: answer["volumes"][0]["opened_by"]),
    ],
)
def test_what_an_older_daemon_does_not_say_is_one_clear_line(
    paths: PoolPaths, said: Any, wanted: Callable[[Any], object]
) -> None:
    server = ControlServer(
        paths.control_socket, lambda line: jsonrpc.encode_result(1, said) + b"\n"
    )
    server.start()
    held = lock.acquire(paths, lock.DAEMON)
    try:
        answer = Backend(paths).call("uri", name="v")
        assert answer == said
        assert json.loads(json.dumps(answer)) == said
        with pytest.raises(ControlError, match=r"'\w+': it is of another version.*thinpool stop"):
            wanted(answer)
        if "uri" in said:
            with pytest.raises(ControlError, match="'stable_uri': it is of another version"):
                verbs.look_up(paths, "v")
    finally:
        os.close(held)
        server.close()
