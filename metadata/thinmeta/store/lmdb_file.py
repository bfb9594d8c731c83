"""LMDB's file seen from outside: what its errors mean, its size, and whether its pages are sound.

Thread safety: any thread.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any, Final

import lmdb
import lmdb.verify

from thinmeta.errors import (
    Corrupt,
    NoMetadataSpace,
    StoreError,
    ThinMetaError,
    UnsupportedFormat,
)

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DAMAGED: Final = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError)


def translated(error: lmdb.Error | OSError, path: Path) -> ThinMetaError:
    """What an error of LMDB's, or of the system's below it, means to a store's caller."""
    code = (error.errno if isinstance(error, OSError) else error.code) or 0
    message = str(error) if str(path) in str(error) else f"{path}: {error}"
    if isinstance(error, lmdb.MapFullError) or code in _FULL:
        return NoMetadataSpace(message)
    if isinstance(error, _DAMAGED):
        return Corrupt("store", str(path), str(error).removeprefix(f"{path}: "))
    if isinstance(error, lmdb.VersionMismatchError):
        return UnsupportedFormat(message)
    # LMDB's own codes are negative.
    return StoreError(code if code > 0 else errno.EIO, message)


def file_size(path: Path) -> int:
    """Bytes of the file. Raises `StoreError`."""
    try:
        return path.stat().st_size
    except OSError as error:
        raise translated(error, path) from error


def verify_pages(path: Path) -> list[str]:
    """Walk LMDB's own pages without LMDB, and say what is wrong with them.

    LMDB trusts its pages: on damaged ones it may crash the process instead of raising. What this
    accepts is safe to open. On a file in use, hold a snapshot of it meanwhile.

    Raises `StoreError` if the file cannot be read.
    """
    verify: Any = lmdb.verify.verify
    try:
        return [str(problem) for problem in verify(str(path), subdir=False)]
    except lmdb.verify.VerifyError as error:
        return [str(error)]
    except OSError as error:
        raise translated(error, path) from error
