"""What thinpoold decides before it becomes nbdkit."""

import os
import shutil
import sys
from pathlib import Path

import pytest

import thinpoold.paths
from thinpoold import daemon
from thinpoold.errors import ThinPoolError, UserError
from thinpoold.paths import pool_paths


def test_unix_is_a_socket_in_the_run_directory(tmp_path: Path) -> None:
    paths = pool_paths(tmp_path)
    words, uri = daemon.listen_options(paths, daemon.Options())
    assert words == ["--unix", str(paths.nbd_socket)]
    assert uri == f"nbd+unix:///?socket={paths.nbd_socket}"


@pytest.mark.parametrize(
    ("listen", "words", "uri"),
    [
        ("127.0.0.1:10809", ["127.0.0.1", "10809"], "nbd://127.0.0.1:10809/"),
        ("127.1.2.3:1", ["127.1.2.3", "1"], "nbd://127.1.2.3:1/"),
        ("[::1]:10809", ["::1", "10809"], "nbd://[::1]:10809/"),
        ("localhost:65535", ["localhost", "65535"], "nbd://localhost:65535/"),
    ],
)
def test_loopback(tmp_path: Path, listen: str, words: list[str], uri: str) -> None:
    found, found_uri = daemon.listen_options(pool_paths(tmp_path), daemon.Options(listen))
    assert (found[1::2], found_uri) == (words, uri)


@pytest.mark.parametrize(
    "listen", ["0.0.0.0:10809", "[::]:10809", "192.168.0.1:10809", "example.com:10809"]
)
def test_others_need_tls(tmp_path: Path, listen: str) -> None:
    with pytest.raises(UserError, match="without TLS only loopback"):
        daemon.listen_options(pool_paths(tmp_path), daemon.Options(listen))


@pytest.mark.parametrize(
    "listen",
    [
        "",
        "10809",
        ":10809",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:0",
        "127.0.0.1:65536",
        "127.0.0.1:99999999999999999999",
        "127.0.0.1:x",
        "127.0.0.1:-1",
        "127.0.0.1:٣",
    ],
)
def test_no_address(tmp_path: Path, listen: str) -> None:
    with pytest.raises(UserError, match="neither 'unix' nor ADDR:PORT"):
        daemon.listen_options(pool_paths(tmp_path), daemon.Options(listen))


def test_the_interpreter_comes_first_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/a:/b")
    assert daemon.search_path() == f"{Path(sys.executable).parent}:/a:/b"
    monkeypatch.setenv("PATH", "")
    assert daemon.search_path() == str(Path(sys.executable).parent)


def test_without_nbdkit_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(ThinPoolError, match="nbdkit-plugin-python"):
        daemon.find_nbdkit()


def test_the_run_directory_is_private_and_cleared(tmp_path: Path) -> None:
    paths = pool_paths(tmp_path)
    paths.run_dir.mkdir(mode=0o777)
    for stale in (paths.nbd_socket, paths.control_socket, paths.pid_file):
        stale.touch()
    daemon.make_run_dir(paths)
    assert paths.run_dir.stat().st_mode & 0o777 == 0o700
    assert list(paths.run_dir.iterdir()) == []


def test_a_run_directory_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = pool_paths(tmp_path)
    paths.run_dir.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(ThinPoolError, match="belongs to user"):
        daemon.make_run_dir(paths)


def test_a_run_directory_that_cannot_be_made(tmp_path: Path) -> None:
    paths = pool_paths(tmp_path)
    paths.run_dir.touch()
    with pytest.raises(ThinPoolError, match="run directory"):
        daemon.make_run_dir(paths)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_nor_may_what_it_lies_in_be_another_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    anybodys = tmp_path / "tmp"
    monkeypatch.setattr(thinpoold.paths, "_ANYBODYS", anybodys)
    monkeypatch.setattr(thinpoold.paths, "_runtime_base", lambda: None)
    paths = pool_paths(tmp_path / ("d" * 100))
    assert paths.shared_run_parents == (anybodys / f"thinpoold-{os.geteuid()}",)
    daemon.make_run_dir(paths)
    os.chown(paths.run_dir.parent, 4711, -1)
    with pytest.raises(ThinPoolError, match="belongs to user 4711"):
        daemon.make_run_dir(paths)


@pytest.mark.parametrize(
    ("version", "threads"),
    [
        ("", 1),
        ("1.30.9", 4),
        ("1.32.3", 4),
        ("1.32.4", 1),
        ("1.32.5", 1),
        ("1.33.9", 1),
        ("1.33.10", 4),
        ("1.42.0", 4),
        ("2.0.0", 4),
    ],
)
def test_one_thread_where_more_would_bring_nbdkit_down(version: str, threads: int) -> None:
    assert daemon.safe_threads(version) == threads


def test_the_version_of_nbdkit_is_known() -> None:
    assert daemon.nbdkit_version(daemon.find_nbdkit()).startswith("1.")
    assert daemon.nbdkit_version("true") == ""
    with pytest.raises(ThinPoolError):
        daemon.nbdkit_version("/nonexistent")
