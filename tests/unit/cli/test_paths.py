"""Where pools lie: by path, by name, under long paths; and the URIs that follow from it."""

import fcntl
import os
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinpoold import paths
from thinpoold.attach.handshake import parse_uri
from thinpoold.errors import InvalidName, NoSuchPool
from thinpoold.uri import tcp_uri, unix_uri, volume_uri


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Be an ordinary user, whose directories are under the one returned."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return tmp_path


def make_pool(directory: Path) -> None:
    directory.mkdir(parents=True)
    (directory / paths.METADATA_FILE).touch()


def test_a_word_is_a_name_under_the_default_directory(user: Path) -> None:
    found = paths.resolve_pool("tank")
    assert found.directory == user / "share/thinpoold/tank"
    assert found.run_dir == user / "run/thinpoold/tank"
    assert found.name == "tank"


@pytest.mark.parametrize("home", [None, "", "relative"])
def test_a_user_without_a_home_names_pools_by_their_paths(
    user: Path, monkeypatch: pytest.MonkeyPatch, home: str | None
) -> None:
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.delenv("HOME", raising=False)
    # Nor does the system know the user, who is as those in containers are.
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)
    if home is not None:
        monkeypatch.setenv("HOME", home)
    make_pool(user / "work/tank")
    assert paths.resolve_pool("tank").directory == user / "work/tank"
    assert paths.resolve_pool("./new").run_dir == user / "work/new/run"
    with pytest.raises(NoSuchPool, match="HOME"):
        paths.resolve_pool("other")


def test_uris_hold_paths_that_are_no_utf8() -> None:
    socket = Path(os.fsdecode(b"/run/p\xff/nbd.sock"))
    uri = volume_uri(unix_uri(socket), "v")
    assert uri == "nbd+unix:///v?socket=/run/p%FF/nbd.sock"
    server, export = parse_uri(uri)
    assert (server.address, export) == (str(socket), "v")


def test_root_has_its_own_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.chdir(tmp_path)
    found = paths.resolve_pool("no-such-pool-here")
    assert found.directory == Path(os.path.realpath("/var/lib")) / "thinpoold/no-such-pool-here"
    assert found.run_dir == Path("/run/thinpoold/no-such-pool-here")


def test_without_xdg_the_home_directory_is_taken(
    user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for relative in ("", "not/absolute"):
        monkeypatch.setenv("XDG_DATA_HOME", relative)
        monkeypatch.setenv("HOME", str(user / "home"))
        assert paths.default_directory() == user / "home/.local/share/thinpoold"


def test_text_with_a_slash_is_a_path(user: Path) -> None:
    found = paths.resolve_pool("./tank")
    assert found.directory == user / "work/tank"
    assert found.run_dir == user / "work/tank/run"
    assert paths.resolve_pool(".").directory == user / "work"


def test_a_pool_in_the_working_directory_comes_before_the_default(user: Path) -> None:
    make_pool(user / "share/thinpoold/tank")
    (user / "work/tank").mkdir()
    assert paths.resolve_pool("tank").directory == user / "share/thinpoold/tank"
    (user / "work/tank" / paths.METADATA_FILE).touch()
    assert paths.resolve_pool("tank").directory == user / "work/tank"


def test_an_empty_directory_here_is_meant_when_there_is_no_other(user: Path) -> None:
    (user / "work/tank").mkdir()
    assert paths.resolve_pool("tank").directory == user / "work/tank"


@pytest.mark.parametrize("text", ["", "a\nb", "x" * 128])
def test_a_word_that_is_no_name_is_refused(user: Path, text: str) -> None:
    with pytest.raises(InvalidName, match="bad pool name"):
        paths.resolve_pool(text)


def test_a_link_and_its_target_are_one_pool(user: Path) -> None:
    make_pool(user / "share/thinpoold/tank")
    link = user / "work/link"
    link.symlink_to(user / "share/thinpoold/tank")
    assert paths.resolve_pool("link") == paths.resolve_pool("tank")


@pytest.mark.parametrize("runtime", ["", "set"])
def test_sockets_fit_however_long_the_path(
    user: Path, monkeypatch: pytest.MonkeyPatch, runtime: str
) -> None:
    # Not under the test's own directory, which is long by itself.
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000" if runtime else "")
    long = user / ("d" * 100)
    found = {paths.pool_paths(long / name).control_socket for name in ("a", "b")}
    assert len(found) == 2
    for socket in found:
        assert len(os.fsencode(socket)) <= paths.MAX_SOCKET_PATH


def test_no_pool_is_said_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NoSuchPool) as refusal:
        paths.pool_paths(tmp_path).require_pool()
    assert str(tmp_path) in str(refusal.value)
    assert "thinpool init" in str(refusal.value)


@given(st.text(st.characters(blacklist_characters="\0/", blacklist_categories=["Cs"]), min_size=1))
def test_a_volume_uri_is_read_back(name: str) -> None:
    uri = volume_uri(unix_uri(Path("/run/p ool/é?&#/nbd.sock")), name)
    parts = urlsplit(uri)
    assert parts.scheme == "nbd+unix"
    assert unquote(parts.path) == "/" + name
    assert parse_qs(parts.query)["socket"] == ["/run/p ool/é?&#/nbd.sock"]


def test_tcp_uris() -> None:
    assert volume_uri(tcp_uri("127.0.0.1", 10809), "a b") == "nbd://127.0.0.1:10809/a%20b"
    assert tcp_uri("::1", 7) == "nbd://[::1]:7/"


def test_what_serves_read_only_has_its_files_outside_of_the_pool(user: Path) -> None:
    make_pool(user / "work/tank")
    found = paths.resolve_pool("./tank")
    reading = found.for_read_only()
    assert found.run_dir == user / "work/tank/run"
    assert reading.run_dir.parent == user / "run/thinpoold"
    assert reading.log == reading.run_dir / "thinpoold.log"
    assert reading.for_read_only() == reading
    named = paths.resolve_pool("named")
    assert named.for_read_only().run_dir == named.run_dir
    assert named.log.parent == named.directory
    # Another pool has another.
    other = paths.pool_paths(user / "work/other").for_read_only()
    assert other.run_dir != reading.run_dir


def test_a_daemon_that_serves_read_only_is_found_while_it_lives(user: Path) -> None:
    make_pool(user / "work/tank")
    found = paths.resolve_pool("./tank")
    reading = found.for_read_only()
    reading.run_dir.mkdir(parents=True, mode=0o700)
    fd = os.open(reading.run_lock, os.O_RDWR | os.O_CREAT, 0o600)
    assert paths.resolve_pool("./tank") == found
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert paths.resolve_pool("./tank") == reading
    os.close(fd)
    assert paths.resolve_pool("./tank") == found


def test_what_somebody_else_has_made_where_anybody_may_is_no_daemon(
    user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not the one who runs this test, and makes the directory.
    stranger = os.getuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: stranger)
    monkeypatch.setattr(paths, "_ANYBODYS", user / "anybody")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    make_pool(user / "work/tank")
    found = paths.resolve_pool("./tank")
    reading = found.for_read_only()
    reading.run_dir.mkdir(parents=True)
    fd = os.open(reading.run_lock, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert reading.shared_run_parents == (user / f"anybody/thinpoold-{stranger}",)
    assert paths.resolve_pool("./tank") == found
    os.close(fd)
