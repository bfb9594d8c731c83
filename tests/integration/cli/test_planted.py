"""Root's commands on another user's pool: what its owner planted there, and what root leaves."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.cli.outcomes import MIB, refused
from tests.support.pools import BIN, PoolRig
from tests.support.tools import run
from thinpoold.paths import METADATA_FILE

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root has others' pools")

SOMEBODY = 4711
SECRET = "root's alone\n"
AS_OWNER = ("setpriv", f"--reuid={SOMEBODY}", f"--regid={SOMEBODY}", "--clear-groups")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that any user can reach, which those of pytest are not."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(os.path.realpath(name))


@pytest.fixture
def secret(place: Path) -> Iterator[Path]:
    path = place / "secret"
    path.write_text(SECRET)
    path.chmod(0o600)
    yield path
    assert path.read_text() == SECRET
    found = path.stat()
    assert (found.st_uid, found.st_mode & 0o777) == (0, 0o600)


@pytest.fixture
def theirs(place: Path) -> Iterator[PoolRig]:
    """A stopped pool that root made in a directory of somebody else's, with a volume."""
    directory = place / "pool"
    directory.mkdir(mode=0o700)
    os.chown(directory, SOMEBODY, SOMEBODY)
    rig = PoolRig(directory)
    rig.init("64M")
    rig.create("v", "1M")
    yield rig
    complaints = rig.dispose()
    assert not complaints, complaints


def plant(rig: PoolRig, name: str, target: Path) -> Path:
    """Put a link to `target` in the place of a file, as the pool's owner can."""
    path = rig.directory / name
    if path.exists():
        path.rename(path.with_name(f"{name}.aside"))
    path.symlink_to(target)
    return path


def take_back(path: Path) -> None:
    path.unlink()
    aside = path.with_name(f"{path.name}.aside")
    if aside.exists():
        aside.rename(path)


@pytest.mark.parametrize(
    "name", ["lock", METADATA_FILE, f"{METADATA_FILE}-lock", "ledger", "recent-0", "recent-1"]
)
def test_a_link_is_not_followed_and_named(theirs: PoolRig, secret: Path, name: str) -> None:
    planted = plant(theirs, name, secret)
    for words in (("create", "w", "1M"), ("start",), ("list",)):
        done = theirs.run(*words)
        if words == ("list",) and done.returncode == 0:
            continue  # Who looks need not open it.
        assert done.returncode == 1, (words, done.stdout)
        assert done.stderr.count("\n") == 1
        assert str(planted) in done.stderr
        assert "symbolic link" in done.stderr
    take_back(planted)
    assert list(theirs.volumes()) == ["v"]


def test_nor_one_in_the_place_of_the_log(theirs: PoolRig, secret: Path) -> None:
    planted = plant(theirs, "thinpoold.log", secret)
    refused(theirs, "start", says=f"{planted}: is a symbolic link")
    take_back(planted)


def test_nor_one_in_the_place_of_the_data(theirs: PoolRig, secret: Path) -> None:
    planted = plant(theirs, "data", secret)
    refused(theirs, "create", "w", "1M", says=f"user {SOMEBODY}, whose pool it is, may not open it")
    take_back(planted)


def test_nor_a_link_in_the_place_of_the_run_directory(theirs: PoolRig, place: Path) -> None:
    elsewhere = place / "elsewhere"
    elsewhere.mkdir(mode=0o755)
    (elsewhere / "thinpoold.pid").write_text(SECRET)
    planted = plant(theirs, "run", elsewhere)
    refused(theirs, "start", says=f"{planted}: is a symbolic link")
    assert elsewhere.stat().st_mode & 0o777 == 0o755
    assert [one.read_text() for one in elsewhere.iterdir()] == [SECRET]
    take_back(planted)


def test_nor_a_link_in_a_run_directory(theirs: PoolRig, secret: Path) -> None:
    run_dir = theirs.directory / "run"
    run_dir.mkdir(mode=0o700)
    os.chown(run_dir, SOMEBODY, SOMEBODY)
    for name in ("thinpoold.pid", "nbd.sock"):
        (run_dir / name).symlink_to(secret)
    theirs.start()
    assert (run_dir / "thinpoold.pid").read_text() == f"{theirs.pid}\n"


def test_what_root_leaves_is_the_owner_s(theirs: PoolRig) -> None:
    theirs.start()
    with theirs.connect("v") as client:
        client.write(0, b"x" * 4096)
        client.flush()
    run_dir = theirs.directory / "run"
    for path in (*theirs.directory.iterdir(), *run_dir.iterdir()):
        assert path.lstat().st_uid == SOMEBODY, path
    # While root serves it, and afterwards, its owner can do what owners can.
    assert "v" in theirs.cli("list", prefix=AS_OWNER)
    run(str(BIN / "thinpool"), "stop", env=theirs.env, prefix=AS_OWNER)
    theirs._forget()
    theirs.cli("create", "w", "1M", prefix=AS_OWNER)
    assert theirs.volumes()["v"]["mapped"] == MIB // 16


def test_a_file_that_locks_the_owner_out_is_named(theirs: PoolRig) -> None:
    beside = theirs.directory / f"{METADATA_FILE}-lock"
    os.chown(beside, 0, 0)
    says = f"{beside}: Permission denied: it belongs to user 0"
    for prefix in ((), AS_OWNER):
        done = theirs.run("check", prefix=prefix)
        assert done.returncode == 1
        assert says in done.stderr
        assert f"chown {SOMEBODY} {beside}" in done.stderr
    os.chown(beside, SOMEBODY, SOMEBODY)


def test_making_a_pool_follows_no_link_either(theirs: PoolRig, place: Path, secret: Path) -> None:
    for number, name in enumerate(("lock", f"{METADATA_FILE}.new-lock", f"{METADATA_FILE}.new")):
        directory = place / f"p{number}"
        directory.mkdir(mode=0o700)
        (directory / name).symlink_to(secret)
        os.chown(directory, SOMEBODY, SOMEBODY)
        done = theirs.run("init", str(directory), "--size", "64M", "-p", str(directory))
        if name == "lock":
            assert f"{directory / name}: is a symbolic link" in done.stderr
        else:
            assert done.returncode == 0, done.stderr
            assert not (directory / name).is_symlink()


def test_a_pool_that_its_owner_cannot_reach(theirs: PoolRig, place: Path) -> None:
    """Root's alone is what it lies in: a backup that was put back, say."""
    place.chmod(0o700)
    theirs.start()
    with theirs.connect("v") as client:
        client.write(0, b"x" * 4096)
        client.flush()
    theirs.stop()
    theirs.create("w", "1M")
    assert theirs.inspect() == []
    for path in theirs.directory.iterdir():
        assert path.lstat().st_uid == SOMEBODY, path
    data = theirs.directory / "data"
    os.chown(data, 0, 0)
    says = f"data device {data}: Permission denied: user {SOMEBODY}, whose pool it is"
    refused(theirs, "create", "x", "1M", says=says)
    os.chown(data, SOMEBODY, SOMEBODY)
