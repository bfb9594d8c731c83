"""A pool's metadata file, opened as the pool's other files are: see `poolfiles`.

LMDB opens it by its path, and its lock file beside it, and makes that where there is none.

Thread-safety: any thread.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from thinmeta.errors import StoreError, ThinMetaError
from thinmeta.store.lmdb import LmdbStore
from thinmeta.store.lmdb_file import verify_pages
from thinpoold import poolfiles
from thinpoold.errors import DeviceError


def open_store(path: Path, *, create: bool = False, read_only: bool = False) -> LmdbStore:
    """Open the store at `path`. Raises `DeviceError`, and what `LmdbStore` raises."""
    beside = path.with_name(path.name + "-lock")
    try:
        for one in (path, beside):
            poolfiles.check(one)
        with poolfiles.acting_as_owner(path.parent) as reached, _named(reached, path.parent):
            store = LmdbStore(reached / path.name, create=create, read_only=read_only)
        store.path = path
        return store
    except StoreError as error:
        if error.errno not in (errno.EACCES, errno.EPERM):
            raise
        # LMDB does not say which of the two it may not open.
        one = beside if poolfiles.is_anothers(beside) else path
        text = poolfiles.explained(error.errno, os.strerror(error.errno), one)
        raise DeviceError(f"{one}: {text}", error.errno) from None
    except OSError as error:
        raise DeviceError(f"{error.filename}: {error.strerror}", error.errno or 0) from None


def damaged_pages(path: Path) -> list[str]:
    """What `verify_pages` finds wrong. Raises `DeviceError`, and what that raises."""
    try:
        poolfiles.check(path)
        with poolfiles.acting_as_owner(path.parent) as reached, _named(reached, path.parent):
            found = verify_pages(reached / path.name)
    except OSError as error:
        raise DeviceError(f"{error.filename}: {error.strerror}", error.errno or 0) from None
    return [text.replace(str(reached), str(path.parent)) for text in found]


@contextmanager
def _named(reached: Path, directory: Path) -> Iterator[None]:
    """Have errors name the directory as it is known."""
    try:
        yield
    except ThinMetaError as error:
        for name, value in vars(error).items():
            if isinstance(value, str):
                setattr(error, name, value.replace(str(reached), str(directory)))
        error.args = tuple(
            one.replace(str(reached), str(directory)) if isinstance(one, str) else one
            for one in error.args
        )
        raise
