"""Making a pool: its directory, data device and first commit.

Invariants

1. The metadata file gets its name last, so a pool is there whole or not at all.
2. What fails leaves nothing behind that was not there before; a data device that was there keeps
   its size and bytes until nothing can be refused any more.

Thread-safety: one process at a time, by the pool's lock.
"""

from __future__ import annotations

import os
import uuid as uuids
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from thinmeta.thin import ThinMetadata
from thinpoold import foreign, identity, lives, lock, pool_record, poolfiles
from thinpoold.device import DataDevice
from thinpoold.direct import check_direct
from thinpoold.errors import DeviceError, PoolExists, UserError
from thinpoold.metadata_file import open_store
from thinpoold.names import check_new_name
from thinpoold.paths import PoolPaths, pool_paths, readers_file
from thinpoold.pool_record import PoolRecord
from thinpoold.settings import Settings
from thinpoold.sizes import SECTOR, check_block_size, check_pool_size, exact_size


def create_pool(
    directory: Path,
    *,
    name: str | None = None,
    size: int | None = None,
    data: Path | None = None,
    block_size: int = 64 << 10,
    settings: Settings | None = None,
    force: bool = False,
) -> None:
    """Make a pool in `directory`.

    `size` is how much data the pool can hold, in bytes; it may be None where `data` names a device
    that is there. Without `data` it is a sparse file in the directory. `force` takes one that holds
    somebody else's data, and a block device that has been another pool's.

    Raises `UserError`, `DeviceError`, errors of the store.
    """
    check_block_size(block_size)
    if size is not None:
        check_pool_size(size, block_size)
    paths = pool_paths(directory)
    check_new_name(name or paths.name, "pool")
    with ExitStack() as undo:
        _make_directory(paths.directory, undo)
        # What the pool's owner may not open could not be served either.
        with poolfiles.acting_as_owner(paths.directory):
            fd = lock.acquire(paths, "thinpool init")
            try:
                _refuse_existing(paths)
                device = _data_device(paths, data, size, block_size, force, undo)
                settings = settings or Settings()
                try:
                    if settings.cache == "bufio":
                        check_direct(device.path)
                    _fill(paths, device, name or paths.name, size, block_size, settings)
                finally:
                    device.close()
            except BaseException:
                undo.callback(poolfiles.remove, paths.lock)
                raise
            finally:
                os.close(fd)
        undo.pop_all()


def _make_directory(directory: Path, undo: ExitStack) -> None:
    try:
        missing = [one for one in (directory, *directory.parents) if not one.exists()]
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for one in reversed(missing):
            undo.callback(_remove_empty, one)
    except FileExistsError:
        raise PoolExists(f"{directory} is there and is no directory: choose another") from None
    except OSError as error:
        raise DeviceError(f"{directory}: {error.strerror}", error.errno or 0) from None


def _remove_empty(directory: Path) -> None:
    try:
        directory.rmdir()
    except OSError:
        pass


def _refuse_existing(paths: PoolPaths) -> None:
    if paths.metadata.exists():
        raise PoolExists(f"{paths.directory} holds a pool already: choose another directory")


def _data_device(
    paths: PoolPaths,
    data: Path | None,
    size: int | None,
    block_size: int,
    force: bool,
    undo: ExitStack,
) -> DataDevice:
    """Open the data device, made if need be, at least `size` large."""
    path = Path(os.path.abspath(data)) if data is not None else paths.data
    if data is None and path.exists():
        raise PoolExists(f"{path} exists: name it with --data to use it, or remove it")
    if not path.exists():
        if size is None:
            raise DeviceError(f"data device {path} does not exist: name its size to make it")
        _make_file(path, size)
        undo.callback(path.unlink, missing_ok=True)
    with poolfiles.opening_device(paths.directory) as reach:
        device = DataDevice.open(reach(path))
    device.path = path
    try:
        identity.check_unclaimed(device, force=force)
        if size is None:
            check_pool_size(_room(device) // SECTOR * SECTOR, block_size)
        elif not device.regular and device.size < size:
            raise UserError(
                f"data device {path} has {exact_size(device.size)}, less than {exact_size(size)}"
            )
        else:
            lives.check_room(device, size // block_size * block_size, block_size)
        # Last, for it may have to read a large file.
        if not force:
            foreign.check_empty(device)
    except BaseException:
        device.close()
        raise
    return device


def _room(device: DataDevice) -> int:
    """How many bytes of a device that is there can be a pool's data."""
    return device.size if device.regular else identity.new_place(device, 0) or 0


def _make_file(path: Path, size: int) -> None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, size)
            os.fsync(fd)
        except BaseException:
            path.unlink()
            raise
        finally:
            os.close(fd)
    except OSError as error:
        raise DeviceError(f"data file {path}: {error.strerror}", error.errno or 0) from None


def _fill(
    paths: PoolPaths,
    device: DataDevice,
    name: str,
    size: int | None,
    block_size: int,
    settings: Settings,
) -> None:
    """Write the first commit, and let it be the pool's."""
    uuid = uuids.uuid4().bytes
    blocks = (size if size is not None else _room(device)) // block_size
    with identity.undone_on_failure(device), _new_metadata(paths) as path:
        store = open_store(path, create=True)
        try:
            metadata = ThinMetadata.create(
                store, data_block_sectors=block_size // SECTOR, data_blocks=blocks, uuid=uuid
            )
            device.resize(blocks * block_size)
            known_by, mark = identity.claim(device, uuid)
            place = device.path
            if place.is_relative_to(paths.directory):
                place = place.relative_to(paths.directory)
            record = PoolRecord(name, uuid, str(place), block_size, settings, known_by, mark)
            pool_record.store(metadata, record)
            metadata.commit()
            metadata.close()
        finally:
            store.close()


@contextmanager
def _new_metadata(paths: PoolPaths) -> Iterator[Path]:
    """A path for a new metadata file, which takes its place when the context ends well."""
    path = paths.metadata.with_name(paths.metadata.name + ".new")
    beside = readers_file(path)
    for left in (path, beside):
        left.unlink(missing_ok=True)
    try:
        yield path
        beside.unlink(missing_ok=True)
        path.rename(paths.metadata)
    except BaseException:
        for left in (path, beside):
            left.unlink(missing_ok=True)
        raise
    fd = os.open(paths.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
