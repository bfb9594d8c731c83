"""nbd devices in a made-up /sys/block."""

from pathlib import Path

import pytest

from thinpoold.attach import devices
from thinpoold.attach.devices import BlockDevice, NbdDevice
from thinpoold.attach.errors import AttachFailed, AttachRefused


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    for index, pid in ((0, "71"), (1, None), (2, "72"), (10, None)):
        place = tmp_path / f"nbd{index}"
        (place / "holders").mkdir(parents=True)
        (place / "size").write_text("2048\n" if pid else "0\n")
        (place / "ro").write_text("0\n")
        (place / "dev").write_text(f"43:{index * 32}\n")
        if pid:
            (place / "pid").write_text(pid + "\n")
    part = tmp_path / "nbd0/nbd0p1"
    (part / "holders/dm-3").mkdir(parents=True)
    (part / "partition").write_text("1\n")
    (part / "dev").write_text("43:1\n")
    for other in ("sda", "nbdx", "nbd01", "loop0"):
        (tmp_path / other).mkdir()
    return tmp_path


def test_free_devices_come_first_and_a_new_one_last(sysfs: Path) -> None:
    assert [one.index for one in devices.nbd_devices(sysfs)] == [0, 1, 2, 10]
    assert [one.name for one in devices.free_devices(sysfs)] == ["nbd1", "nbd10", "nbd11"]
    assert [one.name for one in devices.free_devices(sysfs / "none")] == ["nbd0"]


def test_what_sysfs_says_of_a_device(sysfs: Path) -> None:
    device = NbdDevice("nbd0", sysfs)
    assert (device.connector, device.size, device.read_only) == (71, 1 << 20, False)
    assert device.partitions() == ["nbd0p1"]
    assert device.numbers() == {"43:0", "43:1"}
    assert device.nodes() == {Path("/dev/nbd0"), Path("/dev/nbd0p1")}
    assert device.holders() == ["dm-3"]


def test_a_device_that_is_not_there(sysfs: Path) -> None:
    device = NbdDevice("nbd77", sysfs)
    assert (device.exists, device.connector, device.size) == (False, None, 0)
    assert device.partitions() == device.holders() == []
    assert BlockDevice("nbd77", sysfs).numbers() == set()


def test_waiting_for_the_size(sysfs: Path) -> None:
    NbdDevice("nbd0", sysfs).wait_for_size(1 << 20, 0)
    with pytest.raises(AttachFailed, match="the kernel says 1048576"):
        NbdDevice("nbd0", sysfs).wait_for_size(1 << 21, 0)
    with pytest.raises(AttachFailed):
        NbdDevice("nbd1", sysfs).wait_for_size(0, 0)


def test_waiting_until_it_is_free(sysfs: Path) -> None:
    assert NbdDevice("nbd1", sysfs).wait_until_free(71, 0)
    assert NbdDevice("nbd0", sysfs).wait_until_free(5, 0)
    assert not NbdDevice("nbd0", sysfs).wait_until_free(71, 0)


def test_the_request_timeout_is_in_milliseconds(sysfs: Path) -> None:
    (sysfs / "nbd0/queue").mkdir()
    NbdDevice("nbd0", sysfs).set_request_timeout(2.5)
    assert (sysfs / "nbd0/queue/io_timeout").read_text() == "2500"


def test_what_a_user_may_call_a_device(tmp_path: Path) -> None:
    assert devices.parse_nbd_device("/dev/nbd3").index == 3
    (tmp_path / "link").symlink_to("/dev/nbd12")
    assert devices.parse_nbd_device(str(tmp_path / "link")).index == 12


@pytest.mark.parametrize("text", ["/dev/sda", "nbd3", "/dev/nbd", "/dev/nbd3p1", "/nbd3", ""])
def test_what_is_no_device(text: str) -> None:
    with pytest.raises(AttachRefused, match="no nbd device"):
        devices.parse_nbd_device(text)
