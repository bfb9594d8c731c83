"""Jobs on volumes that are attached with nbd-client, inside the machine: file systems on them.

The daemon runs inside as well: Unix sockets do not cross from the host.
"""

import hashlib
import json
import mmap
import os
import select
import signal
import subprocess
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Self

from tests.support.pools import PoolRig
from tests.uml.inside.commands import run, shell
from tests.uml.inside.filesystems import fsck, mkfs

# A real tree, which every Debian has and nobody changes.
TREE = Path("/usr/lib/x86_64-linux-gnu/perl-base")
MIB = 1 << 20
_RECORD = 4096


def make_pool(size: str = "600M") -> PoolRig:
    """A running pool in memory."""
    rig = PoolRig(Path("/run/p"))
    rig.init(size)
    rig.start()
    return rig


def finish(rig: PoolRig) -> list[str]:
    """Stop the pool; what the checker has against it."""
    rig.stop()
    return rig.check()


def digest(top: Path) -> dict[str, str]:
    """Every file below `top`, by its path, and what it holds."""
    return {
        str(path.relative_to(top)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(top.rglob("*"))
        if path.is_file() and "lost+found" not in path.parts
    }


def mount_point(name: str) -> Path:
    path = Path("/run/mnt") / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def grow_file_system(kind: str, device: str, point: Path) -> None:
    run("xfs_growfs", str(point)) if kind == "xfs" else run("resize2fs", device)


def drop_caches() -> None:
    run("sync")
    Path("/proc/sys/vm/drop_caches").write_text("3")


def device_of(rig: PoolRig, volume: str) -> str:
    return str(rig.volumes()[volume]["attached"][0]["device"])


class Busy:
    """Does the same work over and over, from a thread, until its context ends."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._error: Exception | None = None
        self.rounds = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._round()
                self.rounds += 1
        except Exception as error:
            self._error = error

    def _round(self) -> None:
        raise NotImplementedError

    def wait_for_rounds(self, count: int) -> None:
        """Wait until so many more rounds are done: I/O goes on."""
        goal = self.rounds + count
        while self.rounds < goal:
            if not self._thread.is_alive():
                raise self._error or AssertionError("the writer ended")
            self._stop.wait(0.05)


class Writer(Busy):
    """Keeps a mounted file system busy: writes, syncs, and knows what it wrote."""

    def __init__(self, point: Path) -> None:
        super().__init__()
        self._point = point
        self.written: dict[str, str] = {}

    def _round(self) -> None:
        name = f"busy-{self.rounds % 8}"
        data = os.urandom(MIB)
        with (self._point / name).open("wb") as file:
            file.write(data)
            # Half of what there is has been flushed, half is on its way.
            if self.rounds % 2:
                os.fsync(file.fileno())
        self.written[name] = hashlib.sha256(data).hexdigest()


class DirectWriter(Busy):
    """Writes records past the file system and the page cache, each somewhere else.

    What a record was last answered with is what must be there at the end.
    """

    def __init__(self, device: str, places: int) -> None:
        super().__init__()
        self._fd = os.open(device, os.O_RDWR | os.O_DIRECT)
        self._places = places
        # O_DIRECT wants memory at a page's beginning.
        self._page = mmap.mmap(-1, _RECORD)
        self._answered: dict[int, int] = {}

    def _round(self) -> None:
        # A prime's multiples: all over the volume, and each place in time again.
        place = self.rounds * 7919 % self._places
        self._page[:] = _record(place, self.rounds)
        assert os.pwrite(self._fd, self._page, place * _RECORD) == _RECORD
        self._answered[place] = self.rounds

    def lost(self) -> list[int]:
        """The places that do not hold what was answered last."""
        wrong = []
        for place, number in sorted(self._answered.items()):
            assert os.preadv(self._fd, [self._page], place * _RECORD) == _RECORD
            if self._page[:] != _record(place, number):
                wrong.append(place)
        os.close(self._fd)
        return wrong


def life_of_a_file_system(kind: str, mib: int, grown_mib: int) -> dict[str, object]:
    """From mkfs to fsck, with snapshots, trim and growth between. Returns what was seen."""
    rig = make_pool("900M")
    rig.create("v", f"{mib}M")
    device = rig.cli("attach", "v").strip()
    mkfs(kind, device)
    point = mount_point("v")
    run("mount", device, str(point))
    run("cp", "-r", str(TREE), str(point / "tree"))
    run("sync")
    tree = digest(point)

    # A snapshot while it is mounted, read and written beside it.
    rig.snapshot("v", "s")
    (point / "later").write_text("not in the snapshot")
    snapped = mount_point("s")
    rig.cli("attach", "s", "--mount", str(snapped), "-o", "nouuid" if kind == "xfs" else "noatime")
    same = digest(snapped) == tree
    (snapped / "own").write_text("in the snapshot alone")
    rig.cli("detach", "s", "--unmount")
    read_only = "ro,norecovery,nouuid" if kind == "xfs" else "ro"
    rig.cli("attach", "s", "--read-only", "--mount", str(snapped), "-o", read_only)
    same = same and digest(snapped) == {
        **tree,
        "own": hashlib.sha256(b"in the snapshot alone").hexdigest(),
    }
    listed = rig.cli("list")
    refusal = rig.run("detach", "s").stderr
    rig.cli("detach", "s", "--unmount")
    rig.delete("s")

    # Space comes back.
    (point / "big").write_bytes(os.urandom(40 * MIB))
    run("sync")
    before = rig.volumes()["v"]["mapped"]
    (point / "big").unlink()
    run("sync")
    run("fstrim", str(point))
    trimmed = before - rig.volumes()["v"]["mapped"]

    # More room, with the file system mounted.
    rig.cli("resize", "v", f"{grown_mib}M")
    rig.cli("attach", "v", "--refresh")
    grow_file_system(kind, device, point)
    room = os.statvfs(point)
    total = room.f_blocks * room.f_frsize
    after = digest(point)

    run("umount", str(point))
    fsck(kind, device)
    rig.cli("detach", device)
    complaints = finish(rig)
    return {
        "same": same,
        "listed": listed,
        "refusal": refusal,
        "trimmed": trimmed,
        "total": total,
        "kept": {name: after.get(name) for name in tree} == tree,
        "complaints": complaints,
    }


def _record(place: int, number: int) -> bytes:
    return f"{place:16}{number:16}".encode() * (_RECORD // 32)


def restarts(connections: int, times: int) -> dict[str, object]:
    """Stops and starts the daemon under a busy file system."""
    rig = make_pool()
    rig.create("v", "200M")
    rig.cli("set", "full-timeout=300")
    refusals = [rig.run("attach", "v", "--connections", "2").stderr]
    rig.cli("set", "full-timeout=60")
    device = rig.cli("attach", "v", "--connections", str(connections)).strip()
    if connections > 1:
        refusals.append(rig.run("set", "full-timeout=300").stderr)
        refusals.append(rig.run("set", "--volume", "v", "iops=1").stderr)
    mkfs("ext4", device)
    point = mount_point("v")
    run("mount", "-o", "errors=remount-ro", device, str(point))
    with Writer(point) as writer:
        for _ in range(times):
            writer.wait_for_rounds(3)
            rig.stop()
            rig.start()
            writer.wait_for_rounds(10)
        clients = opened_by(rig, "v")
    drop_caches()
    found = {name: one for name, one in digest(point).items() if name in writer.written}
    run("umount", str(point))
    fsck("ext4", device)
    rig.cli("detach", "v")
    return {
        "same": found == writer.written,
        "complaints": finish(rig),
        "command": clients[0]["command"],
        "connections": clients[0]["connections"],
        "refusals": refusals,
    }


def kills(connections: int, times: int) -> dict[str, object]:
    """Ends the daemon with SIGKILL, under a file system and a bare device that are busy.

    Nobody but the daemon dies: what was answered must be there, flushed or not.
    """
    rig = make_pool("900M")
    rig.create("v", "200M")
    rig.create("bare", "64M")
    several = ("--connections", str(connections))
    device = rig.cli("attach", "v", *several).strip()
    bare = rig.cli("attach", "bare", *several).strip()
    mkfs("ext4", device)
    point = mount_point("v")
    run("mount", "-o", "errors=remount-ro", device, str(point))
    tree = digest(TREE)
    copied = []
    with Writer(point) as writer, DirectWriter(bare, 64 * MIB // _RECORD) as direct:
        for number in range(times):
            writer.wait_for_rounds(3)
            direct.wait_for_rounds(100)
            copied.append(point / f"copied-{number}")
            run("cp", "-r", str(TREE), str(copied[-1]))
            # Handed to the device, and not flushed there.
            run("sync", "-f", str(point)) if number % 2 else drop_caches()
            rig.kill()
            rig.start()
            writer.wait_for_rounds(10)
            direct.wait_for_rounds(100)
    drop_caches()
    found = {name: one for name, one in digest(point).items() if name in writer.written}
    kept = [digest(copy) == tree for copy in copied]
    writable = os.access(point, os.W_OK)
    run("umount", str(point))
    fsck("ext4", device)
    lost = direct.lost()
    rig.cli("detach", "v")
    rig.cli("detach", "bare")
    return {
        "kept": kept,
        "same": found == writer.written,
        "lost": lost,
        "writable": writable,
        "complaints": finish(rig),
    }


def opened_by(rig: PoolRig, volume: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = rig.volumes()[volume]["opened_by"]
    return found


def keepers_die() -> dict[str, object]:
    """Ends keeper and daemon with SIGKILL; --refresh takes the busy device over."""
    rig = make_pool()
    rig.create("v", "200M")
    device = rig.cli("attach", "v").strip()
    mkfs("ext4", device)
    point = mount_point("v")
    run("mount", "-o", "errors=remount-ro", device, str(point))
    refusals = []
    with Writer(point) as writer:
        writer.wait_for_rounds(3)
        keeper = int(json.loads(Path("/run/thinpool-attach/nbd0.json").read_text())["pid"])
        handle = os.pidfd_open(keeper)
        os.kill(keeper, signal.SIGKILL)
        select.select([handle], [], [])
        os.close(handle)
        # Nobody reconnects it now, and nobody takes it for free.
        writer.wait_for_rounds(3)
        rig.kill()
        rig.start()
        refusals.append(rig.run("attach", "v").stderr)
        rig.cli("attach", "v", "--refresh")
        writer.wait_for_rounds(10)
        # The new one does what the old one did.
        rig.stop()
        refusals.append(rig.run("delete", "v").stderr)
        rig.start()
        writer.wait_for_rounds(10)
    drop_caches()
    found = {name: one for name, one in digest(point).items() if name in writer.written}
    refusals.append(rig.run("detach", "v").stderr)
    run("umount", str(point))
    fsck("ext4", device)
    rig.cli("detach", "v")
    return {"same": found == writer.written, "refusals": refusals, "complaints": finish(rig)}


def taken_by_force() -> dict[str, object]:
    """The daemon is gone, or hangs, under a busy file system: the device is taken away."""
    rig = make_pool()
    rig.create("v", "200M")
    point = mount_point("v")
    refusals, forced = [], []
    for gone in (True, False):
        device = rig.cli("attach", "v").strip()
        if gone:
            mkfs("ext4", device)
        else:
            shell(f"e2fsck -fp {device} || test $? -eq 1")
        run("mount", device, str(point))
        keeper = int(json.loads(Path("/run/thinpool-attach/nbd0.json").read_text())["pid"])
        (point / f"kept-{gone}").write_text("written")
        run("sync", "-f", str(point))
        (point / "unwritten").write_text("x" * 100_000)
        with open(point / f"kept-{gone}", "rb") if not gone else nullcontext():
            if gone:
                rig.kill()
            else:
                os.kill(rig.pid, signal.SIGSTOP)
            refusals += [
                rig.run("detach", device, word).stderr for word in ("--unmount", "--force")
            ]
            forced.append(rig.run("detach", device, "--unmount", "--force").stderr)
        left = [
            os.path.ismount(point),
            Path("/proc", str(keeper)).exists() and "thinpool-keeper" in _command(keeper),
            Path("/run/thinpool-attach/nbd0.json").exists(),
        ]
        if not gone:
            os.kill(rig.pid, signal.SIGCONT)
        else:
            rig.start()
        forced.append(str(left))
    device = rig.cli("attach", "v").strip()
    # What it mends is what a power cut leaves.
    shell(f"e2fsck -fp {device} || test $? -eq 1")
    fsck("ext4", device)
    run("mount", device, str(point))
    kept = sorted(one.name for one in point.iterdir() if one.name.startswith("kept"))
    run("umount", str(point))
    rig.cli("detach", "v")
    return {"refusals": refusals, "forced": forced, "kept": kept, "complaints": finish(rig)}


def _command(pid: int) -> str:
    try:
        return Path("/proc", str(pid), "comm").read_text()
    except OSError:
        return ""


def four_at_once() -> dict[str, object]:
    """Four volumes, each with a file system, all busy; then none is left attached."""
    rig = make_pool("900M")
    names = ["a", "b", "c", "d"]
    for name in names:
        rig.create(name, "100M")
        device = rig.cli("attach", name).strip()
        mkfs("ext4", device)
        run("mount", device, str(mount_point(name)))
    devices = [device_of(rig, name) for name in names]
    copies = [
        subprocess.Popen(["cp", "-r", str(TREE), str(mount_point(name) / "tree")]) for name in names
    ]
    codes = [copy.wait() for copy in copies]
    drop_caches()
    tree = digest(TREE)
    same = [digest(mount_point(name) / "tree") == tree for name in names]
    for name, device in zip(names, devices, strict=True):
        run("umount", str(mount_point(name)))
        fsck("ext4", device)
        rig.cli("detach", name)
    left = [volume["attached"] for volume in rig.volumes().values()]
    complaints = finish(rig)
    return {
        "devices": devices,
        "codes": codes,
        "same": same,
        "left": left,
        "complaints": complaints,
    }
