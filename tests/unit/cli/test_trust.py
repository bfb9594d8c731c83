"""Whose control socket is believed: root's, ours and the pool's owner's, and nobody else's."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import thinpoold.paths
from thinpoold import lock
from thinpoold.cli.backend import Backend
from thinpoold.control.client import ControlClient
from thinpoold.errors import ControlError, PoolNotRunning
from thinpoold.paths import METADATA_FILE, PoolPaths, pool_paths

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")

SOMEBODY = 4711
_LISTEN = """
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
os.setuid(int(sys.argv[2]))
listener.listen()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def impostor(tmp_path: Path) -> Iterator[Path]:
    """A socket in our own directory at which somebody else listens."""
    path = tmp_path / "control.sock"
    with subprocess.Popen(
        [sys.executable, "-c", _LISTEN, str(path), str(SOMEBODY)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield path
        process.kill()


def test_who_listens_is_asked_of_the_kernel(impostor: Path) -> None:
    with pytest.raises(ControlError, match=f"of user {SOMEBODY} listens"):
        ControlClient.connect(impostor)
    with ControlClient.connect(impostor, {0, SOMEBODY}) as client:
        assert client.server_pid != os.getpid()


def test_whose_directory_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "control.sock"))
        listener.listen()
        os.chown(tmp_path, SOMEBODY, -1)
        with pytest.raises(ControlError, match=f"belongs to user {SOMEBODY}"):
            ControlClient.connect(tmp_path / "control.sock")
        os.chown(tmp_path, 0, -1)
        for mode in (0o770, 0o707):
            tmp_path.chmod(mode)
            with pytest.raises(ControlError, match="can be written by others"):
                ControlClient.connect(tmp_path / "control.sock")
        tmp_path.chmod(0o755)
        ControlClient.connect(tmp_path / "control.sock").close()


@pytest.fixture
def long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PoolPaths]:
    """A pool whose sockets lie where anybody can make directories."""
    with tempfile.TemporaryDirectory() as short:
        yield _long(tmp_path, Path(os.path.realpath(short)), monkeypatch)


def _long(tmp_path: Path, short: Path, monkeypatch: pytest.MonkeyPatch) -> PoolPaths:
    # Not pytest's own, which may be too long for a socket by itself.
    anybodys = short / "tmp"
    anybodys.mkdir()
    anybodys.chmod(0o1777)
    monkeypatch.setattr(thinpoold.paths, "_ANYBODYS", anybodys)
    monkeypatch.setattr(thinpoold.paths, "_runtime_base", lambda: None)
    directory = tmp_path / ("d" * 100)
    directory.mkdir()
    (directory / METADATA_FILE).touch()
    paths = pool_paths(directory)
    assert paths.run_dir.parent.parent == anybodys
    return paths


@pytest.mark.parametrize("which", ["the run directory", "what it lies in"])
def test_a_directory_that_somebody_made_first_in_tmp(long: PoolPaths, which: str) -> None:
    long.run_dir.mkdir(mode=0o700, parents=True)
    long.run_dir.parent.chmod(0o700)
    with pytest.raises(PoolNotRunning):
        ControlClient.connect(long.control_socket, long.trusted)
    theirs = long.run_dir if which == "the run directory" else long.run_dir.parent
    os.chown(theirs, SOMEBODY, -1)
    for _ in range(2):
        with pytest.raises(ControlError, match=f"{theirs}, which belongs to user {SOMEBODY}"):
            Backend(long).call("list")
    assert not lock.is_held(long)


def test_the_owner_of_the_pool_s_directory_is_trusted(tmp_path: Path) -> None:
    paths = pool_paths(tmp_path)
    assert paths.trusted == {0}
    os.chown(tmp_path, SOMEBODY, -1)
    assert paths.trusted == {0, SOMEBODY}
    assert pool_paths(tmp_path / "none").trusted == {0}
