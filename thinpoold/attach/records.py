"""What this machine has attached: a file for each attachment, in a directory of their own.

    /run/thinpool-attach/nbd0.json          root's
    $XDG_RUNTIME_DIR/thinpool-attach/...    a user's; /tmp/thinpool-attach-UID without one

Invariants

1. A record is believed only while what it tells of is there: the device is still connected by the
   process that the record names, or FUSE's mount is there. Others are left over, and removed by
   whoever may.
2. A record is replaced whole, by renaming.
3. Changes are made with the directory's lock held: two commands never work on one device.
4. Records are believed of root, and of this user: those in a directory that another user made, or
   that others can write to, are nobody's.

Thread-safety: files; any thread.
"""

import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from thinpoold.attach.devices import BlockDevice, NbdDevice
from thinpoold.attach.errors import AttachFailed
from thinpoold.attach.mounts import PROC, mount_points, mounts
from thinpoold.waiting import Waiting

_NAME = "thinpool-attach"
ROOTS = Path("/run") / _NAME
# Longer than any command works on a device.
LOCK_SECONDS = 180.0
_LOOK_AGAIN = 0.02
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH

NBD = "nbd"
FUSE = "fuse"


@dataclass(frozen=True)
class Attachment:
    """One volume that is attached.

    `device` is what the user got: an nbd device, a loop device, or a file. `pid` is the process
    that stays with it (keeper or nbdfuse) and `started` tells it from a later one of that number.
    `clients` are the processes whose connections to the daemon serve it. `connector` is what
    /sys/block/nbdN/pid says. `renewed` counts how often it was reconnected. `file` is nbdfuse's
    file, `patience` the seconds that I/O waits for a lost daemon; `generation` the volume's when it
    was attached, 0 in records of older programs.
    """

    kind: str
    device: str
    pool: str
    volume: str
    uuid: str
    read_only: bool
    pid: int
    started: int
    connector: int = 0
    clients: tuple[int, ...] = ()
    connections: int = 1
    patience: int = 0
    renewed: int = 0
    file: str = ""
    generation: int = 0

    @property
    def block_device(self) -> BlockDevice | None:
        path = Path(self.device)
        if self.kind == NBD:
            return NbdDevice(path.name)
        return BlockDevice(path.name) if path.parent == Path("/dev") else None

    @property
    def is_live(self) -> bool:
        """Whether it is still attached."""
        if self.kind == NBD:
            return NbdDevice(Path(self.device).name).connector == self.connector
        # Also without its nbdfuse: then it fails everything, and is to be detached.
        return any(one.point == os.path.dirname(self.file) for one in mounts())

    @property
    def is_kept(self) -> bool:
        """Whether the process that stays with it runs."""
        return start_time(self.pid) == self.started

    def mounts(self) -> list[str]:
        """Where it is mounted."""
        device = self.block_device
        return mount_points(device) if device is not None else []

    def renewed_by(self, pid: int, volume: str) -> "Attachment":
        """The record after one process made all connections anew; `volume` is its name now."""
        return replace(self, clients=(pid,), volume=volume, renewed=self.renewed + 1)

    def fact(self) -> dict[str, Any]:
        """What `list --json` says of it."""
        return {"device": self.device, "mounts": self.mounts(), "read_only": self.read_only}


def directory() -> Path:
    """Where this user's records lie."""
    if os.geteuid() == 0:
        return ROOTS
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime):
        return Path(runtime) / _NAME
    return Path("/tmp") / f"{_NAME}-{os.geteuid()}"


def make_directory() -> Path:
    """Make the directory, and return it. Raises AttachFailed when somebody else has it."""
    place = directory()
    try:
        # Others may see what is attached; what they see is no secret.
        place.mkdir(mode=0o755, parents=True, exist_ok=True)
        found = place.lstat()
    except OSError as error:
        raise AttachFailed(f"{place}: {error.strerror}") from None
    if found.st_uid != os.geteuid() or not stat.S_ISDIR(found.st_mode):
        raise AttachFailed(f"{place} belongs to user {found.st_uid}: have it removed")
    if found.st_mode & _OTHERS_WRITE:
        raise AttachFailed(f"{place} can be written by others: have it removed")
    return place


def _is_trusted(place: Path) -> bool:
    """Whether nobody but root and this user can have put records there."""
    try:
        found = place.lstat()
    except OSError:
        return False
    ours = found.st_uid in (0, os.geteuid()) and stat.S_ISDIR(found.st_mode)
    return ours and not found.st_mode & _OTHERS_WRITE


@contextmanager
def locked() -> Iterator[None]:
    """The lock of this user's records. Raises AttachFailed when others have it for long."""
    fd = os.open(make_directory() / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with Waiting("another attach or detach to end", f"for at most {LOCK_SECONDS:.0f} s"):
            _lock(fd)
        yield
    finally:
        os.close(fd)


def _lock(fd: int) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise AttachFailed(
                    "another attach or detach is under way, and does not come to its end: try "
                    "again, or end it"
                ) from None
        # flock cannot wait with a limit.
        time.sleep(_LOOK_AGAIN)


def save(attachment: Attachment) -> None:
    """Write a record, in the place of the one there is. Raises AttachFailed, OSError."""
    path = _path(attachment)
    scratch = path.with_suffix(".new")
    scratch.write_text(json.dumps(asdict(attachment)))
    scratch.chmod(0o644)
    scratch.replace(path)


def remove(attachment: Attachment) -> None:
    """Remove a record."""
    _path(attachment).unlink(missing_ok=True)


def attachments(pool: Path | None = None) -> list[Attachment]:
    """What is attached, of one pool or of all; by device."""
    found = []
    for place in filter(_is_trusted, dict.fromkeys((ROOTS, directory()))):
        for path in sorted(place.glob("*.json")):
            attachment = _load(path)
            if attachment is None or (pool is not None and attachment.pool != str(pool)):
                continue
            if attachment.is_live:
                found.append(attachment)
    return sorted(found, key=lambda one: one.device)


def reread(attachment: Attachment) -> Attachment | None:
    """The record of the same device as it is now."""
    return _load(_path(attachment))


def clear_stale() -> None:
    """Remove this user's records of what is no longer attached. Under the lock."""
    for path in directory().glob("*.json"):
        attachment = _load(path)
        if attachment is None or not attachment.is_live:
            path.unlink(missing_ok=True)


def start_time(pid: int, proc: Path = PROC) -> int:
    """When a process started, in ticks since boot; 0 when there is none."""
    try:
        text = (proc / str(pid) / "stat").read_text(errors="replace")
        # Its name, in parentheses, may hold anything. A zombie is gone.
        state, *rest = text.rpartition(")")[2].split()
        return 0 if state in "ZX" else int(rest[18])
    except (OSError, ValueError, IndexError):
        return 0


def _path(attachment: Attachment) -> Path:
    name = os.path.basename(attachment.device) if attachment.kind == NBD else attachment.uuid
    return directory() / f"{name}.json"


def _load(path: Path) -> Attachment | None:
    known = {field.name for field in fields(Attachment)}
    try:
        values = json.loads(path.read_text())
        values = {name: value for name, value in values.items() if name in known}
        return Attachment(**{**values, "clients": tuple(values.get("clients", ()))})
    except (OSError, ValueError, TypeError, AttributeError):
        return None
