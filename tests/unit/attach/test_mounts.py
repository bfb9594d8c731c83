"""Who uses a device, read from a made-up /proc."""

import os
from pathlib import Path

import pytest

from thinpoold.attach import mounts
from thinpoold.attach.devices import BlockDevice

MOUNTINFO = r"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 43:0 / /mnt/a\040b rw,relatime shared:9 master:1 - ext4 /dev/nbd0 rw
41 22 43:1 / /mnt/part rw - xfs /dev/nbd0p1 rw
42 22 0:55 / /mnt/btrfs rw - btrfs /dev/nbd0 rw,subvol=/
43 22 0:56 / /run rw - tmpfs tmpfs rw
44 40 43:0 /dir /bound rw - ext4 /dev/nbd0 rw
nonsense
"""
SWAPS = "Filename\tType\tSize\tUsed\tPriority\n/dev/nbd0p2 partition 1024 0 -2\n"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "self/mountinfo").write_text(MOUNTINFO)
    (proc / "swaps").write_text(SWAPS)
    for pid, target in ((41, "/dev/nbd0"), (42, "/dev/nbd1"), (os.getpid(), "/dev/nbd0")):
        (proc / str(pid) / "fd").mkdir(parents=True)
        (proc / str(pid) / "fd/3").symlink_to(target)
        (proc / str(pid) / "comm").write_text("dd\n")
    return proc


@pytest.fixture
def device(tmp_path: Path) -> BlockDevice:
    place = tmp_path / "sys/nbd0"
    for name, number in (("nbd0p1", "43:1"), ("nbd0p2", "43:2")):
        (place / name / "holders").mkdir(parents=True)
        (place / name / "partition").write_text("1")
        (place / name / "dev").write_text(number)
    (place / "holders/md0").mkdir(parents=True)
    (place / "dev").write_text("43:0")
    return BlockDevice("nbd0", tmp_path / "sys")


def test_mountinfo_is_read_with_its_escapes() -> None:
    found = mounts.parse_mountinfo(MOUNTINFO)
    assert len(found) == 6
    assert found[1] == mounts.Mount("43:0", "/mnt/a b", "ext4", "/dev/nbd0")


def test_mount_points_of_the_device_and_its_partitions(device: BlockDevice, proc: Path) -> None:
    assert mounts.mount_points(device, proc) == ["/mnt/a b", "/mnt/part", "/mnt/btrfs", "/bound"]


def test_everybody_who_uses_it_is_named(device: BlockDevice, proc: Path) -> None:
    assert mounts.users(device, proc) == [
        "mounted on /mnt/a b",
        "mounted on /mnt/part",
        "mounted on /mnt/btrfs",
        "mounted on /bound",
        "in use as swap (/dev/nbd0p2)",
        "held by /dev/md0",
        "open by process 41 (dd)",
    ]


def test_nobody_uses_another(tmp_path: Path, proc: Path) -> None:
    assert mounts.users(BlockDevice("nbd77", tmp_path / "sys"), proc) == []


def test_without_a_swap_file_there_is_none(tmp_path: Path) -> None:
    assert mounts.swaps(tmp_path) == []
