"""Telling whether a file or block device that is to hold a pool's data holds somebody's already.

Invariants

1. Nothing is written, and the device stays open and locked as it was.
2. A file is somebody's as soon as one byte of it is not zero; holes are skipped, not read.
3. A block device is somebody's when blkid knows what it holds: a file system, a RAID, a partition
   table. Or when a byte is not zero in its first or last mebibyte, or in one of the probes: 4096
   pieces of 4 KiB each, evenly spread, which is all of a device of up to 16 MiB.

What the probes miss is data that lies between them. A run of data that is one part in 4096 of the
device is always found: 256 KiB of a device of 1 GiB, 256 MiB of one of 1 TiB. Where data is strewn
at random over a thousandth of a device, one such device in sixty passes for empty.

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
_PROBES = 4096
_PROBE_BYTES = 4096
# So many are under way at once.
_BATCH = 64
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
    if told:
        return told
    fd, size = device.fd, device.size
    ends = ((0, min(_PIECE, size)), (max(0, size - _PIECE), size))
    if not all(_is_zero(fd, *part) for part in ends):
        return "data at its beginning or end"
    # Else the kernel would read more around each.
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    places = probes(size)
    for first in range(0, len(places), _BATCH):
        batch = places[first : first + _BATCH]
        for offset in batch:
            os.posix_fadvise(fd, offset, _PROBE_BYTES, os.POSIX_FADV_WILLNEED)
        for offset in batch:
            if not _is_zero(fd, offset, min(offset + _PROBE_BYTES, size)):
                return f"data, at byte {offset}"
    return ""


def probes(size: int) -> list[int]:
    """Return where to look on a device of `size` bytes, ascending."""
    pieces = -(-size // _PROBE_BYTES)
    count = min(_PROBES, pieces)
    return [pieces * number // count * _PROBE_BYTES for number in range(count)]


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
