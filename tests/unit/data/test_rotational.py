"""From a device number down to a disk, over a made-up /sys."""

import os
import stat
from pathlib import Path

import pytest

from thinpoold.rotational import is_rotational

DISK, PARTITION, MAPPED, LOOP, RAID = ((8, 0), (8, 1), (253, 0), (7, 0), (9, 0))


class Sys:
    """A /sys with disks."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "dev/block").mkdir(parents=True)

    def add(
        self,
        number: tuple[int, int],
        name: str,
        *,
        rotational: str | None = None,
        partition_of: str = "",
        slaves: tuple[str, ...] = (),
        backing: Path | None = None,
    ) -> None:
        path = self.root / "devices" / partition_of / name
        path.mkdir(parents=True)
        (self.root / f"dev/block/{number[0]}:{number[1]}").symlink_to(path)
        if partition_of:
            (path / "partition").write_text("1\n")
        if rotational is not None:
            (path / "queue").mkdir()
            (path / "queue/rotational").write_text(rotational + "\n")
        (path / "slaves").mkdir()
        for slave in slaves:
            (path / "slaves" / Path(slave).name).symlink_to(self.root / "devices" / slave)
        if backing is not None:
            (path / "loop").mkdir()
            (path / "loop/backing_file").write_text(f"{backing}\n")


def status(*, block: tuple[int, int] | None = None, on: tuple[int, int] = (0, 0)) -> os.stat_result:
    """A block device, or a file on one."""
    mode = stat.S_IFBLK if block else stat.S_IFREG
    fields = (mode, 0, os.makedev(*on), 0, 0, 0, 0, 0, 0, 0)
    return os.stat_result(fields, {"st_rdev": os.makedev(*(block or (0, 0)))})


@pytest.fixture
def sys(tmp_path: Path) -> Sys:
    return Sys(tmp_path / "sys")


@pytest.mark.parametrize("turns", ["0", "1"])
def test_a_disk_and_a_partition_of_it(sys: Sys, turns: str) -> None:
    sys.add(DISK, "sda", rotational=turns)
    sys.add(PARTITION, "sda1", partition_of="sda")
    expected = turns == "1"
    assert is_rotational(status(block=DISK), sys.root) is expected
    assert is_rotational(status(block=PARTITION), sys.root) is expected
    assert is_rotational(status(on=PARTITION), sys.root) is expected


@pytest.mark.parametrize(("first", "second"), [("0", "0"), ("0", "1"), ("1", "0")])
def test_what_is_made_of_disks_turns_when_one_does(sys: Sys, first: str, second: str) -> None:
    sys.add(DISK, "sda", rotational=first)
    sys.add(PARTITION, "sda1", partition_of="sda")
    sys.add((8, 16), "sdb", rotational=second)
    # What device mapper says of itself does not count.
    sys.add(RAID, "md0", rotational="1", slaves=("sda/sda1", "sdb"))
    sys.add(MAPPED, "dm-0", rotational="1", slaves=("md0",))
    assert is_rotational(status(on=MAPPED), sys.root) is ("1" in (first, second))


def test_a_loop_device_is_its_file(sys: Sys, tmp_path: Path) -> None:
    backing = tmp_path / "image"
    backing.touch()
    under = os.stat(backing).st_dev
    if os.major(under) == 0:
        pytest.skip("the temporary directory is on no block device")
    sys.add((os.major(under), os.minor(under)), "disk", rotational="1")
    sys.add(LOOP, "loop0", rotational="0", backing=backing)
    assert is_rotational(status(block=LOOP), sys.root)


def test_a_file_system_with_a_number_of_its_own_is_found_by_its_mount(sys: Sys) -> None:
    mounts = (
        "36 35 0:45 / /mnt rw - btrfs /dev/does-not-exist rw\n37 35 0:46 / /x rw - tmpfs tmpfs rw"
    )
    assert not is_rotational(status(on=(0, 45)), sys.root, mounts)
    assert not is_rotational(status(on=(0, 46)), sys.root, mounts)
    assert not is_rotational(status(on=(0, 99)), sys.root, mounts)


def test_an_overlay_is_where_it_is_written(sys: Sys, tmp_path: Path) -> None:
    under = os.stat(tmp_path).st_dev
    if os.major(under) == 0:
        pytest.skip("the temporary directory is on no block device")
    sys.add((os.major(under), os.minor(under)), "disk", rotational="1")
    mounts = f"36 35 0:45 / / rw - overlay overlay rw,lowerdir=/a,upperdir={tmp_path},workdir=/b"
    assert is_rotational(status(on=(0, 45)), sys.root, mounts)


def test_what_cannot_be_told_does_not_turn(sys: Sys) -> None:
    assert not is_rotational(status(on=DISK), sys.root)
    sys.add(MAPPED, "dm-0", slaves=("dm-0",))
    assert not is_rotational(status(on=MAPPED), sys.root)
