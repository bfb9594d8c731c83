"""thinpool attach in a real kernel: file systems on volumes, and a daemon that comes and goes.

nbd-client is Debian's, the kernel's nbd the real one. An I/O error in the kernel's log fails a
test: that connections are lost is expected, that a request fails is not.
"""

from typing import cast

import pytest

from tests.uml.inside import attached
from tests.uml.machine import NBD, Machine

pytestmark = pytest.mark.slow

# What nbd says of lost connections and of a disconnect. "I/O error" is not among it.
LOST = (
    "shutting down sockets",
    "Receive control failed",
    "Send control failed",
    "Send data failed",
    "Request send failed, requeueing",
    "Dead connection, failed to find a fallback",
    "Connection timed out, retrying",
)


@pytest.fixture(autouse=True)
def _with_nbd(machine: Machine) -> None:
    machine.modules = NBD
    machine.memory_mib = 1536
    machine.limit_s = 400.0
    machine.expected = list(LOST)


@pytest.mark.parametrize(("kind", "mib", "grown"), [("ext4", 120, 240), ("xfs", 320, 480)])
def test_a_file_system_from_mkfs_to_fsck(machine: Machine, kind: str, mib: int, grown: int) -> None:
    seen = machine.call(attached.life_of_a_file_system, kind, mib, grown)
    assert seen["complaints"] == []
    assert seen["same"]
    assert seen["kept"]
    assert "mounted on /run/mnt/s: unmount it first" in str(seen["refusal"])
    assert "/dev/nbd0 on /run/mnt/v" in str(seen["listed"])
    assert isinstance(seen["trimmed"], int)
    assert seen["trimmed"] >= 35 << 20
    assert isinstance(seen["total"], int)
    assert seen["total"] > (grown << 20) * 8 // 10


@pytest.mark.parametrize(("connections", "times"), [(1, 3), (4, 1)])
def test_a_daemon_is_stopped_and_started_under_a_busy_file_system(
    machine: Machine, connections: int, times: int
) -> None:
    seen = machine.call(attached.restarts, connections, times)
    assert (seen["same"], seen["complaints"]) == (True, [])
    assert (seen["command"], seen["connections"]) == ("thinpool-keeper", connections)
    waits = "they may wait 300 s for space"
    says = [waits]
    if connections > 1:
        says += [waits, f"/dev/nbd0 is attached with {connections} connections"]
    for said, refusal in zip(says, cast(list[str], seen["refusals"]), strict=True):
        assert said in refusal


@pytest.mark.parametrize(("connections", "times"), [(1, 4), (4, 1)])
def test_a_daemon_is_killed_and_started_under_load(
    machine: Machine, connections: int, times: int
) -> None:
    seen = machine.call(attached.kills, connections, times)
    assert seen["kept"] == [True] * times
    assert (seen["same"], seen["lost"]) == (True, [])
    assert (seen["writable"], seen["complaints"]) == (True, [])


def test_a_keeper_that_was_killed_is_replaced(machine: Machine) -> None:
    seen = machine.call(attached.keepers_die)
    assert (seen["same"], seen["complaints"]) == (True, [])
    again, stopped, mounted = cast(list[str], seen["refusals"])
    assert "is attached already, as /dev/nbd0" in again
    assert "volume 'v' is attached as /dev/nbd0, mounted on /run/mnt/v" in stopped
    assert "mounted on /run/mnt/v: unmount it first" in mounted


def test_a_device_whose_daemon_is_gone_or_hangs_is_taken_by_force(machine: Machine) -> None:
    # That its requests fail is what is asked for. The kernel leaves some of such lines out, and
    # says of how many.
    machine.expected += ["I/O error", "EXT4-fs", "JBD2", "Aborting journal", "lost", "nbd0"]
    machine.expected += ["callbacks suppressed"]
    seen = machine.call(attached.taken_by_force)
    says = ["does not answer", "mounted on /run/mnt/v: unmount it first"] * 2
    for said, refusal in zip(says, cast(list[str], seen["refusals"]), strict=True):
        assert said in refusal
    gone, left, hung, left_too = cast(list[str], seen["forced"])
    assert (gone, left, left_too) == ("", *["[False, False, False]"] * 2)
    # A process has a file open there still.
    assert "/dev/nbd0 is free when who has it lets go: in use by the kernel" in hung
    assert seen["kept"] == ["kept-False", "kept-True"]
    assert seen["complaints"] == []


def test_four_volumes_at_once(machine: Machine) -> None:
    seen = machine.call(attached.four_at_once)
    assert seen["devices"] == ["/dev/nbd0", "/dev/nbd1", "/dev/nbd2", "/dev/nbd3"]
    assert (seen["codes"], seen["same"]) == ([0] * 4, [True] * 4)
    assert (seen["left"], seen["complaints"]) == ([[]] * 4, [])
