"""Pools on block devices: whose a device is, how old it is, and where its mark lies."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PoolMaker
from tests.integration.cli.outcomes import MIB, fill, refused
from tests.support.loop import Loops, loop_devices
from tests.support.pools import PoolRig
from tests.support.tools import run
from thinmeta.store.lmdb import LmdbStore
from thinpoold import device_mark, pool_record

SIZE = 32 * MIB
BLOCK = 64 << 10


@pytest.fixture
def loops() -> Iterator[Loops]:
    with loop_devices() as made:
        yield made


class Disk:
    """A block device that has one name, whichever device it is."""

    def __init__(self, loops: Loops, directory: Path) -> None:
        self._loops = loops
        self.backing = directory / "backing"
        self.path = directory / "disk"
        self.device = loops.make(self.backing, SIZE)
        self.path.symlink_to(self.device)

    def copy(self, name: str) -> Path:
        """A block device with what this one holds now."""
        other = self.backing.with_name(name)
        run("dd", f"if={self.path}", f"of={other}", "bs=1M", "conv=sparse")
        os.truncate(other, self.backing.stat().st_size)
        return self._loops.attach(other)

    def put(self, device: Path) -> None:
        """Have another device under the name."""
        self.path.unlink()
        self.path.symlink_to(device)

    def resize(self, size: int) -> None:
        self._loops.resize(self.device, self.backing, size)

    def mark(self) -> device_mark.DeviceMark | None:
        """What the end of the device says."""
        with self.path.open("rb") as file:
            at = device_mark.place(file.seek(0, os.SEEK_END))
            assert at is not None
            file.seek(at)
            return device_mark.unpack(file.read(device_mark.MARK_BYTES), at)


@pytest.fixture
def disk(loops: Loops, tmp_path: Path) -> Disk:
    return Disk(loops, tmp_path)


@pytest.fixture
def rig(disk: Disk, new_pool: PoolMaker) -> PoolRig:
    """A stopped pool on the disk, with a volume that holds something."""
    rig = new_pool("16M", data=str(disk.path))
    rig.create("a", "8M")
    fill(rig, "a", MIB)
    rig.stop()
    return rig


def holds(rig: PoolRig, byte: bytes) -> bool:
    with rig.connect("a") as client:
        return client.read(0, MIB) == byte * MIB


def mark_problem(rig: PoolRig, says: str) -> None:
    """`check` finds that the data device is not right, and nothing else."""
    done = rig.run("check", "--json")
    assert done.returncode == 1
    (problem,) = json.loads(done.stdout)["errors"]
    assert problem["kind"] == "mark"
    assert says in problem["message"]
    assert "is not the one that its metadata goes with" in done.stderr
    assert "is damaged" not in done.stderr


def test_the_device_of_a_stopped_pool_is_refused(disk: Disk, rig: PoolRig, tmp_path: Path) -> None:
    other = PoolRig(tmp_path / "d2")
    uuid = rig.status()["uuid"]
    said = refused(
        other, "init", str(other.directory), "--data", str(disk.path), says="belongs to the pool"
    )
    assert uuid in said
    assert "--force" in said
    assert not other.directory.exists()
    assert rig.check() == []
    rig.start()
    assert holds(rig, b"x")


def test_the_device_of_a_running_pool_is_refused_with_force_too(
    disk: Disk, rig: PoolRig, tmp_path: Path
) -> None:
    rig.start()
    other = PoolRig(tmp_path / "d2")
    refused(
        other,
        *("init", str(other.directory), "--force", "--data", str(disk.path)),
        says="disk",
    )
    assert holds(rig, b"x")


def test_force_takes_the_device_of_another_pool(
    disk: Disk, rig: PoolRig, new_pool: PoolMaker
) -> None:
    taker = new_pool("16M", start=False, data=str(disk.path), force=True)
    refused(rig, "start", says="belongs to another pool")
    refused(rig, "create", "b", "1M", says="belongs to another pool")
    mark_problem(rig, "belongs to another pool")
    refused(rig, "check", "--accept-data", says="belongs to another pool")
    rig.damaged = True
    taker.create("a", "1M")
    assert taker.check() == []


def test_a_device_without_a_signature_that_holds_something_is_refused(
    disk: Disk, new_pool: PoolMaker, tmp_path: Path
) -> None:
    with disk.path.open("r+b") as file:
        file.seek(20 * MIB)
        file.write(b"precious" * 4096)
    fresh = PoolRig(tmp_path / "p")
    refused(
        fresh,
        *("init", str(fresh.directory), "--data", str(disk.path)),
        says="is not ours: it holds data, at byte ",
    )
    assert disk.mark() is None
    taken = new_pool("16M", data=str(disk.path), force=True)
    assert taken.check() == []


def test_an_older_copy_in_its_place_is_refused(disk: Disk, rig: PoolRig) -> None:
    older = disk.copy("older")
    rig.start()
    fill(rig, "a", MIB, byte=b"y")
    rig.stop()
    disk.put(older)
    said = refused(rig, "start", says="is an older copy than the pool's metadata")
    assert "is of life 2, the metadata of life 3" in said
    refused(rig, "create", "b", "1M", says="is an older copy")
    mark_problem(rig, "is an older copy")
    disk.put(disk.device)
    assert rig.check() == []
    rig.start()
    assert holds(rig, b"y")


def test_an_older_copy_can_be_accepted(disk: Disk, rig: PoolRig) -> None:
    older = disk.copy("older")
    rig.start()
    refused(rig, "check", "--accept-data", says="'thinpool stop'")
    rig.stop()
    disk.put(older)
    assert "has its mark" in rig.cli("check", "--accept-data")
    rig.start()
    assert holds(rig, b"x")
    rig.stop()
    # The other is the older one now.
    disk.put(disk.device)
    mark_problem(rig, "is an older copy")
    disk.put(older)


def test_both_sides_of_a_pool_go_back_together(disk: Disk, rig: PoolRig, tmp_path: Path) -> None:
    older = disk.copy("older")
    run("cp", "-a", str(rig.directory), str(tmp_path / "kept"))
    rig.start()
    fill(rig, "a", MIB, byte=b"y")
    rig.stop()
    shutil.rmtree(rig.directory)
    run("cp", "-a", str(tmp_path / "kept"), str(rig.directory))
    mark_problem(rig, "is a newer copy")
    disk.put(older)
    rig.start()
    assert holds(rig, b"x")


def test_the_device_of_another_pool_in_its_place_is_refused(
    disk: Disk, rig: PoolRig, loops: Loops, new_pool: PoolMaker, tmp_path: Path
) -> None:
    device = loops.make(tmp_path / "another", SIZE)
    other = new_pool("16M", start=False, data=str(device))
    disk.put(device)
    said = refused(rig, "start", says="belongs to another pool")
    assert other.status()["uuid"] in said
    mark_problem(rig, "belongs to another pool")
    blank = loops.make(tmp_path / "blank", SIZE)
    disk.put(blank)
    refused(rig, "start", says="it has not its mark")
    mark_problem(rig, "it has not its mark")
    disk.put(disk.device)


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("cache", ["page", "bufio"])
def test_growing_moves_the_mark_to_the_new_end(
    disk: Disk, new_pool: PoolMaker, running: bool, cache: str, tmp_path: Path
) -> None:
    rig = new_pool("16M", data=str(disk.path), cache=cache, on_full="error")
    rig.create("a", "128M")
    if not running:
        rig.stop()
    disk.resize(2 * SIZE)
    said = refused(rig, "grow", "--size", "64M", says="the most that does is 65472K")
    assert "has 64M, and its last 4K are for the pool's mark" in said
    rig.cli("grow", "--size", "65472K")
    before = disk.mark()
    assert before is not None
    assert rig.check() == []
    if not running:
        rig.start()
    # Over the old place, and to the last block.
    fill(rig, "a", 65472 << 10)
    rig.stop()
    after = disk.mark()
    assert after is not None
    assert after.life == before.life + (not running)
    assert rig.check() == []
    other = PoolRig(tmp_path / "d2")
    refused(
        other, "init", str(other.directory), "--data", str(disk.path), says="belongs to the pool"
    )
    rig.start()
    with rig.connect("a") as client:
        for offset in range(0, 65472 << 10, MIB):
            count = min(MIB, (65472 << 10) - offset)
            assert client.read(offset, count) == b"x" * count


def test_a_device_that_has_grown_is_known_and_marked_at_its_end(
    disk: Disk, rig: PoolRig, tmp_path: Path
) -> None:
    disk.resize(2 * SIZE)
    assert disk.mark() is None
    assert rig.check() == []
    rig.create("b", "1M")
    rig.start()
    assert rig.check() == []
    assert disk.mark() is not None
    rig.stop()
    other = PoolRig(tmp_path / "d2")
    refused(
        other, "init", str(other.directory), "--data", str(disk.path), says="belongs to the pool"
    )


def test_a_pool_leaves_room_for_its_mark(disk: Disk, tmp_path: Path) -> None:
    rig = PoolRig(tmp_path / "p")
    said = refused(
        rig,
        *("init", str(rig.directory), "--data", str(disk.path), "--size", "32M"),
        says="the most that does is 32704K",
    )
    assert "has 32M" in said
    assert disk.mark() is None
    rig.cli("init", str(rig.directory), "--data", str(disk.path))
    assert rig.status()["data"]["size"] == SIZE - BLOCK
    assert disk.mark() is not None
    assert rig.dispose() == []


def test_a_pool_from_before_gets_its_mark_at_its_first_start(disk: Disk, rig: PoolRig) -> None:
    forget(rig)
    with disk.path.open("r+b") as file:
        file.seek(SIZE - device_mark.MARK_BYTES)
        file.write(bytes(device_mark.MARK_BYTES))
    assert rig.check() == []
    rig.start()
    mark = disk.mark()
    assert mark is not None
    assert mark.life == 1
    assert rig.check() == []
    assert holds(rig, b"x")


def test_an_older_copy_of_a_file_is_refused(new_pool: PoolMaker) -> None:
    rig = new_pool("16M")
    rig.create("a", "8M")
    fill(rig, "a", MIB)
    rig.stop()
    data, older = rig.directory / "data", rig.directory / "older"
    run("cp", "-a", str(data), str(older))
    rig.start()
    rig.stop()
    data.rename(rig.directory / "newer")
    run("cp", "-a", str(older), str(data))
    refused(rig, "start", says="is an older copy than the pool's metadata")
    mark_problem(rig, "is an older copy")
    # Without attributes, as tar and scp make it.
    data.unlink()
    run("cp", str(older), str(data))
    refused(rig, "start", says="it has not its mark")
    rig.cli("check", "--accept-data")
    rig.start()
    assert holds(rig, b"x")


def forget(rig: PoolRig) -> None:
    """Have the metadata as it was before there were marks."""
    store = LmdbStore(rig.directory / "metadata.lmdb")
    value = store.record(pool_record.TABLE, pool_record.KEY)
    assert value is not None
    known = json.loads(value)
    del known["data_mark"]
    known["format"] = 1
    packed = json.dumps(known).encode()
    store.commit({}, [], {(pool_record.TABLE, pool_record.KEY): packed})
    store.close()
