"""Who uses a block device: mounts, swap, devices built on it, processes that have it open.

Mounts are those of this process's mount namespace. What other namespaces, LVM or RAID do with a
device shows when it cannot be opened exclusively.

Thread-safety: nothing is kept; any thread.
"""

import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from thinpoold.attach.devices import BlockDevice

PROC = Path("/proc")

_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """One line of mountinfo. `number` is MAJOR:MINOR of the file system, `point` where it is."""

    number: str
    point: str
    kind: str
    source: str


def parse_mountinfo(text: str) -> list[Mount]:
    """Return the mounts, in the order they were made. See proc(5)."""
    found = []
    for line in text.splitlines():
        fields, _, rest = line.partition(" - ")
        left, right = fields.split(" "), rest.split(" ")
        if len(left) >= 5 and len(right) >= 2:
            found.append(Mount(left[2], _plain(left[4]), right[0], _plain(right[1])))
    return found


def mounts(proc: Path = PROC) -> list[Mount]:
    """The mounts that this process sees."""
    return parse_mountinfo(_read(proc / "self/mountinfo"))


def mount_points(device: BlockDevice, proc: Path = PROC) -> list[str]:
    """Where a device or a partition of it is mounted, in the order it was."""
    numbers, nodes = device.numbers(), device.nodes()
    return [
        mount.point
        for mount in mounts(proc)
        # Some file systems, btrfs for one, have numbers of their own.
        if mount.number in numbers or (mount.source[:1] == "/" and Path(mount.source) in nodes)
    ]


def swaps(proc: Path = PROC) -> list[str]:
    """The paths that this machine swaps to."""
    lines = _read(proc / "swaps").splitlines()[1:]
    return [_plain(line.split()[0]) for line in lines if line.strip()]


def users(device: BlockDevice, proc: Path = PROC) -> list[str]:
    """Say who uses a device: 'mounted on /mnt', 'in use as swap', ...; nothing when nobody does."""
    found = [f"mounted on {point}" for point in mount_points(device, proc)]
    nodes = {str(node) for node in device.nodes()}
    found += [f"in use as swap ({path})" for path in swaps(proc) if path in nodes]
    found += [f"held by /dev/{name}" for name in device.holders()]
    found += [f"open by process {pid} ({name})" for pid, name in openers(nodes, proc)]
    if not found and _is_claimed(device):
        found.append("in use by the kernel, or mounted in another mount namespace")
    return found


def openers(nodes: set[str], proc: Path = PROC) -> Iterator[tuple[int, str]]:
    """The processes, and their names, that have one of `nodes` open, as far as we may look."""
    for entry in sorted(proc.glob("[0-9]*"), key=lambda path: int(path.name)):
        if int(entry.name) == os.getpid():
            continue
        try:
            opened = {os.readlink(fd) for fd in (entry / "fd").iterdir()}
        except OSError:
            continue
        if not nodes.isdisjoint(opened):
            yield int(entry.name), _read(entry / "comm").strip()


def _is_claimed(device: BlockDevice) -> bool:
    """Whether the kernel refuses to open it exclusively."""
    try:
        os.close(os.open(device.path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def _plain(text: str) -> str:
    """Undo what the kernel escapes: blanks and backslashes, as octal numbers."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="surrogateescape")
    except OSError:
        return ""
