"""Whether an export is rotational is what the disk under the data device is."""

import os
from pathlib import Path

import pytest

from tests.support.pools import PoolRig
from tests.support.tools import run_json

pytestmark = pytest.mark.disk


def disk_under(path: str) -> Path | None:
    """The sysfs directory of the disk that holds the file, if there is one disk."""
    number = os.stat(path).st_dev
    device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if not device.exists():
        return None
    device = device.resolve()
    return device if (device / "queue").exists() else device.parent


def test_the_flag_follows_the_disk(pool: PoolRig) -> None:
    pool.create("vol", "1M")
    disk = disk_under(pool.status()["data"]["path"])
    if disk is None or any((disk / "slaves").glob("*")):
        pytest.skip("the data file is on no single disk that sysfs knows")
    expected = (disk / "queue" / "rotational").read_text().strip() == "1"
    (export,) = run_json("nbdinfo", "--json", pool.uri("vol"))["exports"]
    assert export["is_rotational"] is expected
