"""Jobs with a running pool of thinpoold's: attached by nbd-client, formatted, mounted, used.

The daemon runs inside the machine as well, because Unix sockets do not reach out of it. The pool's
directory lies in a file system on the first disk; its data is there too, or the second disk.
"""

import ctypes
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.uml.inside.commands import run, shell
from tests.uml.inside.dm_thin import POOL, SECTOR, path_of
from tests.uml.inside.filesystems import fsck, mkfs

HOME = Path("/mnt/home")
POOL_DIR = HOME / "pool"
DATA = "/dev/ubdb"
ON_DISK = ("--data", DATA)
IN_FILE = ("--size", "800M")
TREE = Path("/mnt/tree")
SNAPSHOT = Path("/mnt/snapshot")

# How to mount a snapshot of what is still mounted. After a sync ext4's journal holds nothing that
# is not in its place; XFS keeps it in the log, and plays that back, which changes the snapshot.
_ATTACH_SNAPSHOT = {"ext4": ["-readonly"], "xfs": []}
_MOUNT_SNAPSHOT = {"ext4": "ro,noload", "xfs": "ro,nouuid"}


def pool(*arguments: str) -> str:
    """`thinpool -p POOL ARGUMENTS`."""
    return run("thinpool", "-p", str(POOL_DIR), *arguments)


def used() -> int:
    """Bytes of data in use."""
    return int(json.loads(pool("status", "--json"))["data"]["used"])


def make_pool(*data: str) -> None:
    """Makes the first disk a file system with a pool in it, and starts the pool."""
    mkfs("ext4", "/dev/ubda")
    mount_home()
    pool("init", str(POOL_DIR), *data)
    pool("start", str(POOL_DIR))


def mount_home() -> None:
    HOME.mkdir(exist_ok=True)
    run("mount", "/dev/ubda", str(HOME))


def attach(volume: str, device: str, *options: str) -> None:
    """The kernel's nbd, by nbd-client alone."""
    socket = str(POOL_DIR / "run" / "nbd.sock")
    run("nbd-client", "-unix", socket, "-N", volume, *options, device)


def detach(device: str) -> None:
    run("nbd-client", "-d", device)


def mount(device: str, at: Path, options: str = "defaults") -> None:
    at.mkdir(exist_ok=True)
    run("mount", "-o", options, device, str(at))


def end_pool() -> None:
    """Stops it; the check must be content."""
    pool("stop")
    pool("check")


@dataclass(frozen=True, slots=True)
class Life:
    """Bytes of data in use at the stations of a file system's life.

    `allocated` is what the data file takes up at the end.
    """

    empty: int
    filled: int
    snapshotted: int
    trimmed: int
    deleted: int
    allocated: int


def life_of_a_file_system(kind: str, source: str) -> Life:
    """Makes one, fills it, snapshots it while it is mounted, empties it, takes it away.

    Raises AssertionError when a tree differs from the `source`, or fsck finds anything.
    """
    make_pool(*IN_FILE)
    pool("create", "volume", "512M")
    attach("volume", "/dev/nbd0", "-connections", "3")
    mkfs(kind, "/dev/nbd0")
    mount("/dev/nbd0", TREE)
    run("sync")
    empty = used()

    run("cp", "-a", source, str(TREE / "copy"))
    run("sync")
    filled = used()
    pool("snapshot", "volume", "snapshot")
    # What comes after the snapshot is none of its business.
    shell(f"rm -r {TREE}/copy; head -c 20M /dev/zero | tr '\\0' x > {TREE}/later; sync")
    snapshotted = used()

    attach("snapshot", "/dev/nbd1", *_ATTACH_SNAPSHOT[kind])
    mount("/dev/nbd1", SNAPSHOT, _MOUNT_SNAPSHOT[kind])
    run("diff", "-r", source, str(SNAPSHOT / "copy"))
    assert not (SNAPSHOT / "later").exists()
    run("umount", str(SNAPSHOT))
    detach("/dev/nbd1")

    shell(f"rm {TREE}/later; sync; fstrim {TREE}")
    trimmed = used()
    run("umount", str(TREE))
    fsck(kind, "/dev/nbd0")
    detach("/dev/nbd0")
    pool("delete", "snapshot")
    deleted = used()
    end_pool()
    allocated = (POOL_DIR / "data").stat().st_blocks * SECTOR
    return Life(empty, filled, snapshotted, trimmed, deleted, allocated)


def hand_over_to_dm_thin(source: str) -> dict[str, Any]:
    """What the daemon left, the kernel's dm-thin mounts and goes on with."""
    make_pool(*ON_DISK)
    pool("create", "volume", "256M")
    attach("volume", "/dev/nbd0")
    mkfs("ext4", "/dev/nbd0")
    mount("/dev/nbd0", TREE)
    run("cp", "-a", source, str(TREE / "copy"))
    run("sync")
    pool("snapshot", "volume", "snapshot")
    shell(f"rm -r {TREE}/copy; cp -a {source} {TREE}/other; umount {TREE}")
    detach("/dev/nbd0")
    volumes = json.loads(pool("list", "--json"))["volumes"]
    end_pool()
    metadata = HOME / "metadata"
    pool("export-metadata", str(metadata))

    loop = run("losetup", "--find", "--show", str(metadata)).strip()
    os.environ["DM_DISABLE_UDEV"] = "1"
    sectors = int(run("blockdev", "--getsz", DATA)) // 128 * 128
    table = f"0 {sectors} thin-pool {loop} {DATA} 128 1 1 no_discard_passdown"
    run("dmsetup", "create", POOL, "--table", table)
    for volume in volumes:
        table = f"0 {volume['size'] // SECTOR} thin {path_of(POOL)} {volume['id']}"
        run("dmsetup", "create", volume["name"], "--table", table)
    fsck("ext4", str(path_of("volume")))
    mount(str(path_of("volume")), TREE)
    # The snapshot was taken with the file system mounted: its journal is played back now.
    mount(str(path_of("snapshot")), SNAPSHOT)
    run("diff", "-r", source, str(TREE / "other"))
    run("diff", "-r", source, str(SNAPSHOT / "copy"))
    run("umount", str(SNAPSHOT))
    fsck("ext4", str(path_of("snapshot")))
    run("umount", str(TREE))
    run("dmsetup", "remove", *(volume["name"] for volume in volumes))
    run("dmsetup", "remove", POOL)
    run("thin_check", "-q", str(metadata))
    return {volume["name"]: volume["size"] for volume in volumes}


def write_until_the_power_goes(records: int, keep_pool: bool) -> None:
    """Appends records to a file, one fsync each, and tells the console of each when it is safe.

    After the last the machine stops as it stands: nothing is flushed. `keep_pool`: use the one
    that the last power cut left, which must be sound, and continue with its file system.
    """
    if keep_pool:
        mount_home()
        pool("check")
        pool("start", str(POOL_DIR))
    else:
        make_pool(*ON_DISK)
        pool("create", "volume", "256M")
    attach("volume", "/dev/nbd0", "-connections", "2")
    if not keep_pool:
        mkfs("ext4", "/dev/nbd0")
    mount("/dev/nbd0", TREE)
    # Never flushed, and provisioning all the time.
    busy = subprocess.Popen(["/bin/sh", "-c", f"cat /dev/urandom > {TREE}/never-flushed"])
    with Path("/dev/console").open("w") as console, (TREE / "records").open("a") as file:
        for number in range(records):
            file.write(f"{number:08}\n")
            file.flush()
            os.fsync(file.fileno())
            console.write(f"safe {number}\n")
            console.flush()
            if number % 10 == 5:
                pool("snapshot", "volume", f"snapshot{os.stat(TREE / 'records').st_size}")
        ctypes.CDLL(None).reboot(0x4321FEDC)
    busy.wait()


def read_records() -> list[str]:
    """After a power cut: the lines that are there. The check must be content before and after."""
    mount_home()
    pool("check")
    pool("start", str(POOL_DIR))
    attach("volume", "/dev/nbd0")
    mount("/dev/nbd0", TREE)
    lines = (TREE / "records").read_text().splitlines()
    run("umount", str(TREE))
    fsck("ext4", "/dev/nbd0")
    detach("/dev/nbd0")
    end_pool()
    return lines
