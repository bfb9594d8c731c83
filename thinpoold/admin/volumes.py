"""Volumes: create, resize, rename, delete.

Thread-safety: any thread; one at a time, but for what `begin_delete` returns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from thinmeta.thin import ThinMetadata
from thinpoold import discard
from thinpoold.admin.facts import Fact, describe
from thinpoold.errors import InvalidSize, NoSpace, VolumeInUse
from thinpoold.pool import Pool
from thinpoold.sizes import SECTOR, check_volume_size, exact_size
from thinpoold.volumes import new_record


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
    return describe(pool, [record])[0]


def resize(pool: Pool, name: str, size: int, shrink: bool = False, force: bool = False) -> Fact:
    """Change a volume's size. Making it smaller discards what is cut, and needs `shrink`.

    What a smaller volume leaves of its last block stays there, out of sight, and is zeroed when the
    volume grows over it: so until its commit neither way changes what a crash would bring back.

    Raises `NoSuchVolume`, `InvalidSize`, `VolumeInUse` when an open volume would shrink, `NoSpace`
    without address space for the larger volume's mapping table.
    """
    check_volume_size(size, pool.core.block_size)
    volume = pool.open_volume(name)
    try:
        if size < volume.size and not shrink:
            raise InvalidSize(
                f"volume {name!r} has {exact_size(volume.size)}: to make it smaller, and lose "
                "what is cut off, say --shrink"
            )
        # Before anything is touched, which zeroing may: it breaks sharing.
        table = volume.table_for(size)
        if size > volume.size:
            discard.zero_beyond_end(volume)
        with pool.changing(quiet=[name]) as begin:
            record = pool.registry.get(name)
            if size < record.size:
                _check_closed(pool, record.uuid, name, but_for=1)
                pool.check_absent(record, force=force)
            begin()
            if size < record.size:
                discard.remove(volume, -(-size // pool.core.block_size), volume.blocks)
                changed = record.jumped(size=size)
            else:
                changed = dataclasses.replace(record, size=size)
            pool.put_volume(changed, table)
    finally:
        pool.close_volume(volume)
    if changed.generation != record.generation:
        pool.core.ledger.forget(record.uuid)
    return describe(pool, [changed])[0]


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
    return describe(pool, [changed])[0]


def delete(pool: Pool, names: Sequence[str], dry_run: bool = False, force: bool = False) -> Fact:
    """Delete volumes, and say how many bytes that frees.

    In one transaction all are gone for good; what they held is given back after that, before this
    returns. `force` deletes one that a client may come back to. Raises `NoSuchVolume`,
    `VolumeInUse`; then none is deleted.
    """
    return begin_delete(pool, names, dry_run, force)()


def begin_delete(
    pool: Pool, names: Sequence[str], dry_run: bool = False, force: bool = False
) -> Callable[[], Fact]:
    """Do the transaction of `delete`; the rest is the function returned, beside other changes."""
    names = list(dict.fromkeys(names))
    if dry_run:
        would = _fact_of_deletion(pool, names, _would_free(pool, names), dry_run=True)
        return lambda: would
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
    devices = [record.dev_id for record in records]
    return lambda: _fact_of_deletion(pool, names, pool.deletion.finish(devices), dry_run=False)


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
