"""A pool's metadata file, opened as the pool's other files are: see `poolfiles`.

LMDB opens it by its path, and its lock file beside it, and makes that where there is none. In the
lock file LMDB notes what is being read, so that a writer leaves it alone. Who cannot write the lock
file cannot have that noted: he keeps everybody from writing instead, with the pool's lock, which he
shares; then the lock file is not needed.

Thread-safety: any thread.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from thinmeta.errors import StoreError, ThinMetaError
from thinmeta.store.lmdb import LmdbStore
from thinmeta.store.lmdb_file import verify_pages
from thinpoold import lock, poolfiles
from thinpoold.errors import DeviceError, PoolLocked
from thinpoold.paths import PoolPaths, readers_file


def open_store(
    path: Path, *, create: bool = False, read_only: bool = False, alone: bool = False
) -> LmdbStore:
    """Open the store at `path`, as `LmdbStore` does.

    `alone`: the pool's lock is held, so nobody writes. Raises `DeviceError`, and what that raises.
    """
    beside = readers_file(path)
    try:
        for one in (path, beside):
            poolfiles.check(one)
        with poolfiles.acting_as_owner(path.parent) as reached, _named(reached, path.parent):
            store = LmdbStore(reached / path.name, create=create, read_only=read_only, alone=alone)
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


@contextmanager
def readable(paths: PoolPaths) -> Iterator[bool]:
    """Within the context a pool's metadata may be read, whoever has the pool; as `open_store` does.

    Yields whether it is to be opened `alone`. Raises `PoolLocked` where that cannot be had, for
    the pool is being written; `DeviceError`.
    """
    beside = readers_file(paths.metadata)
    with ExitStack() as stack:
        try:
            os.close(poolfiles.open_file(beside, os.O_RDWR | os.O_CREAT))
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise DeviceError(f"{beside}: {error.strerror}", error.errno or 0) from None
            if poolfiles.is_anothers(beside):
                raise DeviceError(f"{beside}: {error.strerror}", error.errno) from None
            stack.callback(os.close, _shared(paths, beside))
            yield True
            return
        yield False


def _shared(paths: PoolPaths, beside: Path) -> int:
    try:
        return lock.share(paths)
    except PoolLocked as error:
        raise PoolLocked(
            f"pool {paths.directory} is in use by process {error.pid}, which has to know what is "
            f"being read; that would be noted in {beside}, which cannot be written from here",
            error.pid,
        ) from None


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
