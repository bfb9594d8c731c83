"""Room for commits: pages behind LMDB's last, written and synced before any commit needs them.

    0             used                  size
    | LMDB's pages | zeroes, on disk     |
                   <------- room -------->

A commit that fits into the room neither allocates space nor changes the file's size. So it works on
a full file system, where somebody wants to delete something. And it writes to extents that hold
data: ext4 marks an extent as written only after its first write-out, and after one that failed it
never does, whatever is written and synced there later; that reads as zeroes once the page cache
has let go of it.

Invariants

1. Behind LMDB's last page the file holds nothing but what may be overwritten.
2. Room that could not be written and synced is given back, with its pages in the page cache.

Thread safety: one thread at a time, that of the commits.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from thinmeta.store.lmdb_file import FULL, translated

#: Bytes that there always should be room for: some commits that delete or discard.
RESERVE_BYTES: Final = 2 << 20
#: Beside what is needed, the file grows by an eighth of itself, within these bounds, in bytes.
_LEAST_STEP: Final = 512 << 10
_MOST_STEP: Final = 64 << 20
_ZEROES: Final = bytes(1 << 20)


class Room:
    """The room behind the first `used` bytes of the file at `path`.

    Raises `StoreError` if the file cannot be opened or synced.
    """

    def __init__(self, path: Path, used: int) -> None:
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                os.fsync(self._fd)
                # What a commit that failed has left here counts as written to the page cache alone.
                os.posix_fadvise(self._fd, used, 0, os.POSIX_FADV_DONTNEED)
            except BaseException:
                os.close(self._fd)
                raise
        except OSError as error:
            raise translated(error, path) from error

    def make(self, used: int, wanted: int) -> bool:
        """Have room for `wanted` bytes behind the first `used`; False if the disk is full.

        Raises `StoreError` when it fails otherwise.
        """
        try:
            size = os.fstat(self._fd).st_size
            if size - used >= wanted:
                return True
            step = min(max(_LEAST_STEP, used // 8), _MOST_STEP)
            # Where there is no room for a step there may be for what is wanted.
            return self._grow(size, used + wanted + step) or self._grow(size, used + wanted)
        except OSError as error:
            raise translated(error, self._path) from error

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)

    def _grow(self, size: int, wanted: int) -> bool:
        """Write zeroes from `size` to `wanted`, and sync them; False if the disk is full."""
        facts = os.fstatvfs(self._fd)
        if facts.f_bavail * facts.f_frsize < wanted - size:
            # Others on the disk would find it full for a moment.
            return False
        try:
            at = size
            while at < wanted:
                done = os.pwrite(self._fd, _ZEROES[: wanted - at], at)
                if not done:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                at += done
            os.fsync(self._fd)
        except OSError as error:
            os.ftruncate(self._fd, size)
            if error.errno in FULL:
                return False
            raise
        return True
