"""Telling a pool's data device from another that lies where it should, or from an older copy of it.

A data device carries a mark: its pool's uuid, and a number, the life, that goes up each time the
pool is opened to be served (`lives`). A file has both in extended attributes, where its file system
has those. A block device has them in its last 4 KiB (`device_mark`). One that has no room for them
stays as it is; the pool knows it by what the kernel knows it by, the ids that do not change when it
gets another name. The pool's record says which mark is expected, and where (`MarkState`).

Invariants

1. A device with another pool's mark, where the record expects the pool's or at the device's end, is
   never this pool's.
2. A device whose life is neither the record's nor the one it has announced is another copy.
3. Without a life, in the record or in the mark, the life is 0.

What this cannot tell: a copy that was made in the life that the pool is in. Of a pool that is
stopped that is a true copy, until the pool starts again.

Thread-safety: no state.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import uuid as uuids
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from thinpoold import device_mark
from thinpoold.device import DataDevice, failure
from thinpoold.device_mark import MARK_BYTES, DeviceMark
from thinpoold.errors import DeviceError
from thinpoold.pool_record import MarkState, PoolRecord

FIRST_LIFE: Final = 1

_POOL: Final = "user.thinpoold.pool"
_LIFE: Final = "user.thinpoold.life"
# In what a file is known by: it has a mark.
_MARK: Final = "mark"

# Below /sys/dev/block/M:m. The first that a device has is what it is known by.
_IDS: Final = ("dm/uuid", "md/uuid", "device/wwid", "wwid", "device/serial", "serial")

_ACCEPT: Final = (
    "if it is the right one all the same, stop the pool and say so with "
    "'thinpool check --accept-data'"
)


class Device(Protocol):
    """What is looked at: an open `DataDevice`, or one that `check` has opened to look."""

    @property
    def path(self) -> Path: ...
    @property
    def fd(self) -> int: ...
    @property
    def regular(self) -> bool: ...
    @property
    def size(self) -> int: ...


@dataclass(frozen=True)
class _Looked:
    path: Path
    fd: int
    regular: bool
    size: int


@dataclass(frozen=True)
class _Seen:
    """A mark. `owner` is the uuid of its pool, in words."""

    owner: str
    life: int


# --- judging --------------------------------------------------------------------------------------


def check_unclaimed(device: Device, *, force: bool) -> None:
    """Raise `DeviceError` when the device carries the mark of a pool.

    `force` takes a block device all the same. It does not take a file, for a file can be removed.
    """
    owner = _owner_of(device)
    if owner and device.regular:
        raise DeviceError(
            f"data device {device.path} belongs to the pool {owner}; choose another, or remove it "
            "if that pool is gone"
        )
    if owner and not force:
        raise DeviceError(
            f"data device {device.path} belongs to the pool {owner}; choose another, or if that "
            "pool is gone say --force: what it holds is lost then"
        )


def check_ours(device: Device, record: PoolRecord, data_bytes: int) -> None:
    """Raise `DeviceError` unless the device is the one that the pool's record describes.

    `data_bytes` is how much data the pool can hold: no mark lies below, but volumes' data.
    """
    why = _foreign(device, record, data_bytes) or _mismatch(device, record, data_bytes)
    if why:
        raise DeviceError(f"data device {device.path} {why}")


def check_acceptable(device: Device, record: PoolRecord, data_bytes: int) -> None:
    """Raise `DeviceError` when the device is another pool's; an administrator vouches for it."""
    why = _foreign(device, record, data_bytes)
    if why:
        raise DeviceError(f"data device {device.path} {why}")


def look(path: Path, record: PoolRecord, data_bytes: int) -> str:
    """Return what speaks against the device at `path`, '' for nothing. Takes no lock.

    Raises `DeviceError` when the device cannot be looked at.
    """
    try:
        # Not to wait for whoever opens the other end of a pipe.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise failure(f"data device {path}", error) from None
    try:
        mode = os.fstat(fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            return "is neither a file nor a block device"
        size = os.lseek(fd, 0, os.SEEK_END)
        device = _Looked(path, fd, stat.S_ISREG(mode), size)
        return _foreign(device, record, data_bytes) or _mismatch(device, record, data_bytes)
    finally:
        os.close(fd)


def found_lives(device: Device, record: PoolRecord, data_bytes: int) -> set[int]:
    """The lives of this pool's marks on the device, where one may be; empty without a mark."""
    if device.regular:
        seen = _on_file(device)
        return {seen.life} if seen is not None else set()
    state = record.data_mark
    places = [one for one in (state.at, state.next_at) if one is not None]
    if state.at is None:
        places = _places(device, state, data_bytes)
    found = [_at(device, offset) for offset in places]
    return {seen.life for seen in found if seen is not None and seen.owner == _text(record.uuid)}


def _foreign(device: Device, record: PoolRecord, data_bytes: int) -> str:
    """Which other pool's mark the device has, as the end of a sentence; '' for none."""
    ours = _text(record.uuid)
    if device.regular:
        seen = _on_file(device)
        if seen is not None and seen.owner != ours:
            return (
                f"belongs to another pool, {seen.owner}: put this pool's own in its place, or "
                "remove its mark, if you know that it is this pool's, with "
                f"'setfattr -x {_POOL} {device.path}'"
            )
        return ""
    for offset in _places(device, record.data_mark, data_bytes):
        seen = _at(device, offset)
        if seen is not None and seen.owner != ours:
            return (
                f"belongs to another pool, {seen.owner}: put this pool's own in its place, or "
                "erase the mark, if you know that it is this pool's, with 'dd if=/dev/zero "
                f"of={device.path} bs={MARK_BYTES} seek={offset // MARK_BYTES} count=1'"
            )
    return ""


def _mismatch(device: Device, record: PoolRecord, data_bytes: int) -> str:
    """Why a device without another pool's mark is not this pool's, as the end of a sentence."""
    state = record.data_mark
    lives = found_lives(device, record, data_bytes)
    if device.regular and _MARK not in record.data_known_by:
        return ""
    if not lives and (device.regular or state.at is not None):
        return f"is not this pool's: it has not its mark; {_ACCEPT}"
    if lives and not state.allowed & lives:
        life = max(lives)
        older = life < min(state.allowed)
        newest = "put back the newer one" if older else "put back the metadata of the same time"
        other = "the older metadata that goes with it" if older else "the older data device"
        return (
            f"is {'an older' if older else 'a newer'} copy than the pool's metadata: its mark is "
            f"of life {life}, the metadata of life {' or '.join(map(str, sorted(state.allowed)))}; "
            f"{newest}, or {other}; {_ACCEPT}"
        )
    if device.regular:
        return ""
    found = _ids(device)
    for key, value in record.data_known_by.items():
        if key in found and found[key] != value:
            return f"is not this pool's: its {key} is {found[key]}, not {value}; {_ACCEPT}"
    return ""


# --- marking --------------------------------------------------------------------------------------


def claim(device: DataDevice, uuid: bytes) -> tuple[dict[str, str], MarkState]:
    """Mark the device as a new pool's, durably; return what to remember it by.

    Raises `DeviceError` where a block device cannot be written.
    """
    at = new_place(device, 0)
    try:
        put(device, uuid, FIRST_LIFE, at)
    except OSError:
        # A file system without extended attributes.
        return {}, MarkState()
    return known_by(device), MarkState(FIRST_LIFE, at)


@contextmanager
def undone_on_failure(device: DataDevice) -> Iterator[None]:
    """Have the device as it was before, when what claims it fails."""
    at = new_place(device, 0)
    before = _read(device, at) if at is not None else b""
    try:
        yield
    except BaseException:
        with suppress(DeviceError):
            if at is not None:
                _write(device, before, at)
                device.flush()
        for name in (_POOL, _LIFE) if device.regular else ():
            with suppress(OSError):
                os.removexattr(device.fd, name)
        raise


def new_place(device: Device, data_bytes: int) -> int | None:
    """Where the mark goes, behind `data_bytes` of data: None on a file, or without room."""
    at = None if device.regular else device_mark.place(device.size)
    return at if at is not None and at >= data_bytes else None


def put(device: DataDevice, uuid: bytes, life: int, at: int | None) -> None:
    """Write a mark, durably: at `at` on a block device, into a file's attributes if that is None.

    Raises `OSError` where a file takes no attributes, `DeviceError` when the device fails.
    """
    if at is None:
        os.setxattr(device.fd, _POOL, _text(uuid).encode())
        os.setxattr(device.fd, _LIFE, str(life).encode())
    else:
        _write(device, DeviceMark(uuid, life, at).pack(), at)
    device.flush_all()


def known_by(device: Device) -> dict[str, str]:
    """What to remember a device by that has its mark, or has no room for one."""
    return {_MARK: "xattr"} if device.regular else _ids(device)


# --- pieces ---------------------------------------------------------------------------------------


def _text(uuid: bytes) -> str:
    return str(uuids.UUID(bytes=uuid))


def _owner_of(device: Device) -> str:
    if device.regular:
        seen = _on_file(device)
    else:
        at = device_mark.place(device.size)
        seen = _at(device, at) if at is not None else None
    return seen.owner if seen is not None else ""


def _places(device: Device, state: MarkState, data_bytes: int) -> list[int]:
    """Where a mark may lie: where the record says, and at the device's end."""
    places = (state.at, state.next_at, new_place(device, data_bytes))
    return sorted({place for place in places if place is not None})


def _on_file(device: Device) -> _Seen | None:
    try:
        owner = os.getxattr(device.fd, _POOL).decode("ascii", "replace")
    except OSError:
        return None
    try:
        return _Seen(owner, int(os.getxattr(device.fd, _LIFE)))
    except (OSError, ValueError):
        return _Seen(owner, 0)


def _at(device: Device, offset: int) -> _Seen | None:
    if offset + MARK_BYTES > device.size:
        return None
    mark = device_mark.unpack(_read(device, offset), offset)
    return _Seen(_text(mark.uuid), mark.life) if mark is not None else None


def _read(device: Device, offset: int) -> bytes:
    # Aligned in memory as on the device, so that it may be open with O_DIRECT.
    with mmap.mmap(-1, MARK_BYTES) as memory:
        try:
            count = os.preadv(device.fd, [memory], offset)
        except OSError as error:
            raise failure(f"read of the mark on data device {device.path}", error) from None
        return memory[:count]


def _write(device: DataDevice, octets: bytes, offset: int) -> None:
    with mmap.mmap(-1, MARK_BYTES) as memory:
        memory[:] = octets
        try:
            if os.pwritev(device.fd, [memory], offset) != MARK_BYTES:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        except OSError as error:
            raise failure(f"write of the mark on data device {device.path}", error) from None


def _ids(device: Device) -> dict[str, str]:
    number = os.fstat(device.fd).st_rdev
    node = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    disk = Path(os.path.realpath(node))
    found = {}
    if (disk / "partition").exists():
        found["partition"] = _text_of(disk / "partition")
        disk = disk.parent
    for name in _IDS:
        value = _text_of(disk / name)
        if value:
            found[name] = value
            break
    return found


def _text_of(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""
