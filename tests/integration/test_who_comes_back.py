"""Clients that connect again: to the volume that they had, with the content that they know, or not.

A handle that outlives its connection is an export name. By a plain name a client may find another
volume, so nobody gets that name meanwhile; by a stable one it finds its own or nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.cli.outcomes import MIB, fill, refused, volume
from tests.integration.cli.test_attach import needs_fuse
from tests.support.client import NbdClient, NbdError
from tests.support.pools import PoolRig
from thinpoold import admin
from thinpoold.pool import Pool

REFUSED = "may connect again"


@pytest.fixture
def disks(pool: PoolRig) -> PoolRig:
    """A running pool with `disk`, of ones, and `new`, of twos."""
    for name, byte in (("disk", b"1"), ("new", b"2")):
        pool.create(name, "4M")
        fill(pool, name, MIB, byte=byte)
    pool.await_released("disk", "new")
    return pool


def stable(rig: PoolRig, name: str) -> str:
    found = volume(rig, name)
    return f"{found['uuid']}/{found['generation']}"


def swap(rig: PoolRig, *more: str) -> None:
    rig.cli("rename", "disk", "disk-old", *more)
    rig.cli("rename", "new", "disk", *more)


def read(rig: PoolRig, export: str) -> bytes:
    with rig.connect(export) as client:
        return client.read(0, 1)


# --- stable names ---------------------------------------------------------------------------------


def test_a_stable_name_is_of_one_volume_whatever_it_is_called(disks: PoolRig) -> None:
    disk, new = stable(disks, "disk"), stable(disks, "new")
    swap(disks)
    assert (read(disks, disk), read(disks, new)) == (b"1", b"2")
    assert (read(disks, "disk-old"), read(disks, "disk")) == (b"1", b"2")


def rolled_back(rig: PoolRig) -> None:
    rig.snapshot("disk", "then")
    rig.cli("rollback", "disk", "then")


def smaller(rig: PoolRig) -> None:
    rig.cli("resize", "disk", "2M", "--shrink")


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
@pytest.mark.parametrize("jump", [rolled_back, smaller], ids=["rollback", "shrink"])
def test_a_stable_name_is_of_one_content(
    disks: PoolRig, jump: Callable[[PoolRig], None], stopped: bool
) -> None:
    before = stable(disks, "disk")
    if stopped:
        disks.stop()
    jump(disks)
    if stopped:
        disks.start()
    assert volume(disks, "disk")["generation"] == 2
    with pytest.raises(NbdError):
        disks.connect(before)
    assert read(disks, stable(disks, "disk")) == b"1"
    assert disks.logged("has become another since generation 1")
    # Larger is the same content.
    disks.cli("resize", "disk", "8M")
    assert volume(disks, "disk")["generation"] == 2
    assert read(disks, before.replace("/1", "/2")) == b"1"


@pytest.mark.parametrize(
    "export",
    [
        *("abc/def", "/", "disk/1", "disk/", "/disk", "UUID/", "UUID/0", "UUID/01", "UUID/-1"),
        *("UUID/9999999999999999999999999", "UUID/1/1", "00000000-0000-4000-8000-000000000000/1"),
    ],
)
def test_what_is_no_export_is_refused(disks: PoolRig, export: str) -> None:
    name = export.replace("UUID", volume(disks, "disk")["uuid"])
    with pytest.raises(NbdError):
        disks.connect(name)
    assert "Traceback" not in disks.log_tail()
    assert read(disks, "disk") == b"1"


# --- plain names ----------------------------------------------------------------------------------


def test_nobody_gets_the_name_by_which_a_client_has_another_volume(disks: PoolRig) -> None:
    with disks.connect("disk"):
        # It keeps what it has open.
        disks.cli("rename", "disk", "disk-old")
        line = "by the name 'disk'"
        refused(disks, "rename", "new", "disk", says=line)
        refused(disks, "create", "disk", "1M", says=line)
        refused(disks, "snapshot", "new", "disk", says=line)
        # Its own it may have again.
        disks.cli("rename", "disk-old", "disk")
        disks.cli("rename", "disk", "disk-old")
    disks.await_released("disk-old")
    disks.cli("rename", "new", "disk")
    assert read(disks, "disk") == b"2"


@pytest.mark.parametrize("killed", [False, True], ids=["stopped", "killed"])
@pytest.mark.parametrize("running", [False, True], ids=["down", "up-again"])
def test_what_would_jump_under_a_client_that_may_come_back_is_refused(
    disks: PoolRig, killed: bool, running: bool
) -> None:
    disks.snapshot("disk", "then")
    client = disks.connect("disk")
    client.write(0, b"3")
    disks.kill() if killed else disks.stop()
    if running:
        disks.start()
    else:
        # The first who changes it makes good what the daemon left, and says so.
        disks.cli("set", "low_water=11%")
    refused(disks, "rollback", "disk", "then", says=REFUSED)
    refused(disks, "resize", "disk", "1M", "--shrink", says=REFUSED)
    refused(disks, "delete", "disk", says=REFUSED)
    disks.cli("rename", "disk", "disk-old")
    refused(disks, "rename", "new", "disk", says="by the name 'disk'")
    # What does not jump under it is done.
    disks.cli("resize", "disk-old", "8M")
    disks.cli("snapshot", "disk-old", "now")
    disks.cli("rename", "disk-old", "disk")
    disks.cli("rollback", "disk", "then", "--force")
    # Who has been given up is asked about no more.
    disks.cli("rollback", "disk", "now")
    if not running:
        disks.start()
    client.close()
    assert read(disks, "disk") == b"3"


def test_a_client_that_has_come_back_and_gone_is_no_longer_expected(disks: PoolRig) -> None:
    disks.snapshot("disk", "then")
    client = disks.connect("disk")
    disks.stop()
    disks.start()
    with disks.connect("disk") as again:
        refused(disks, "rollback", "disk", "then", says="is open by 1 client")
        again.read(0, 1)
    disks.await_released("disk")
    disks.cli("rollback", "disk", "then")
    client.close()


def test_a_stable_name_holds_no_other(disks: PoolRig) -> None:
    client = NbdClient(disks.socket, stable(disks, "disk"))
    swap(disks)
    disks.stop()
    swap_back = ("rename", "disk", "new")
    disks.cli(*swap_back)
    disks.start()
    client.close()
    # It would find its own.
    assert read(disks, "disk-old") == b"1"


def write_through(path: Path) -> None:
    with path.open("r+b", buffering=0) as device:
        os.pwrite(device.fileno(), b"A" * 4096, 0)
        os.fsync(device.fileno())


# --- attachments ----------------------------------------------------------------------------------


@needs_fuse
def test_an_attachment_stays_with_its_volume_when_names_change(disks: PoolRig) -> None:
    disks.cli("attach", "disk", "--user")
    path = Path(disks.volumes()["disk"]["attached"][0]["device"])
    try:
        swap(disks)
        disks.stop()
        disks.start()
        write_through(path)
        assert (read(disks, "disk-old"), read(disks, "disk")) == (b"A", b"2")
    finally:
        disks.cli("detach", str(path))


@needs_fuse
def test_an_attachment_fails_rather_than_show_another_content(disks: PoolRig) -> None:
    disks.snapshot("disk", "then")
    disks.cli("attach", "disk", "--user", "--timeout", "2")
    path = Path(disks.volumes()["disk"]["attached"][0]["device"])
    try:
        disks.stop()
        refused(disks, "rollback", "disk", "then", "--force", says="is attached as")
        # As on another machine, which knows nothing of what this one has attached.
        pool = Pool.open(disks.directory)
        admin.rollback(pool, "disk", "then", force=True)
        pool.close()
        disks.start()
        with pytest.raises(OSError, match="Input/output error"):
            write_through(path)
        assert read(disks, "disk") == b"1"
    finally:
        if not disks.running:
            disks.start()
        disks.cli("detach", str(path))
