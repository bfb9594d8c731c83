"""Pools where nothing can be written: they are looked at, and `start --read-only` serves them."""

import errno
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import PoolMaker
from tests.integration.cli.outcomes import MIB, refused
from tests.support.client import NbdClient, NbdError
from tests.support.loop import Loops, loop_devices
from tests.support.pools import PoolRig
from tests.support.readonly import PLACES, contents
from tests.support.thin import thin_check, thin_dump
from tests.support.tools import run, run_json
from tests.unit.data.test_recent import die
from thinpoold import admin, discard, lock
from thinpoold.errors import PoolLocked
from thinpoold.paths import pool_paths
from thinpoold.pool import Pool
from thinpoold.volume import Volume

BLOCK = 64 << 10
SIZE = 8 * MIB + 512

LOOKS: tuple[tuple[str, ...], ...] = (
    ("status",),
    ("list",),
    ("tree",),
    ("info", "v"),
    ("get",),
    ("get", "--volume", "v"),
    ("uri", "v"),
    ("check",),
    ("delete", "--dry-run", "s"),
)

CHANGES: tuple[tuple[str, ...], ...] = (
    ("create", "n", "1M"),
    ("snapshot", "v", "n"),
    ("resize", "v", "16M"),
    ("rename", "v", "n"),
    ("delete", "s"),
    ("rollback", "v", "s"),
    ("set", "low-water=5"),
    ("set", "--volume", "v", "iops=5"),
    ("grow", "--size", "128M"),
)


@pytest.fixture
def left(request: pytest.FixtureRequest, new_pool: PoolMaker) -> tuple[PoolRig, dict[str, bytes]]:
    """A pool, `stopped` or `killed`, and what its volumes hold by all that was answered."""
    rig = new_pool("64M", start=False)
    rig.create("v", SIZE)
    model = {"v": bytearray(SIZE)}
    rnd = random.Random(7)
    # Not a daemon, which may be killed amid a commit.
    pool = Pool.open(rig.directory)
    volume = pool.open_volume("v")
    _work(volume, model["v"], rnd)
    admin.snapshot(pool, [["v", "s"]])
    model["s"] = bytearray(model["v"])
    _work(volume, model["v"], rnd)
    pool.core.sync()
    _work(volume, model["v"], rnd)
    die(pool) if request.param == "killed" else pool.close()
    return rig, {name: bytes(octets) for name, octets in model.items()}


def _work(volume: Volume, model: bytearray, rnd: random.Random) -> None:
    for _ in range(8):
        at = rnd.randrange(0, SIZE - 3 * BLOCK)
        octets = rnd.randbytes(rnd.randrange(1, 3 * BLOCK))
        volume.pwrite(octets, at)
        model[at : at + len(octets)] = octets
    at = rnd.randrange(0, SIZE // BLOCK - 2) * BLOCK
    discard.trim(volume, at, 2 * BLOCK)
    model[at : at + 2 * BLOCK] = bytes(2 * BLOCK)


@contextmanager
def served(directory: Path, *options: str) -> Iterator[PoolRig]:
    """A daemon that serves read-only, and what it leaves removed."""
    rig = PoolRig(directory)
    rig.start("--read-only", *options)
    run_dir = Path(rig.status()["control_socket"]).parent
    try:
        yield rig
    finally:
        rig.stop()
        assert sorted(os.listdir(run_dir)) == ["lock", "thinpoold.log"]
        shutil.rmtree(run_dir)


@pytest.mark.parametrize(
    ("left", "place"),
    [("stopped", "mounted"), *(("killed", place) for place in PLACES)],
    indirect=["left"],
)
def test_it_can_be_looked_at_and_served(
    left: tuple[PoolRig, dict[str, bytes]], place: str, tmp_path: Path
) -> None:
    rig, model = left
    with PLACES[place](rig.directory, tmp_path / "there") as directory:
        before = contents(directory)
        there = PoolRig(directory)
        for words in LOOKS:
            there.cli(*words)
        assert there.status()["mode"] == "read-only"
        assert there.status()["served_read_only"] is False
        for words in (CHANGES[0], ("start",)):
            said = refused(there, *words, says="cannot be changed: ")
            assert "start --read-only" in said
        image = tmp_path / "metadata"
        there.cli("export-metadata", str(image))
        with served(directory) as reader:
            _compare(reader, model, tmp_path)
            _refuse_writes(reader)
            refused(reader, *CHANGES[0], says="the pool is read-only")
            assert thin_check(image) == []
            mapped = {int(one["id"]): one["mapped"] for one in reader.volumes().values()}
            exported = thin_dump(image).devices.items()
            assert {dev: len(one.mappings) * BLOCK for dev, one in exported} == mapped
        assert contents(directory) == before
        assert there.check() == []


def _compare(rig: PoolRig, model: dict[str, bytes], scratch: Path) -> None:
    """Every volume, copied whole by a client, holds what was answered."""
    for name, expected in model.items():
        copy = scratch / "copy"
        run("nbdcopy", rig.uri(name), str(copy))
        assert copy.read_bytes() == expected, name
        (export,) = run_json("nbdinfo", "--json", rig.uri(name))["exports"]
        assert export["is_read_only"]
        assert not export["can_trim"]
        assert not export["can_zero"]


def _refuse_writes(rig: PoolRig) -> None:
    """A client that takes no notice changes nothing."""
    with NbdClient(rig.socket, "v", strict=False) as client:
        changes: list[Callable[[], None]] = [
            lambda: client.write(0, b"x"),
            lambda: client.trim(0, BLOCK),
            lambda: client.zero(0, BLOCK),
        ]
        for change in changes:
            with pytest.raises(NbdError) as caught:
                change()
            assert caught.value.errno in (errno.EPERM, errno.EROFS, errno.EINVAL)


def _refuse_changes(rig: PoolRig) -> None:
    """An administrator changes nothing."""
    for change in CHANGES:
        refused(rig, *change, says="the pool is read-only: it was started with --read-only")
    status = rig.status()
    assert (status["mode"], status["served_read_only"]) == ("read-only", True)
    shown = rig.cli("status")
    assert "read-only: it was started with --read-only\n" in shown
    for words in LOOKS:
        rig.cli(*words)


@pytest.mark.parametrize("left", ["killed"], indirect=True)
def test_a_pool_that_may_be_written_is_left_as_it_is(
    left: tuple[PoolRig, dict[str, bytes]], tmp_path: Path
) -> None:
    rig, model = left
    before = contents(rig.directory)
    with served(rig.directory) as reader:
        _compare(reader, model, tmp_path)
        _refuse_writes(reader)
        _refuse_changes(reader)
        refused(rig, "start", says=f"is served read-only, by process {reader.pid}")
        refused(rig, "start", "--read-only", says=f"is served read-only, by process {reader.pid}")
    after = contents(rig.directory)
    # `check` notes in it what it reads.
    for one in (before, after):
        del one["metadata.lmdb-lock"]
    assert after == before
    rig.start()
    assert rig.status()["mode"] == "write"
    with rig.connect("v") as client:
        assert client.read(0, SIZE) == model["v"]


def test_there_may_be_several_and_nobody_writes_meanwhile(
    new_pool: PoolMaker, tmp_path: Path
) -> None:
    rig = new_pool("64M")
    rig.create("v", "1M")
    rig.stop()
    with (
        PLACES["mounted"](rig.directory, tmp_path / "there") as directory,
        served(directory) as one,
        served(rig.directory) as two,
    ):
        assert one.pid != two.pid
        for reader in (one, two):
            with reader.connect("v") as client:
                assert client.read(0, 512) == bytes(512)
        for reader in (one, two):
            with pytest.raises(PoolLocked, match="is being read") as caught:
                os.close(lock.acquire(pool_paths(rig.directory), "x"))
            assert f"by process {', '.join(map(str, sorted((one.pid, two.pid))))}, " in str(
                caught.value
            )
            refused(reader, "create", "w", "1M", says="the pool is read-only")
    rig.start()


def test_a_pool_that_runs_is_not_served_a_second_time(new_pool: PoolMaker, tmp_path: Path) -> None:
    rig = new_pool("64M")
    rig.create("v", "1M")
    refused(rig, "start", "--read-only", says=f"locked by process {rig.pid}")
    with PLACES["mounted"](rig.directory, tmp_path / "there") as directory:
        there = PoolRig(directory)
        refused(there, "start", "--read-only", says=f"locked by process {rig.pid}")
        # The daemon is reached by its socket, and its metadata is not read behind its back.
        assert there.volumes().keys() == {"v"}
        there.create("w", "1M")
        refused(there, "check", says=f"is in use by process {rig.pid}")


def test_what_is_told_of_a_dead_daemons_pool_is_the_last_commit(new_pool: PoolMaker) -> None:
    rig = new_pool("64M", start=False)
    rig.create("v", "1M")
    says = "this is the last commit: 1 change that a daemon answered after it"
    pool = Pool.open(rig.directory)
    pool.open_volume("v").pwrite(b"x", 0)
    die(pool)
    for words in (("list",), ("tree",), ("info", "v"), ("status",)):
        done = rig.run(*words)
        assert (done.returncode, says in done.stderr) == (0, True), done.stderr
    assert rig.volumes()["v"]["mapped"] == 0
    rig.start()
    assert rig.volumes()["v"]["mapped"] == BLOCK
    assert rig.run("list").stderr == ""


def test_a_second_pool_is_none_of_its_business(new_pool: PoolMaker) -> None:
    first, second = new_pool("64M", start=False), new_pool("64M", start=False)
    with served(first.directory) as one, served(second.directory) as two:
        assert one.socket != two.socket
        one.kill()
        assert first.status()["running"] is False
        assert second.status()["pid"] == two.pid
        # What the dead one left is in nobody's way.
        one.start("--read-only")


def test_without_a_lock_file_it_is_not_looked_at(new_pool: PoolMaker, tmp_path: Path) -> None:
    rig = new_pool("64M", start=False)
    (rig.directory / "lock").unlink()
    with PLACES["mounted"](rig.directory, tmp_path / "there") as directory:
        refused(PoolRig(directory), "status", says="put an empty file there")


@pytest.fixture
def loops() -> Iterator[Loops]:
    with loop_devices() as made:
        yield made


def test_a_write_protected_disk(loops: Loops, new_pool: PoolMaker, tmp_path: Path) -> None:
    backing, disk = tmp_path / "backing", tmp_path / "disk"
    disk.symlink_to(loops.make(backing, 32 * MIB))
    rig = new_pool("16M", data=str(disk))
    rig.create("v", "1M")
    with rig.connect("v") as client:
        client.write(0, b"x" * MIB)
    rig.stop()
    disk.unlink()
    disk.symlink_to(loops.attach(backing, "--read-only"))
    assert rig.volumes()["v"]["mapped"] == MIB
    assert rig.check() == []
    for words in (("start",), ("create", "w", "1M")):
        refused(rig, *words, says="'thinpool start --read-only' does not write it")
    with served(rig.directory) as reader, reader.connect("v") as client:
        assert client.read(0, MIB) == b"x" * MIB


def test_a_cache_that_cannot_be_had_there(new_pool: PoolMaker, tmp_path: Path) -> None:
    rig = new_pool("64M", start=False)
    rig.cli("set", "cache=bufio")
    with (
        PLACES["packed"](rig.directory, tmp_path / "there") as directory,
        served(directory) as reader,
    ):
        # squashfs knows no O_DIRECT.
        assert reader.status()["cache"] == "page"
