"""LMDB's file seen from outside: what its errors mean, its size, and whether its pages are sound.

Thread safety: any thread.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import lmdb
import lmdb.verify

from thinmeta.errors import (
    Busy,
    Corrupt,
    NoMetadataSpace,
    StoreError,
    ThinMetaError,
    UnsupportedFormat,
)

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# At least what LMDB needs of its lock file.
_LOCK_HEADER_BYTES: Final = 4096
_READER_BYTES: Final = 64
_DAMAGED: Final = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError)


def translated(error: lmdb.Error | OSError, path: Path) -> ThinMetaError:
    """What an error of LMDB's, or of the system's below it, means to a store's caller."""
    code = (error.errno if isinstance(error, OSError) else getattr(error, "code", 0)) or 0
    message = str(error) if str(path) in str(error) else f"{path}: {error}"
    if isinstance(error, lmdb.MapFullError) or code in FULL:
        return NoMetadataSpace(message)
    if isinstance(error, _DAMAGED):
        return Corrupt("store", str(path), str(error).removeprefix(f"{path}: "))
    if isinstance(error, lmdb.VersionMismatchError):
        return UnsupportedFormat(message)
    if code == errno.EAGAIN:
        # A process that reads locks the byte of the lock file that its process id says.
        return Busy(
            f"{path}: a process of another process id namespace reads it, whose id is "
            f"{os.getpid()} there, as this one's is here: try again, or run this in the same "
            "namespace (the same container)"
        )
    # LMDB's own codes are negative.
    return StoreError(code if code > 0 else errno.EIO, message)


def translated_commit(error: lmdb.Error | OSError, path: Path, size: int) -> ThinMetaError:
    """What a failed commit of about `size` bytes means.

    When a full disk cuts a write short, LMDB says EIO: so whether there is room is asked again.
    """
    meant = translated(error, path)
    if isinstance(meant, StoreError) and meant.errno == errno.EIO and not _has_room(path, size):
        return NoMetadataSpace(f"{path}: {os.strerror(errno.ENOSPC)}")
    return meant


def _has_room(path: Path, size: int) -> bool:
    """Whether the file can grow by `size` bytes; it is left as it was."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return True
    try:
        end = os.fstat(fd).st_size
        try:
            os.posix_fallocate(fd, end, size)
        finally:
            # LMDB uses no page past its last, and there is no other writer.
            os.ftruncate(fd, end)
    except OSError as error:
        return error.errno not in FULL
    finally:
        os.close(fd)
    return True


def file_size(path: Path) -> int:
    """Bytes of the file. Raises `StoreError`."""
    try:
        return path.stat().st_size
    except OSError as error:
        raise translated(error, path) from error


def allocate_lock(path: Path, readers: int) -> None:
    """Allocate all of the lock file of the file at `path`, for so many readers.

    LMDB maps it, and makes it with a hole: whoever writes into that on a full disk gets SIGBUS.
    Before LMDB opens it, for closing any descriptor of it gives up the process's locks. Where this
    cannot be done, LMDB says what is wrong.
    """
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(path.with_name(f"{path.name}-lock"), flags, 0o600)
    except OSError:
        return
    try:
        os.posix_fallocate(fd, 0, _LOCK_HEADER_BYTES + readers * _READER_BYTES)
    except OSError:
        pass
    finally:
        os.close(fd)


def verify_pages(path: Path) -> list[str]:
    """Walk LMDB's own pages without LMDB, and say what is wrong with them.

    LMDB trusts its pages: on damaged ones it may crash the process instead of raising. What this
    accepts is safe to open. The file may be in use, in this process or in another.

    Raises `StoreError` if it cannot be read.
    """
    verify: Any = lmdb.verify.verify
    try:
        if not verify(str(path), subdir=False):
            return []
        # Or a commit overtook the walk, which a reader's transaction prevents.
        with _held(path):
            return [str(problem) for problem in verify(str(path), subdir=False)]
    except lmdb.verify.VerifyError as error:
        return [str(error)]
    except OSError as error:
        raise translated(error, path) from error


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Keep LMDB from reusing the last commit's pages; looks at meta pages alone."""
    try:
        env = lmdb.open(os.fsencode(path), subdir=False, readonly=True, create=False)
    except lmdb.Error:
        # Open in this process, or so damaged that it cannot be.
        yield
        return
    try:
        with env.begin():
            yield
    finally:
        env.close()
