"""A running pool under the real kernel: nbd-client, file systems, fstrim, power cuts, dm-thin."""

import os
import re
from pathlib import Path

import pytest

from tests.uml.inside import mounted
from tests.uml.machine import DM_THIN, NBD, JobFailed, Machine

pytestmark = pytest.mark.slow

MIB = 1 << 20
LOOP = ("drivers/block/loop",)
#: A real tree, which every Debian has and nobody changes.
SOURCE = "/usr/lib/x86_64-linux-gnu/perl-base"


@pytest.fixture
def pool_machine(machine: Machine, tmp_path: Path) -> Machine:
    """A machine with a disk for the pool's directory, and one for its data."""
    machine.disks = [tmp_path / "home", tmp_path / "data"]
    machine.modules = (*NBD, *DM_THIN, *LOOP)
    machine.expected = ["shutting down sockets"]
    for disk in machine.disks:
        disk.touch()
        os.truncate(disk, 1 << 30)
    return machine


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_file_systems_life(pool_machine: Machine, kind: str) -> None:
    life = pool_machine.call(mounted.life_of_a_file_system, kind, SOURCE)
    assert life.empty < life.filled < life.snapshotted
    # What was written after the snapshot has been trimmed.
    assert life.trimmed <= life.snapshotted - 15 * MIB
    assert life.deleted < life.trimmed
    # The data file has holes where it was, but for the odd block of its own bookkeeping.
    assert life.allocated <= life.deleted + MIB


def test_dm_thin_goes_on_with_what_the_daemon_left(pool_machine: Machine) -> None:
    sizes = pool_machine.call(mounted.hand_over_to_dm_thin, SOURCE)
    assert sizes == {"volume": 256 * MIB, "snapshot": 256 * MIB}


def test_what_was_synced_survives_power_cuts(pool_machine: Machine, tmp_path: Path) -> None:
    expected: list[str] = []
    for cut in range(2):
        with pytest.raises(JobFailed, match="did not come to its end"):
            pool_machine.call(mounted.write_until_the_power_goes, 25, cut > 0)
        console = (tmp_path / f"boot{pool_machine.boots}" / "console").read_text()
        safe = re.findall(r"safe (\d+)", console)
        assert safe == [str(number) for number in range(25)], console
        expected += [f"{int(number):08}" for number in safe]
    assert pool_machine.call(mounted.read_records) == expected
