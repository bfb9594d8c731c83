"""A pool's metadata file, opened as the pool's other files are: see `poolfiles`.

LMDB opens it by its path, and its lock file beside it, and makes that where there is none.

Thread-safety: any thread.
"""

import errno
import os
from pathlib import Path

from thinmeta.errors import StoreError
from thinmeta.store.lmdb import LmdbStore
from thinpoold import poolfiles
from thinpoold.errors import DeviceError


def open_store(path: Path, *, create: bool = False, read_only: bool = False) -> LmdbStore:
    """Open the store at `path`. Raises `DeviceError`, and what `LmdbStore` raises."""
    beside = path.with_name(path.name + "-lock")
    try:
        for one in (path, beside):
            poolfiles.check(one)
        with poolfiles.acting_as_owner(path.parent):
            return LmdbStore(path, create=create, read_only=read_only)
    except StoreError as error:
        if error.errno not in (errno.EACCES, errno.EPERM):
            raise
        # LMDB does not say which of the two it may not open.
        one = beside if poolfiles.is_anothers(beside) else path
        text = poolfiles.explained(error.errno, os.strerror(error.errno), one)
        raise DeviceError(f"{one}: {text}", error.errno) from None
    except OSError as error:
        raise DeviceError(f"{error.filename}: {error.strerror}", error.errno or 0) from None
