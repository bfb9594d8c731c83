"""What `check` looks at beside the metadata itself: that volumes and devices are the same ones.

The metadata library knows devices by number; names, sizes and settings are records beside them.

1. The pool's record is there and makes sense.
2. Every volume's record makes sense, and names and device ids are each one volume's alone.
3. Every volume has a device, and every device a volume, or it is being deleted.
4. The data device bears the pool's mark, of the life that the record has (`data_mark`).

Only reads; any thread.
"""

from collections.abc import Iterator
from dataclasses import replace

from thinmeta.check import Problem
from thinmeta.errors import Corrupt, StoreError, UnsupportedFormat
from thinmeta.store.protocol import BlockStore
from thinmeta.thin import ThinMetadata
from thinpoold import deletion, identity, pool_record, poolfiles
from thinpoold.errors import DeviceError, UserError
from thinpoold.ledger import State, other_commit, read
from thinpoold.names import check_name
from thinpoold.paths import PoolPaths
from thinpoold.sizes import check_volume_size
from thinpoold.volumes import TABLE, VolumeRecord

_DAMAGE = (Corrupt, StoreError, UnsupportedFormat)


def audit(store: BlockStore) -> list[Problem]:
    """Return what is wrong with the records of the last commit of `store`."""
    with store.snapshot() as view:
        try:
            metadata = ThinMetadata.open(view)
        except _DAMAGE:
            # Told by the check of the metadata, which looks further than this can.
            return []
        try:
            return [*_pool(metadata), *_volumes(view, metadata)]
        except _DAMAGE as damage:
            return [_problem(damage, "records")]
        finally:
            metadata.close()


def last_commit(store: BlockStore, paths: PoolPaths, *, running: bool) -> list[Problem]:
    """Return what is wrong if the store does not open at the pool's last commit."""
    try:
        value = store.record(pool_record.TABLE, pool_record.KEY)
        if value is None:
            return []
        found = read(paths.ledger, pool_record.PoolRecord.unpack(value).uuid)
    except (*_DAMAGE, DeviceError):
        # The record's damage is told by others.
        return []
    if running:
        # Commits go on; only one that is gone can be told.
        found = replace(found, state=State.CLEAN)
    # Asked after the ledger was read, which never names a commit that is not there yet.
    problem = other_commit(store.generation, found)
    return [Problem("store", paths.metadata.name, problem)] if problem else []


def data_mark(store: BlockStore, paths: PoolPaths) -> list[Problem]:
    """Return what is wrong if the data device is not the pool's own, or another copy of it.

    Raises `DeviceError` when the device cannot be looked at. A running pool may move its mark
    meanwhile, so what speaks against it has to stand while the record stays as it is.
    """
    before: tuple[pool_record.PoolRecord, int] | None = None
    while True:
        try:
            with store.snapshot() as view:
                metadata = ThinMetadata.open(view)
                try:
                    record = pool_record.load(metadata)
                    now = record, metadata.data_blocks * record.block_size
                finally:
                    metadata.close()
        except _DAMAGE:
            # Told by others.
            return []
        path = record.data_file(paths.directory)
        with poolfiles.opening_device(paths.directory) as reach:
            why = identity.look(reach(path), *now)
        if not why:
            return []
        if now == before:
            return [Problem("mark", str(path), why)]
        before = now


def _pool(metadata: ThinMetadata) -> Iterator[Problem]:
    try:
        record = pool_record.load(metadata)
    except _DAMAGE as damage:
        # One with a bad checksum is told by the check of the metadata.
        if not isinstance(damage, Corrupt) or damage.where == "pool":
            yield _problem(damage, "pool")
        return
    block_size = metadata.data_block_sectors * 512
    if record.block_size != block_size:
        message = f"has blocks of {record.block_size} bytes, the metadata says {block_size}"
        yield Problem("record", "pool", message)


def _volumes(store: BlockStore, metadata: ThinMetadata) -> Iterator[Problem]:
    names: dict[str, str] = {}
    owners: dict[int, str] = {}
    devices = set(metadata.device_ids())
    for key in store.record_keys(TABLE):
        where = f"volume {key.hex()}"
        try:
            value = store.record(TABLE, key)
            if value is None:
                continue
            record = VolumeRecord.unpack(key, value)
            check_name(record.name)
            check_volume_size(record.size, metadata.data_block_sectors * 512)
        except Corrupt as damage:
            # A record with a bad checksum is told by the check of the metadata.
            if damage.where == where:
                yield _problem(damage, where)
            continue
        except (UserError, TypeError, AttributeError) as error:
            yield Problem("record", where, f"makes no sense: {error}")
            continue
        if record.name in names:
            yield Problem("volume", where, f"has the name {record.name!r} of {names[record.name]}")
        if record.dev_id in owners:
            yield Problem("volume", where, f"has device {record.dev_id} of {owners[record.dev_id]}")
        if record.dev_id not in devices:
            yield Problem("volume", where, f"{record.name!r} has no device {record.dev_id}")
        names[record.name] = owners[record.dev_id] = where
    deleted = set(deletion.noted(metadata))
    for dev_id in sorted(devices - owners.keys() - deleted):
        yield Problem("volume", f"device {dev_id}", "belongs to no volume")
    for dev_id in sorted(deleted & owners.keys()):
        yield Problem("volume", owners[dev_id], f"its device {dev_id} is being deleted")
    for dev_id in sorted(deleted - devices):
        yield Problem("volume", f"device {dev_id}", "is being deleted, but is not there")


def _problem(error: Exception, where: str) -> Problem:
    if isinstance(error, Corrupt):
        return Problem(error.kind, error.where or where, error.message)
    return Problem("io" if isinstance(error, StoreError) else "record", where, str(error))
