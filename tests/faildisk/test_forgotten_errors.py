"""Write errors that the kernel forgets before a daemon asks, and that it tells more than once."""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path

import pytest

from tests.faildisk.disk import failing_disk, file_system
from tests.faildisk.places import MIB, placed
from tests.faildisk.scenario import BLOCKS, Scenario, drop_cache
from tests.support.pools import Refused
from tests.unit.data.rigs import spin
from thinpoold import writeout
from thinpoold.device import DataDevice
from thinpoold.errors import DeviceError

pytestmark = pytest.mark.slow


def evict(path: Path) -> None:
    """Have the kernel let go of a file that nobody has open, as it does when memory is short."""
    drop_cache(path)
    Path("/proc/sys/vm/drop_caches").write_text("2\n")


@pytest.mark.parametrize("evicted", [False, True], ids=["kept", "evicted"])
def test_a_write_error_of_a_file_whose_inode_was_evicted(tmp_path: Path, evicted: bool) -> None:
    """In place, into blocks that were on disk: no unwritten extent is among them."""
    with placed(tmp_path, "file") as scenario:
        for guest in scenario.guests:
            guest.write(0, 4)
        scenario.fail("pwrite")
        scenario.met_by_the_kernel()
        scenario.heal()
        scenario.kill()
        scenario.met_by_the_kernel()
        if evicted:
            evict(tmp_path / "mnt/data-of-the-pool")
        scenario.judge()
        assert all(guest.told for guest in scenario.guests)


def test_an_error_that_an_opening_has_dealt_with_is_not_told_again(tmp_path: Path) -> None:
    """The write-out has a descriptor of its own, of which the kernel keeps count by itself."""
    with (
        failing_disk(tmp_path / "disk", 64 * MIB) as disk,
        file_system(disk, tmp_path / "mnt") as mounted,
    ):
        path = mounted / "data"
        path.write_bytes(bytes(MIB))
        os.sync()
        before = DataDevice.open(path)
        before.write(b"x" * 65536, 0)
        disk.fail("pwrite")
        os.sync()
        disk.heal()
        # It dies, and the next process opens the device.
        before.close()
        with closing(DataDevice.open(path)) as after:
            with pytest.raises(DeviceError):
                after.flush()
            # The loss is noted, and accepted.
            after.forgive()
            after.write(b"y" * 65536, 0)
            after.flush()
            writeout._write_file(after.writeout._fd)


@pytest.mark.parametrize("dropped", [False, True], ids=["cached", "dropped"])
def test_notes_that_the_kernel_could_not_write_are_missed(tmp_path: Path, dropped: bool) -> None:
    """A daemon is killed. What it noted was written back meanwhile, which failed, and its pages go,
    as they do when memory is short: what is read then is what the disk holds."""
    with placed(tmp_path, "directory") as scenario:
        pool = tmp_path / "mnt/pool"
        # New blocks, of which only the notes tell.
        for guest in scenario.guests:
            guest.write(BLOCKS - 8, 8)
        scenario.fail("pwrite")
        scenario.met_by_the_kernel()
        scenario.kill()
        scenario.heal()
        if dropped:
            for name in ("recent-0", "recent-1"):
                drop_cache(pool / name)
        scenario.judge()
        # Either all is there, or they were told.


def await_closed(scenario: Scenario) -> None:
    spin(lambda: json.loads(scenario.rig.cli("status", "--json"))["clients"] == 0)


@pytest.mark.parametrize("dropped", [False, True], ids=["cached", "dropped"])
def test_marks_that_the_kernel_could_not_write_are_missed(tmp_path: Path, dropped: bool) -> None:
    """The same of the ledger: who was there when the daemon died is expected back."""
    with placed(tmp_path, "directory") as scenario:
        pool = tmp_path / "mnt/pool"
        for guest in scenario.guests:
            guest.hang_up()
        await_closed(scenario)
        scenario.stop()
        scenario.start()
        scenario.fail("pwrite")
        for guest in scenario.guests:
            guest.write(0, 4)
        scenario.met_by_the_kernel()
        scenario.kill()
        scenario.heal()
        if dropped:
            drop_cache(pool / "ledger")
        # The first to sync the ledger is told of the error; its administrator tries again.
        scenario.rig.run("delete", "v1")
        with pytest.raises(Refused, match="was open"):
            scenario.rig.cli("delete", "v1")


@pytest.mark.parametrize("dropped", [False, True], ids=["cached", "dropped"])
def test_a_failure_that_could_be_noted_in_the_page_cache_alone(
    tmp_path: Path, dropped: bool
) -> None:
    """All is on one disk, which fails for a while: one client's flush is told, and so would the
    ledger tell, if it reached the disk."""
    with placed(tmp_path, "all") as scenario:
        # A start has the ledger synced; what is marked after it is in the page cache.
        scenario.stop()
        scenario.start()
        for guest in scenario.guests:
            guest.write(0, 4)
        scenario.fail("pwrite")
        scenario.guests[0].flush()
        scenario.met_by_the_kernel()
        scenario.kill()
        scenario.heal()
        if dropped:
            for name in ("ledger", "recent-0", "recent-1"):
                drop_cache(tmp_path / "mnt/pool" / name)
        scenario.judge()
        assert scenario.guests[1].told
