"""Volumes: create, resize, rename, delete.

Thread-safety: any thread.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from thinmeta.thin import ThinMetadata
from thinpoold import discard
from thinpoold.admin.facts import Fact, describe_one
from thinpoold.errors import InvalidSize, NoSpace, VolumeInUse
from thinpoold.pool import Pool
from thinpoold.sizes import SECTOR, check_volume_size, exact_size
from thinpoold.volume import Volume
from thinpoold.volumes import VolumeRecord, new_record


def create(
    pool: Pool,
    name: str,
    size: int,
    read_only: bool = False,
    reserve: int = 0,
    force: bool = False,
) -> Fact:
    """Make a volume of `size` bytes, with `reserve` bytes kept free for it.

    `force` takes a name by which a client has another volume open. Raises `InvalidName`,
    `InvalidSize`, `VolumeExists`, `NameHeld`, `NoSpace`.
    """
    core = pool.core
    check_volume_size(size, core.block_size)
    if reserve < 0 or reserve % SECTOR:
        raise InvalidSize(f"reserve {reserve} will not do: it must be a multiple of {SECTOR} bytes")
    blocks = -(-reserve // core.block_size)
    with pool.changing() as begin:
        pool.check_name(name, force=force)
        core.check_metadata_room()
        pool.metadata.check_room(devices=1, snapshots=0)
        if blocks:
            core.give_back_ahead()
        free = max(0, pool.metadata.data_free - core.reservations.owed())
        if blocks > free:
            raise NoSpace(
                f"cannot reserve {exact_size(reserve)}: {exact_size(free * core.block_size)}"
                " are free and not promised yet; grow the pool"
            )
        begin()
        dev_id = pool.metadata.new_device_id()
        pool.metadata.create_thin(dev_id)
        record = new_record(name, dev_id, size, read_only=read_only, reserve=reserve)
        pool.put_volume(record)
        core.reservations.promise(record.uuid, blocks)
    return describe_one(pool, record)


def resize(pool: Pool, name: str, size: int, shrink: bool = False, force: bool = False) -> Fact:
    """Change a volume's size. Making it smaller discards what is cut, and needs `shrink`.

    What a smaller volume leaves of its last block stays there, out of sight, and is zeroed when the
    volume grows over it: so until its commit neither way changes what a crash would bring back.

    To zero it takes a new block where a snapshot shares the last one: without a free one the
    command fails at once, for an administrator can make room and try again.

    Raises `NoSuchVolume`, `InvalidSize`, `VolumeInUse` when an open volume would shrink, `NoSpace`
    without address space for the larger volume's mapping table, or without that block.
    """
    check_volume_size(size, pool.core.block_size)
    while True:
        volume = pool.open_volume(name)
        try:
            changed = _resize(pool, volume, name, size, shrink=shrink, force=force)
        finally:
            pool.close_volume(volume)
        # Else another command has changed the size, or the name, in between.
        if changed is not None:
            return describe_one(pool, changed)


def _resize(
    pool: Pool, volume: Volume, name: str, size: int, *, shrink: bool, force: bool
) -> VolumeRecord | None:
    """Resize an open volume; None, with nothing changed, when it is not what it was at first."""
    old = volume.size
    if size < old and not shrink:
        raise InvalidSize(
            f"volume {name!r} has {exact_size(old)}: to make it smaller, and lose what is cut off, "
            "say --shrink"
        )
    # Before anything is touched, which zeroing may: it breaks sharing.
    table = volume.table_for(size)
    if size > old:
        _zero_beyond(volume, old)
    with pool.changing(quiet=[name]) as begin:
        record = pool.registry.get(name)
        if (record.uuid, record.size) != (volume.uuid, old):
            return None
        if size < old:
            _check_closed(pool, record.uuid, name, but_for=1)
            pool.check_absent(record, force=force)
        begin()
        if size < old:
            discard.remove(volume, -(-size // pool.core.block_size), volume.blocks)
            changed = record.jumped(size=size)
        else:
            changed = dataclasses.replace(record, size=size)
        pool.put_volume(changed, table)
    if changed.generation != record.generation:
        pool.core.ledger.forget(record.uuid)
    return changed


def _zero_beyond(volume: Volume, end: int) -> None:
    try:
        discard.zero_beyond(volume, end)
    except NoSpace as error:
        raise NoSpace(
            f"volume {volume.name!r} cannot grow: a snapshot shares its last block, and what lies "
            f"behind its end is zeroed in a new one: {error}; grow the pool, or delete or discard "
            "something"
        ) from None


def rename(pool: Pool, old: str, new: str, force: bool = False) -> Fact:
    """Give a volume another name.

    `force` takes one by which a client has another volume open. Raises `NoSuchVolume`,
    `VolumeExists`, `NameHeld`, `InvalidName`.
    """
    with pool.changing(quiet=[old]) as begin:
        record = pool.registry.get(old)
        if new != old:
            pool.check_name(new, force=force, uuid=record.uuid)
        begin()
        changed = dataclasses.replace(record, name=new)
        pool.put_volume(changed)
    return describe_one(pool, changed)


def delete(pool: Pool, names: Sequence[str], dry_run: bool = False, force: bool = False) -> Fact:
    """Delete volumes, and say how many bytes that frees.

    In one transaction all are gone for good; what they held is given back after that, before this
    returns. `force` deletes one that a client may come back to. Raises `NoSuchVolume`,
    `VolumeInUse`; then none is deleted.
    """
    names = list(dict.fromkeys(names))
    if dry_run:
        return _fact_of_deletion(pool, names, _would_free(pool, names), dry_run=True)
    with pool.changing() as begin:
        records = [pool.registry.get(name) for name in names]
        for record in records:
            _check_closed(pool, record.uuid, record.name)
            pool.check_absent(record, force=force)
        begin()
        for record in records:
            pool.remove_volume(record)
    for record in records:
        pool.core.ledger.remove(record.uuid)
        pool.core.losses.forget(record.uuid)
    freed = pool.deletion.finish([record.dev_id for record in records])
    return _fact_of_deletion(pool, names, freed, dry_run=False)


def _fact_of_deletion(pool: Pool, names: list[str], freed: int, *, dry_run: bool) -> Fact:
    return {"volumes": names, "freed": freed * pool.core.block_size, "dry_run": dry_run}


def _check_closed(pool: Pool, uuid: bytes, name: str, but_for: int = 0) -> None:
    """Raise `VolumeInUse` if clients have the volume open. The core's lock is held."""
    clients = pool.clients(uuid) - but_for
    if clients:
        raise VolumeInUse(f"volume {name!r} is open by {clients} client(s): disconnect them first")


def _would_free(pool: Pool, names: Sequence[str]) -> int:
    """Delete in memory alone, over the last commit, and return how many blocks that frees."""
    with pool.looking():
        records = [pool.registry.get(name) for name in names]
        for record in records:
            _check_closed(pool, record.uuid, record.name)
    pool.commit_to_look()
    with pool.store.snapshot() as store:
        view = ThinMetadata.open(store)
        try:
            before = view.data_used
            for record in records:
                view.delete_device(record.dev_id)
            return before - view.data_used
        finally:
            view.close()
