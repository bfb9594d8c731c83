"""What the kernel says of its page cache: how much is unwritten, and whether writing has failed.

Thread-safety: no state.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_VMSTAT: Final = Path("/proc/vmstat")


@dataclass(frozen=True, slots=True)
class Unwritten:
    """`now` bytes are unwritten; with more than `free` the kernel slows down whoever writes."""

    now: int
    free: int


_syncfs = ctypes.CDLL(None, use_errno=True).syncfs


def sync_file_system(fd: int) -> None:
    """Write out the file system that a file is in.

    Raises `OSError` when that fails, or when write-back of any of its files has failed since
    somebody was last told so by this call.
    """
    if _syncfs(fd):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def check_written(fd: int) -> None:
    """Raise `OSError` if writing out what the page cache has of a file fails, or has failed.

    Takes a descriptor that only reads. Nobody is told a second time, but for whoever asks the file
    system (`sync_file_system`): it keeps errors of its own.
    """
    try:
        os.fdatasync(fd)
    except OSError as error:
        # A file system that knows no writing, like squashfs.
        if error.errno != errno.EINVAL:
            raise


def drop(fd: int) -> None:
    """Evict a file's clean pages, so that what is read next is what its disk holds."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def unwritten() -> Unwritten | None:
    """Return how it is now, or None where the kernel does not tell."""
    try:
        lines = _VMSTAT.read_text().splitlines()
        counts = dict(line.split(" ", 1) for line in lines if line.startswith("nr_"))
        pages = int(counts["nr_dirty"]) + int(counts["nr_writeback"])
        # Halfway between where it begins to write and where nobody may write any more.
        ends = int(counts["nr_dirty_background_threshold"]) + int(counts["nr_dirty_threshold"])
    except (OSError, KeyError, ValueError):
        return None
    return Unwritten(pages * mmap.PAGESIZE, ends // 2 * mmap.PAGESIZE)
