"""Telling whether a file or block device that is to hold a pool's data holds somebody's already.

Invariants

1. Nothing is written, and the device stays open and locked as it was.
2. A file is somebody's as soon as one byte of it is not zero; holes are skipped, not read. A block
   device may hold old bytes that nobody misses, so there it is a signature that counts: that of a
   file system, a RAID, a partition table, as blkid knows them. Without blkid it is a byte that is
   not zero in the first or last mebibyte, where signatures lie.

Thread-safety: no state.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator

from thinpoold.device import DataDevice
from thinpoold.errors import DeviceError, UserError

_PIECE = 1 << 20
_ZEROES = bytes(_PIECE)
_SYSTEM = ("/usr/sbin", "/sbin")
# blkid's exit statuses: nothing found, and more than one signature.
_NOTHING = 2
_SEVERAL = 8
_PATIENCE = 60.0


def check_empty(device: DataDevice) -> None:
    """Raise `UserError` when the device holds data, `DeviceError` when it cannot be told."""
    try:
        found = _in_file(device) if device.regular else _on_device(device)
    except OSError as error:
        raise DeviceError(
            f"data device {device.path}: {error.strerror}", error.errno or errno.EIO
        ) from None
    if found:
        raise UserError(
            f"data device {device.path} is not ours: it holds {found}, which would be lost; name "
            "another, or say --force to use it all the same"
        )


def _in_file(device: DataDevice) -> str:
    for offset, end in _extents(device.fd):
        if not _is_zero(device.fd, offset, end):
            return "data"
    return ""


def _extents(fd: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of a file that are no holes."""
    offset = 0
    while True:
        try:
            offset = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = os.lseek(fd, offset, os.SEEK_HOLE)
        yield offset, end
        offset = end


def _on_device(device: DataDevice) -> str:
    told = signature(str(device.path))
    if told is not None:
        return told
    ends = ((0, min(_PIECE, device.size)), (max(0, device.size - _PIECE), device.size))
    return (
        "" if all(_is_zero(device.fd, *part) for part in ends) else "data at its beginning or end"
    )


def signature(path: str) -> str | None:
    """Return what blkid sees on a device, '' for nothing, None when it cannot say."""
    search = os.pathsep.join((os.environ.get("PATH", os.defpath), *_SYSTEM))
    blkid = shutil.which("blkid", path=search)
    if blkid is None:
        return None
    command = [blkid, "--probe", "--output", "export", "--", path]
    try:
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, timeout=_PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode == _NOTHING:
        return ""
    if done.returncode == _SEVERAL:
        return "several signatures"
    if done.returncode != 0:
        return None
    lines = (line.partition("=") for line in done.stdout.decode("utf-8", "replace").splitlines())
    facts = {key: value for key, _, value in lines}
    kind = facts.get("TYPE") or facts.get("PTTYPE")
    return f"a signature of {kind}" if kind else "a signature"


def _is_zero(fd: int, offset: int, end: int) -> bool:
    buffer = bytearray(_PIECE)
    view = memoryview(buffer)
    while offset < end:
        count = os.preadv(fd, [view[: min(_PIECE, end - offset)]], offset)
        if count == 0:
            # The file became shorter meanwhile.
            return True
        # Not through the view: bytes compare at the speed of memory.
        if (buffer if count == _PIECE else buffer[:count]) != _ZEROES[:count]:
            return False
        offset += count
    return True
