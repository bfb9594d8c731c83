"""Jobs on volumes that are attached with nbd-client, inside the machine: file systems on them.

The daemon runs inside as well: Unix sockets do not cross from the host.
"""

import hashlib
import os
import subprocess
import threading
from pathlib import Path

from tests.support.pools import PoolRig
from tests.uml.inside.commands import run

TREE = Path(__file__).resolve().parents[3] / "metadata"
MIB = 1 << 20


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


def mkfs(kind: str, device: str) -> None:
    run(f"mkfs.{kind}", "-q", device)


def check_file_system(kind: str, device: str) -> None:
    """The file system's own checker, which changes nothing."""
    run("xfs_repair", "-n", device) if kind == "xfs" else run(f"fsck.{kind}", "-fn", device)


def grow_file_system(kind: str, device: str, point: Path) -> None:
    run("xfs_growfs", str(point)) if kind == "xfs" else run("resize2fs", device)


def drop_caches() -> None:
    run("sync")
    Path("/proc/sys/vm/drop_caches").write_text("3")


def device_of(rig: PoolRig, volume: str) -> str:
    return str(rig.volumes()[volume]["attached"][0]["device"])


class Writer:
    """Keeps a mounted file system busy from a thread: writes, syncs, and knows what it wrote."""

    def __init__(self, point: Path) -> None:
        self._point = point
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._error: Exception | None = None
        self.rounds = 0
        self.written: dict[str, str] = {}

    def __enter__(self) -> "Writer":
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
        name = f"busy-{self.rounds % 8}"
        data = os.urandom(MIB)
        with (self._point / name).open("wb") as file:
            file.write(data)
            # Half of what there is has been flushed, half is on its way.
            if self.rounds % 2:
                os.fsync(file.fileno())
        self.written[name] = hashlib.sha256(data).hexdigest()

    def wait_for_rounds(self, count: int) -> None:
        """Wait until so many more rounds are done: I/O goes on."""
        goal = self.rounds + count
        while self.rounds < goal:
            if not self._thread.is_alive():
                raise self._error or AssertionError("the writer ended")
            self._stop.wait(0.05)


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
    check_file_system(kind, device)
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


def restarts() -> dict[str, object]:
    """Stops and starts the daemon under a busy file system."""
    rig = make_pool()
    rig.create("v", "200M")
    device = rig.cli("attach", "v").strip()
    mkfs("ext4", device)
    point = mount_point("v")
    run("mount", "-o", "errors=remount-ro", device, str(point))
    with Writer(point) as writer:
        for _ in range(2):
            writer.wait_for_rounds(3)
            rig.stop()
            rig.start()
            writer.wait_for_rounds(10)
    drop_caches()
    found = {name: one for name, one in digest(point).items() if name in writer.written}
    run("umount", str(point))
    check_file_system("ext4", device)
    rig.cli("detach", "v")
    return {"same": found == writer.written, "complaints": finish(rig)}


def kills() -> dict[str, object]:
    """Ends the daemon with SIGKILL, under a file system that is busy."""
    rig = make_pool()
    rig.create("v", "200M")
    device = rig.cli("attach", "v").strip()
    mkfs("ext4", device)
    point = mount_point("v")
    run("mount", "-o", "errors=remount-ro", device, str(point))
    synced = {}
    with Writer(point) as writer:
        for number in range(3):
            writer.wait_for_rounds(3)
            name = f"synced-{number}"
            run("cp", "-r", str(TREE), str(point / name))
            run("sync", "-f", str(point))
            synced.update(digest(point / name))
            rig.kill()
            rig.start()
            writer.wait_for_rounds(10)
    drop_caches()
    kept = all(digest(point / f"synced-{number}") == synced for number in range(3))
    writable = os.access(point, os.W_OK)
    run("umount", str(point))
    check_file_system("ext4", device)
    rig.cli("detach", "v")
    return {"kept": kept, "writable": writable, "complaints": finish(rig)}


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
        check_file_system("ext4", device)
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
