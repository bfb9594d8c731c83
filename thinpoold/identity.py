"""Telling a pool's data device from another that lies where it should.

A data file carries its pool's uuid in an extended attribute, where its file system has those. A
block device must stay as it is to the byte, so its pool remembers what the kernel knows it by: the
ids that do not change when it gets another name. The volumes' data is never touched.

Thread-safety: no state.
"""

from __future__ import annotations

import os
import uuid as uuids
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from thinpoold.device import DataDevice
from thinpoold.errors import DeviceError

_ATTRIBUTE: Final = "user.thinpoold.pool"
_MARK: Final = "mark"

# Below /sys/dev/block/M:m. The first that a device has is what it is known by.
_IDS: Final = ("dm/uuid", "md/uuid", "device/wwid", "wwid", "device/serial", "serial")


def check_unclaimed(device: DataDevice) -> None:
    """Raise `DeviceError` when the device carries the mark of a pool."""
    owner = _mark_of(device)
    if owner:
        raise DeviceError(
            f"data device {device.path} belongs to the pool {owner}; choose another, or remove it "
            "if that pool is gone"
        )


def claim(device: DataDevice, uuid: bytes) -> dict[str, str]:
    """Mark the device as the pool's, and return what to remember it by."""
    if device.regular:
        try:
            os.setxattr(device.fd, _ATTRIBUTE, str(uuids.UUID(bytes=uuid)).encode())
        except OSError:
            return {}
        return {_MARK: "xattr"}
    return _known_by(device)


def check_ours(device: DataDevice, uuid: bytes, known: Mapping[str, str]) -> None:
    """Raise `DeviceError` unless the device is the one that the pool remembers."""
    if device.regular:
        mark, ours = _mark_of(device), str(uuids.UUID(bytes=uuid))
        if mark and mark != ours:
            raise DeviceError(f"data device {device.path} belongs to another pool, {mark}")
        if not mark and known.get(_MARK):
            raise DeviceError(
                f"data device {device.path} is not this pool's: it has not its mark; if it is "
                f"a true copy, say so with 'setfattr -n {_ATTRIBUTE} -v {ours} {device.path}'"
            )
        return
    found = _known_by(device)
    for key, value in known.items():
        if key in found and found[key] != value:
            raise DeviceError(
                f"data device {device.path} is not this pool's: its {key} is {found[key]}, "
                f"not {value}"
            )


def _mark_of(device: DataDevice) -> str:
    if not device.regular:
        return ""
    try:
        return os.getxattr(device.fd, _ATTRIBUTE).decode("ascii", "replace")
    except OSError:
        return ""


def _known_by(device: DataDevice) -> dict[str, str]:
    number = os.fstat(device.fd).st_rdev
    node = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    disk = Path(os.path.realpath(node))
    found = {}
    if (disk / "partition").exists():
        found["partition"] = _read(disk / "partition")
        disk = disk.parent
    for name in _IDS:
        value = _read(disk / name)
        if value:
            found[name] = value
            break
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""
