"""The files of a pool's directory: nothing that somebody planted there is opened or changed."""

import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from thinpoold import poolfiles
from thinpoold.errors import DeviceError

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has others' directories")

SOMEBODY = 4711
SECRET = b"root:*:19000:0:99999:7:::\n"


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A directory that any user can reach, which those of pytest are not."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(os.path.realpath(name))


@pytest.fixture
def theirs(reachable: Path) -> Path:
    """A directory of another user's, without login."""
    directory = reachable / "pool"
    directory.mkdir(mode=0o700)
    os.chown(directory, SOMEBODY, SOMEBODY)
    return directory


@pytest.fixture
def secret(reachable: Path) -> Iterator[Path]:
    path = reachable / "secret"
    path.write_bytes(SECRET)
    path.chmod(0o600)
    yield path
    assert path.read_bytes() == SECRET
    assert path.stat().st_uid == os.geteuid()


ACTIONS: dict[str, Callable[[Path], object]] = {
    "open": lambda path: poolfiles.open_file(path, os.O_RDWR | os.O_CREAT),
    "read": poolfiles.read,
    "check": poolfiles.check,
}


@as_root
@pytest.mark.parametrize("action", ACTIONS)
def test_a_link_is_refused_by_name(theirs: Path, secret: Path, action: str) -> None:
    (theirs / "lock").symlink_to(secret)
    with pytest.raises(OSError, match="is a symbolic link") as refusal:
        ACTIONS[action](theirs / "lock")
    assert refusal.value.filename == str(theirs / "lock")


@as_root
@pytest.mark.parametrize("action", ACTIONS)
def test_another_name_of_a_file_of_root_s_is_refused(
    theirs: Path, secret: Path, action: str
) -> None:
    # Even one that its owner may open.
    (theirs / "lock").hardlink_to(secret)
    secret.chmod(0o666)
    with pytest.raises(OSError, match=f"chown {SOMEBODY} {theirs / 'lock'}"):
        ACTIONS[action](theirs / "lock")


@pytest.mark.parametrize("action", ACTIONS)
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path, action: str) -> None:
    os.mkfifo(tmp_path / "lock")
    with pytest.raises(OSError, match="no regular file"):
        ACTIONS[action](tmp_path / "lock")


@as_root
def test_a_link_on_the_way_is_not_followed(reachable: Path, theirs: Path) -> None:
    (reachable / "link").symlink_to(theirs)
    (theirs / "lock").touch()
    with pytest.raises(OSError, match="Not a directory"):
        poolfiles.read(reachable / "link" / "lock")


@as_root
def test_what_root_makes_is_the_directory_owner_s(theirs: Path) -> None:
    os.close(poolfiles.open_file(theirs / "lock", os.O_RDWR | os.O_CREAT))
    poolfiles.replace(theirs / "losses.json", b"{}")
    os.close(poolfiles.make_private(theirs / "run"))
    for name in ("lock", "losses.json", "run"):
        found = (theirs / name).stat()
        assert (found.st_uid, found.st_gid) == (SOMEBODY, SOMEBODY)
        assert not stat.S_IMODE(found.st_mode) & 0o077
    assert poolfiles.read(theirs / "losses.json") == b"{}"
    # And root is root again.
    (theirs.parent / "own").touch()
    assert (theirs.parent / "own").stat().st_uid == 0


@as_root
def test_a_file_that_locks_the_owner_out_is_named(theirs: Path) -> None:
    (theirs / "lock").touch(mode=0o600)
    with pytest.raises(PermissionError) as refusal:
        poolfiles.open_file(theirs / "lock", os.O_RDWR)
    assert refusal.value.strerror == (
        "Permission denied: it belongs to user 0, and its directory to user 4711: if it is the "
        f"pool's, 'chown 4711 {theirs / 'lock'}' as root"
    )


@as_root
def test_replacing_and_removing_touch_the_link_alone(theirs: Path, secret: Path) -> None:
    for name in ("losses.json", "recent-0", "old"):
        (theirs / name).symlink_to(secret)
    poolfiles.replace(theirs / "losses.json", b"{}")
    assert not (theirs / "losses.json").is_symlink()
    poolfiles.remove(theirs / "recent-0")
    poolfiles.remove(theirs / "recent-0")
    (theirs / "log").write_bytes(b"said")
    poolfiles.move(theirs / "log", "old")
    assert (theirs / "old").read_bytes() == b"said"
    assert sorted(os.listdir(theirs)) == ["losses.json", "old"]


@as_root
def test_a_planted_run_directory_is_refused(theirs: Path, secret: Path) -> None:
    (theirs / "run").symlink_to(secret.parent)
    with pytest.raises(OSError, match="symbolic link"):
        poolfiles.make_private(theirs / "run")
    (theirs / "run").unlink()
    (theirs / "run").mkdir()
    with pytest.raises(OSError, match="belongs to user 0: have it removed"):
        poolfiles.make_private(theirs / "run")


@as_root
def test_the_rights_are_one_thread_s(theirs: Path, secret: Path) -> None:
    with ThreadPoolExecutor(1) as other:
        # It is there before.
        other.submit(int).result()
        with poolfiles.acting_as_owner(theirs):
            with pytest.raises(PermissionError):
                secret.read_bytes()
            assert other.submit(secret.read_bytes).result() == SECRET
            with poolfiles.acting_as_owner(theirs):
                pass
            with pytest.raises(PermissionError):
                secret.read_bytes()
    assert secret.read_bytes() == SECRET


@as_root
def test_a_data_device_that_the_owner_may_not_open(theirs: Path) -> None:
    with (
        pytest.raises(DeviceError, match="/dev/x: no: user 4711, whose pool it is, may not open"),
        poolfiles.opening_device(theirs),
    ):
        raise DeviceError("data device /dev/x: no", 13)
    with (
        pytest.raises(DeviceError, match=r"no$"),
        poolfiles.opening_device(theirs.parent),
    ):
        raise DeviceError("data device /dev/x: no", 13)


def test_a_directory_that_is_ours_alone_may_hold_anybody_s_files(tmp_path: Path) -> None:
    (tmp_path / "lock").write_bytes(b"x")
    if os.geteuid() == 0:
        os.chown(tmp_path / "lock", SOMEBODY, -1)
    assert poolfiles.read(tmp_path / "lock") == b"x"
    if os.geteuid() == 0:
        tmp_path.chmod(0o777)
        with pytest.raises(OSError, match="belongs to user 4711"):
            poolfiles.read(tmp_path / "lock")


@as_root
def test_a_file_that_its_owner_may_not_open(theirs: Path) -> None:
    (theirs / "lock").touch(mode=0)
    os.chown(theirs / "lock", SOMEBODY, -1)
    with pytest.raises(PermissionError, match=f"user {SOMEBODY}, whose directory it is, may not"):
        poolfiles.open_file(theirs / "lock", os.O_RDWR)
    assert not poolfiles.is_anothers(theirs / "lock")
    os.chown(theirs / "lock", 0, -1)
    assert poolfiles.is_anothers(theirs / "lock")
    assert not poolfiles.is_anothers(theirs / "none")
