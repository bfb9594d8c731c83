"""Snapshots and rollbacks.

Invariants

1. All snapshots of one request are of one instant: the gates of all origins are closed together,
   and all are made in one transaction.
2. A rollback gives the volume a device of its own that is a snapshot of the other; the volume
   keeps its name and uuid, and its old device becomes a snapshot's, or is left to `deletion`. One
   transaction.

Thread-safety: any thread.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from thinpoold.admin.facts import Fact, describe, describe_one
from thinpoold.errors import NoSpace, UserError, VolumeExists, VolumeInUse
from thinpoold.names import MAX_NAME_BYTES, written_alike
from thinpoold.pool import Pool
from thinpoold.volumes import VolumeRecord, new_record


def snapshot(
    pool: Pool, pairs: Sequence[Sequence[str]], read_only: bool = False, force: bool = False
) -> Fact:
    """Make snapshots, each pair an origin and a new name, of one instant.

    `force` takes names by which clients have other volumes open.

    Raises `NoSuchVolume`, `VolumeExists`, `InvalidName`, `NoSpace` where a reservation could not be
    kept, or there is no room for more metadata, `NoMetadataSpace` where the format has none.
    """
    names = [name for _, name in pairs]
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is None and len(set(map(written_alike, names))) < len(names):
        twice = next(name for name in names if name != written_alike(name))
    if twice is not None:
        raise VolumeExists(f"{twice!r} is named twice: each snapshot needs a name of its own")
    made = []
    with pool.changing(quiet=[origin for origin, _ in pairs]) as begin:
        for name in names:
            pool.check_name(name, force=force)
        origins = [pool.registry.get(origin) for origin, _ in pairs]
        _check_reservations(pool, origins)
        pool.core.check_metadata_room()
        pool.metadata.check_room(devices=len(names), snapshots=len(names))
        begin()
        for origin, name in zip(origins, names, strict=True):
            made.append(_snapshot(pool, origin, name, read_only=read_only))
    return {"volumes": describe(pool, made)}


def rollback(
    pool: Pool, name: str, snapshot: str, discard_current: bool = False, force: bool = False
) -> Fact:
    """Make the content of a volume that of another, usually a snapshot of it.

    `force` does that under a client that may come back. Raises `NoSuchVolume`, `VolumeInUse` while
    clients have the volume open.
    """
    if name == snapshot:
        raise UserError(f"{name!r} cannot be rolled back to itself: name one of its snapshots")
    kept = None
    with pool.changing(quiet=[snapshot]) as begin:
        volume, source = pool.registry.get(name), pool.registry.get(snapshot)
        clients = pool.clients(volume.uuid)
        if clients:
            raise VolumeInUse(
                f"volume {name!r} is open by {clients} client(s): disconnect them first"
            )
        pool.check_absent(volume, force=force)
        _check_reservations(pool, [volume, source])
        metadata = pool.metadata
        metadata.check_room(devices=1, snapshots=1)
        begin()
        old, new = volume.dev_id, metadata.new_device_id()
        metadata.create_snapshot(new, source.dev_id)
        _now_shared(pool, source)
        pool.core.reservations.shared(volume.uuid)
        if discard_current:
            pool.deletion.add(old)
        else:
            kept = new_record(_unused_name(pool, name), old, volume.size, origin=volume.uuid)
            kept = dataclasses.replace(kept, allow=volume.allow)
            pool.put_volume(kept)
        record = volume.jumped(dev_id=new, size=source.size)
        pool.put_volume(record)
    pool.core.ledger.forget(record.uuid)
    answer: Fact = {
        "volume": describe_one(pool, record),
        "kept": kept.name if kept is not None else None,
    }
    if discard_current:
        pool.deletion.finish([old])
    return answer


def _snapshot(pool: Pool, origin: VolumeRecord, name: str, *, read_only: bool) -> VolumeRecord:
    dev_id = pool.metadata.new_device_id()
    pool.metadata.create_snapshot(dev_id, origin.dev_id)
    _now_shared(pool, origin)
    record = new_record(name, dev_id, origin.size, origin=origin.uuid, read_only=read_only)
    # Who may not read the origin may not read what it held either.
    record = dataclasses.replace(record, allow=origin.allow)
    pool.put_volume(record)
    return record


def _now_shared(pool: Pool, origin: VolumeRecord) -> None:
    """Nothing of the origin may be written in place any more."""
    pool.core.reservations.shared(origin.uuid)
    volume = pool.core.volumes.get(origin.uuid)
    if volume is not None:
        volume.forget()


def _check_reservations(pool: Pool, origins: Sequence[VolumeRecord]) -> None:
    reservations = pool.core.reservations
    wanted = sum(reservations.wanted(uuid) for uuid in {origin.uuid for origin in origins})
    if wanted:
        pool.core.give_back_ahead()
    if wanted and wanted + reservations.owed() > pool.metadata.data_free:
        raise NoSpace(
            "too little is free to keep the reservation once everything is shared: grow the pool, "
            "or delete or discard something"
        )


def _unused_name(pool: Pool, name: str) -> str:
    """Return a name for what a volume held before it was rolled back."""
    taken = {record.name for record in pool.registry.unordered()}
    number = 1
    while True:
        ending = f"-before-rollback-{number}"
        # A name is cut between characters, not within one.
        room = MAX_NAME_BYTES - len(ending)
        candidate = name.encode()[:room].decode("utf-8", "ignore") + ending
        if candidate not in taken:
            return candidate
        number += 1
