"""The order of a boot and of a shutdown, from systemd's own graph.

systemd loads the units that are installed and enabled, with those it makes of the fstab example,
and says what it would do; nothing runs. What stops does so in the reverse order of starting.
"""

from itertools import pairwise

import pytest

from tests.integration.systemd.units import EXAMPLES, Machine, Plan

FSTAB = (EXAMPLES / "fstab").read_text()
SERVICE, SOCKET = "thinpoold@pool.service", "thinpoold@pool.socket"
ATTACHED = {
    "srv.mount": "thinpool-attach@pool-srv.service",
    "mnt-data.mount": r"thinpool-attach@pool-my\x2ddata.service",
}
# With what stopping or starting a unit again takes others along.
PULLS_DOWN = ("RequiredBy", "RequisiteOf", "BoundBy", "ConsistsOf", "PropagatesStopTo")


@pytest.fixture
def plan(machine: Machine) -> Plan:
    machine.mount_units(FSTAB)
    machine.enable(SERVICE)
    return machine.boot_plan("multi-user.target")


def test_all_is_started_without_a_cycle(plan: Plan) -> None:
    assert plan.complaints == []
    assert plan.started >= {SERVICE, SOCKET, "thinpoold.target", "modprobe@nbd.service"}
    assert plan.started >= {*ATTACHED, *ATTACHED.values()}


@pytest.mark.parametrize("mount", ATTACHED)
def test_each_waits_for_the_one_before(plan: Plan, mount: str) -> None:
    attach = ATTACHED[mount]
    order = [SOCKET, SERVICE, "thinpoold.target", attach, "remote-fs-pre.target", mount]
    for first, second in pairwise(order):
        assert plan.comes_before(first, second), f"{first} before {second}"
    assert plan.comes_before("modprobe@nbd.service", attach)
    # Directly as well: this holds when the targets between them are not there.
    assert plan.comes_before(attach, mount)
    assert attach in plan.of(mount, "Requires")


def test_services_wait_for_remote_fs_and_so_for_the_mount(plan: Plan) -> None:
    assert plan.comes_before("srv.mount", "remote-fs.target")
    assert "srv.mount" in plan.of("remote-fs.target", "Requires")
    # nofail: wanted, and not waited for.
    assert not plan.comes_before("mnt-data.mount", "remote-fs.target")
    assert "mnt-data.mount" in plan.of("remote-fs.target", "Wants")


def test_the_pool_comes_after_the_disk_it_lies_on(plan: Plan) -> None:
    for unit in (SERVICE, SOCKET):
        assert plan.comes_before("sysinit.target", unit)
    assert plan.comes_before("local-fs.target", "sysinit.target")
    assert "/var/lib/thinpoold/pool" in plan.of(SERVICE, "RequiresMountsFor")


def test_everything_is_stopped_at_shutdown(plan: Plan) -> None:
    for unit in (SERVICE, SOCKET, "thinpoold.target", *ATTACHED.values()):
        assert "shutdown.target" in plan.of(unit, "Conflicts"), unit
        assert plan.comes_before(unit, "shutdown.target")
    for mount in ATTACHED:
        assert "umount.target" in plan.of(mount, "Conflicts")


def test_starting_the_daemon_again_unmounts_nothing(plan: Plan) -> None:
    taken = plan.taken_along(SERVICE, PULLS_DOWN)
    assert taken.isdisjoint({*ATTACHED, *ATTACHED.values(), SOCKET})


def test_stopping_the_socket_stops_the_daemon(plan: Plan) -> None:
    assert SERVICE in plan.taken_along(SOCKET, PULLS_DOWN)


@pytest.mark.parametrize("mount", ATTACHED)
def test_detaching_unmounts_first(plan: Plan, mount: str) -> None:
    assert mount in plan.taken_along(ATTACHED[mount], PULLS_DOWN)


def test_the_socket_alone_keeps_the_order(machine: Machine) -> None:
    """The daemon is then started by the first client, which the attach is."""
    machine.mount_units(FSTAB)
    machine.enable(SOCKET)
    plan = machine.boot_plan("multi-user.target")
    assert plan.complaints == []
    assert SERVICE not in plan.started
    assert plan.comes_before(SOCKET, "sockets.target")
    assert plan.comes_before("sockets.target", "basic.target")
    for attach in ATTACHED.values():
        assert plan.comes_before("basic.target", attach)
    # For the shutdown, when it runs.
    assert plan.comes_before(SERVICE, "thinpoold.target")


def test_an_attached_volume_without_a_file_system(machine: Machine) -> None:
    machine.enable(SERVICE, "thinpool-attach@pool-raw.service")
    plan = machine.boot_plan("multi-user.target")
    assert "thinpool-attach@pool-raw.service" in plan.started
    assert plan.comes_before("thinpool-attach@pool-raw.service", "remote-fs-pre.target")


def test_without_netdev_there_would_be_a_cycle(machine: Machine) -> None:
    machine.mount_units(FSTAB.replace("_netdev,", ""))
    machine.enable(SERVICE)
    plan = machine.boot_plan("multi-user.target")
    assert any("ordering cycle" in line for line in plan.complaints)
