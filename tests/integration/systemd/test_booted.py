"""A machine that boots with a file system on a thin volume in its fstab, is used, and shuts down.

The kernel is User Mode Linux's; systemd, udev, nbd and the daemon with all that its unit denies it
are the real ones. The pools lie on a disk with a file system, as /var/lib/thinpoold.
"""

import json
import os
import re
import shutil
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PoolMaker
from tests.integration.systemd import booted
from tests.integration.systemd.units import ROOT, install_systemd
from tests.support.pools import BIN, PoolRig
from tests.support.tools import run
from tests.uml.machine import NBD, Machine, installed
from thinmeta.store.lmdb import LmdbStore
from thinpoold import pool_record

pytestmark = pytest.mark.slow

FSTAB = """
/dev/ubda  /var/lib/thinpoold  ext4  defaults  0  0
LABEL=srv  /srv  ext4  _netdev,x-systemd.requires=thinpool-attach@pool-srv.service  0  0
"""
CHECK = f"""
[Unit]
After=multi-user.target
[Service]
Type=oneshot
WorkingDirectory={ROOT}
ExecStart={BIN}/python -m tests.integration.systemd.booted
"""
MANAGER = """
[Manager]
LogTarget=console
StatusUnitFormat=name
"""
DROP_IN = f"""
[Service]
WatchdogSec=20s
# The program comes from a checkout, which may lie where the unit sees nothing.
BindReadOnlyPaths={ROOT}
"""
ORDER_OF_SHUTDOWN = (
    "Unmounted srv.mount",
    "Stopped thinpool-attach@pool-srv.service",
    "Stopped target thinpoold.target",
    "Stopped thinpoold@pool.service",
    "Closed thinpoold@pool.socket",
    "Unmounted var-lib-thinpoold.mount",
)
ORDER_OF_BOOT = (
    "Mounted var-lib-thinpoold.mount",
    "Listening on thinpoold@pool.socket",
    "Started thinpoold@pool.service",
    "Reached target thinpoold.target",
    "Finished thinpool-attach@pool-srv.service",
    "Reached target remote-fs-pre.target",
    "Mounted srv.mount",
    "Reached target remote-fs.target",
    "Reached target multi-user.target",
)


def make_pools(new_pool: PoolMaker, disk: Path, scratch: Path) -> PoolRig:
    """A pool with a file system labelled srv, and a spare one; both stopped."""
    spare = new_pool("64M", directory=disk / "spare", start=False)
    spare.create("a", "1M")
    rig = new_pool("128M", directory=disk / "pool")
    rig.create("srv", "64M")
    image = scratch / "srv.img"
    run("mkfs.ext4", "-q", "-L", "srv", str(image), "64M")
    run("nbdcopy", str(image), rig.uri("srv"))
    rig.stop()
    return rig


def make_files(files: Path) -> None:
    """What the machine has that this one has not."""
    units = files / "etc/systemd/system"
    wanted = units / "multi-user.target.wants"
    drop_in = units / "thinpoold@.service.d"
    for folder in (wanted, drop_in):
        folder.mkdir(parents=True)
    install_systemd("--destdir", str(files), "--prefix", "/usr-local", "--bindir", str(BIN))
    (files / "etc/fstab").write_text(FSTAB)
    (files / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    (files / "etc/hostname").write_text("tester\n")
    (files / "etc/systemd/system.conf").write_text(MANAGER)
    sees_homes = "ProtectHome=tmpfs\n" if f"{ROOT}/".startswith(booted.HOMES) else ""
    (drop_in / "test.conf").write_text(DROP_IN + sees_homes)
    (units / "check.service").write_text(CHECK)
    enabled = ("remote-fs.target", "thinpoold@pool.service", "thinpoold@spare.socket")
    for name in (*enabled, "check.service"):
        template = re.sub("@.*[.]", "@.", name)
        (wanted / name).symlink_to(f"/etc/systemd/system/{template}")


def take_back(pool: Path, image: Path) -> None:
    """Puts a pool's directory in place again as it is on the disk."""
    data = pool / "data"
    marks = {name: os.getxattr(data, name) for name in os.listxattr(data)}
    shutil.rmtree(pool)
    run("debugfs", "-R", f"rdump /{pool.name} {pool.parent}", str(image))
    # debugfs writes files without their attributes, and these are from before the boot.
    for name, value in marks.items():
        os.setxattr(data, name, value)
    with closing(LmdbStore(pool / "metadata.lmdb", read_only=True)) as store:
        stored = store.record(pool_record.TABLE, pool_record.KEY)
    assert stored is not None
    life = pool_record.PoolRecord.unpack(stored).data_mark.life
    os.setxattr(data, "user.thinpoold.life", str(life).encode())
    # From before it was a service; it belongs to the user thinpoold now, as all of it.
    shutil.rmtree(pool / "run", ignore_errors=True)


def in_order(console: str, events: tuple[str, ...]) -> None:
    found = [console.find(f"{event}.") for event in events]
    assert -1 not in found, dict(zip(events, found, strict=True))
    for (first, before), (second, after) in pairwise(zip(events, found, strict=True)):
        assert before < after, f"{first} came after {second}"


def test_boot_use_and_shutdown(new_pool: PoolMaker, tmp_path: Path) -> None:
    if not installed():
        pytest.skip("no linux.uml here (Debian's package user-mode-linux)")
    disk, image = tmp_path / "disk", tmp_path / "disk.img"
    rig = make_pools(new_pool, disk, tmp_path)
    run("mkfs.ext4", "-q", "-d", str(disk), str(image), "320M")
    files, result = tmp_path / "files", tmp_path / "result"
    result.mkdir()
    make_files(files)

    machine = Machine(tmp_path, disks=[image], modules=NBD, memory_mib=768, limit_s=480.0)
    # UML's own, when something polls what cannot be polled; and nbd's when a connection ends.
    machine.expected = ["epollctl add err", "block nbd0: ", "block nbd1: "]
    machine.call(booted.boot, str(files), str(result), str(ROOT))

    console = (tmp_path / "boot1/console").read_text(errors="replace")
    report: dict[str, Any] = json.loads((result / "report").read_text())
    assert "error" not in report, f"{report['error']}\n{report['journal']}\n{console}"
    in_order(console, ORDER_OF_BOOT)
    in_order(console[console.index("Stopped target multi-user.target") :], ORDER_OF_SHUTDOWN)
    assert "ordering cycle" not in console
    check_mounted(report)
    check_activated(report)
    if not f"{ROOT}/".startswith(booted.HOMES):
        check_installed(report)
    assert report["failed"] == []

    # What is on the disk now: the pools are whole, and the file was written to the volume.
    for pool in ("pool", "spare"):
        take_back(disk / pool, image)
    rig.start()
    content = tmp_path / "after.img"
    run("nbdcopy", rig.uri("srv"), str(content))
    run("e2fsck", "-fn", str(content))
    assert run("debugfs", "-R", "cat /written", str(content)).stdout == "killed"


def check_mounted(report: dict[str, Any]) -> None:
    assert report["mount"] == "ext4"
    assert report["read"] == ["booted", "restarted", "killed"]
    assert report["user"] == "thinpoold"
    assert report["process"] == {"CapEff": "0" * 16, "NoNewPrivs": "1", "Seccomp": "2"}
    assert report["daemon"]["ActiveState"] == "active"
    assert report["daemon"]["NRestarts"] == "0"
    assert re.match("write: .* of 128M used, 1 volumes", report["daemon"]["StatusText"])


def check_activated(report: dict[str, Any]) -> None:
    assert report["before"] == "inactive"
    assert report["device"] == "/dev/nbd1"
    # The unit hides other users' processes from the daemon.
    assert report["opened_by"] == [None, "root"]
    assert report["size"] == str(1 << 20)
    restarts = {"activated": "0", "restarted": "0", "killed": "1", "hung": "2"}
    for name, count in restarts.items():
        assert report[name]["ActiveState"] == "active", name
        assert report[name]["NRestarts"] == count, name
        assert report[name]["StatusText"].startswith("write: "), name
    assert report["stopped"]["ActiveState"] == "inactive"
    assert report["stopped"]["Result"] == "success"


def check_installed(report: dict[str, Any]) -> None:
    assert report["mended"] == ["installed", "/usr/local/lib/systemd/system/thinpoold.target"]
    assert report["description"] not in ("", "spoilt", "thinpoold.target")
    assert report["again"] == ""
    status, said, there = report["kept"]
    assert (status, there) == (1, True)
    assert "still running: thinpool-attach@pool-srv.service thinpoold@pool.service" in said
