"""Whether a file or block device lies on a disk that turns, as the kernel knows it.

From the device under a file's file system down to the disks: partitions to their disk, device
mapper and md to what they are made of, loop devices to their file. A file system without a block
device of its own number (btrfs, overlayfs) is found by its mount. What cannot be told does not
turn.

Thread-safety: no state.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

_DEPTH = 16


def is_rotational(status: os.stat_result, sys: Path = Path("/sys"), mounts: str = "") -> bool:
    """Whether what `status` is of lies on a disk that turns.

    `sys` and `mounts` (the text of /proc/self/mountinfo) can be given, for tests.
    """
    if stat.S_ISBLK(status.st_mode):
        return _device_turns(status.st_rdev, sys, mounts, _DEPTH)
    return _device_turns(status.st_dev, sys, mounts, _DEPTH)


def _device_turns(number: int, sys: Path, mounts: str, depth: int) -> bool:
    if depth == 0:
        return False
    if os.major(number) == 0:
        return _mount_turns(number, sys, mounts, depth - 1)
    node = sys / "dev/block" / f"{os.major(number)}:{os.minor(number)}"
    return _disk_turns(Path(os.path.realpath(node)), sys, mounts, depth - 1)


def _disk_turns(disk: Path, sys: Path, mounts: str, depth: int) -> bool:
    if depth == 0 or not disk.is_dir():
        return False
    if (disk / "partition").exists():
        return _disk_turns(disk.parent, sys, mounts, depth - 1)
    try:
        below = [Path(os.path.realpath(one)) for one in (disk / "slaves").iterdir()]
    except OSError:
        below = []
    if below:
        return any(_disk_turns(one, sys, mounts, depth - 1) for one in below)
    backing = _read(disk / "loop/backing_file")
    if backing:
        try:
            return _device_turns(os.stat(backing).st_dev, sys, mounts, depth - 1)
        except OSError:
            return False
    return _read(disk / "queue/rotational") == "1"


def _mount_turns(number: int, sys: Path, mounts: str, depth: int) -> bool:
    """For a file system with a number that is no device's: look at what was mounted."""
    text = mounts or _read(Path("/proc/self/mountinfo"))
    wanted = f"{os.major(number)}:{os.minor(number)}"
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < 10 or fields[2] != wanted or "-" not in fields:
            continue
        source, options = fields[fields.index("-") + 2 :][:2]
        upper = [one[9:] for one in options.split(",") if one.startswith("upperdir=")]
        try:
            status = os.stat(upper[0] if upper else source)
        except OSError:
            continue
        if stat.S_ISBLK(status.st_mode):
            return _device_turns(status.st_rdev, sys, mounts, depth)
        if upper and status.st_dev != number:
            return _device_turns(status.st_dev, sys, mounts, depth)
    return False


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "surrogateescape").strip()
    except OSError:
        return ""
