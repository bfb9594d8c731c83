"""Looking: status, list, tree, info.

`exclusive` takes a walk over a volume's own mappings. For a volume with many it is made over the
last commit, so that nobody waits for it; that commit is made for it first.

Thread-safety: any thread.
"""

from __future__ import annotations

import os
import uuid as uuids
from collections.abc import Iterable
from typing import Any

from thinmeta.errors import NotFound
from thinmeta.format.block import BLOCK_SIZE
from thinmeta.thin import ThinMetadata
from thinpoold.buffers import LARGEST_REQUEST
from thinpoold.core import Core
from thinpoold.deletion import noted
from thinpoold.errors import NoSuchVolume
from thinpoold.pool import Pool
from thinpoold.volumes import VolumeRecord, by_name

Fact = dict[str, Any]

# A walk over so many mappings takes a few milliseconds, and is made with the lock held.
_FEW_MAPPINGS = 1 << 14
# `tree` nests so deep: two levels of JSON each, where programs stop at 256 and more.
MAX_NESTED = 100


def status(pool: Pool) -> Fact:
    """Say how the pool is."""
    core = pool.core
    file_size, deleting = pool.store.file_size(), len(noted(pool.store))
    with pool.looking():
        metadata, size = pool.metadata, core.block_size
        return {
            "name": pool.record.name,
            "uuid": str(uuids.UUID(bytes=pool.record.uuid)),
            "mode": core.modes.mode.value,
            "reason": core.modes.reason,
            "served_read_only": pool.served_read_only,
            "needs_check": metadata.needs_check,
            "transaction_id": metadata.transaction_id,
            "block_size": size,
            "data": data_space(pool),
            "cache": "bufio" if pool.device.direct else "page",
            "metadata": {
                "size": metadata.metadata_blocks * BLOCK_SIZE,
                "used": metadata.metadata_used * BLOCK_SIZE,
                "file_size": file_size,
                "reader": _reader(core),
            },
            "volumes": len(pool.registry),
            "lost": _lost(pool),
            "deleting": deleting,
            "clients": sum(volume.clients for volume in core.volumes.values()),
            "max_clients": core.settings.max_clients,
            "largest_request": LARGEST_REQUEST,
            "fastpath": core.fastpath is not None,
        }


def _reader(core: Core) -> Fact | None:
    """Who reads an old commit in another process, and what that costs; None if nobody does."""
    pinned = core.pinned
    if pinned.reader is None or pinned.reader.pid == os.getpid():
        return None
    return {"pid": pinned.reader.pid, "cost": pinned.cost}


def _lost(pool: Pool) -> list[str]:
    """The names of volumes of which something is lost. The core's lock is held."""
    found = (pool.registry.by_uuid(uuid) for uuid in pool.core.ledger.all_lost())
    return [record.name for record in by_name(one for one in found if one is not None)]


def data_space(pool: Pool) -> Fact:
    """Return path, size and use of the data device. The core's lock is held."""
    size = pool.core.block_size
    return {
        "path": str(pool.device.path),
        "size": pool.metadata.data_blocks * size,
        "used": pool.metadata.data_used * size,
    }


def list_volumes(pool: Pool) -> Fact:
    """List the volumes, by name."""
    return {"volumes": describe(pool, _all_by_name(pool))}


def tree(pool: Pool) -> Fact:
    """List the volumes under those they were snapshotted from.

    Below `MAX_NESTED` levels a volume stands where those without an origin do, and what is
    below it under it: JSON of any depth nobody can read. Its `origin` says where it belongs.
    """
    records = _all_by_name(pool)
    # One that is gone meanwhile is not described.
    nodes = {
        uuids.UUID(fact["uuid"]).bytes: {**fact, "children": []} for fact in describe(pool, records)
    }
    below: dict[bytes | None, list[bytes]] = {}
    for record in records:
        if record.uuid in nodes:
            origin = record.origin if record.origin in nodes else None
            below.setdefault(origin, []).append(record.uuid)
    roots: list[Fact] = []
    pending: list[tuple[bytes, list[Fact], int]]
    pending = [(uuid, roots, 1) for uuid in reversed(below.get(None, []))]
    while pending:
        uuid, siblings, level = pending.pop()
        siblings.append(nodes[uuid])
        children = below.get(uuid, [])
        place = (nodes[uuid]["children"], level + 1) if level < MAX_NESTED else (roots, 1)
        pending += [(child, *place) for child in reversed(children)]
    return {"volumes": roots}


def _all_by_name(pool: Pool) -> list[VolumeRecord]:
    with pool.looking():
        records = pool.registry.unordered()
    return by_name(records)


def info(pool: Pool, name: str) -> Fact:
    """Say everything about one volume."""
    with pool.looking():
        record = pool.registry.get(name)
        snapshots = [one for one in pool.registry.unordered() if one.origin == record.uuid]
        details = pool.metadata.details(record.dev_id)
        owed = pool.core.reservations.of(record.uuid)
    fact = describe_one(pool, record)
    return {
        **fact,
        "shared": fact["mapped"] - fact["exclusive"],
        "reserve": record.reserve,
        "reserve_free": owed * pool.core.block_size,
        "block_size": pool.core.block_size,
        "snapshots": [one.name for one in by_name(snapshots)],
        "created_in_transaction": details.transaction_id,
    }


def place_of(pool: Pool, name: str) -> Fact:
    """Say where a volume is exported, and its size, without a walk. Raises `NoSuchVolume`."""
    with pool.looking():
        return _place(pool, pool.registry.get(name))


def find(pool: Pool, uuid: str, generation: int = 0) -> Fact:
    """Say how a volume is called now, and how large it is.

    Raises `NoSuchVolume`, and `ContentJumped` when its content is not that of `generation` (0: of
    any).
    """
    try:
        key = uuids.UUID(uuid).bytes
    except ValueError:
        raise NoSuchVolume(f"{uuid[:40]!r} is no uuid of a volume") from None
    with pool.looking():
        record = pool.registry.by_uuid(key)
    if record is None:
        raise NoSuchVolume(f"the volume with uuid {uuid} is gone")
    record.check_generation(generation)
    return _place(pool, record)


def _place(pool: Pool, record: VolumeRecord) -> Fact:
    return {
        "name": record.name,
        "uuid": str(uuids.UUID(bytes=record.uuid)),
        "generation": record.generation,
        "export": record.stable_name,
        "size": record.size,
        "read_only": record.read_only or pool.served_read_only,
    }


def describe(pool: Pool, records: Iterable[VolumeRecord]) -> list[Fact]:
    """Return what `list` says of each; one that is gone meanwhile is left out."""
    found = []
    for record in records:
        try:
            found.append(_describe(pool, record))
        except NotFound:
            continue
    return found


def describe_one(pool: Pool, record: VolumeRecord) -> Fact:
    """Return what `list` says of one volume. Raises `NoSuchVolume` when it is gone meanwhile."""
    for fact in describe(pool, [record]):
        return fact
    raise NoSuchVolume(f"volume {record.name!r} has been deleted meanwhile")


def _describe(pool: Pool, record: VolumeRecord) -> Fact:
    size = pool.core.block_size
    mapped, exclusive = _count(pool, record.dev_id)
    with pool.looking():
        origin = pool.registry.by_uuid(record.origin) if record.origin is not None else None
        clients = pool.clients(record.uuid)
    return {
        "name": record.name,
        "id": record.dev_id,
        "uuid": str(uuids.UUID(bytes=record.uuid)),
        "generation": record.generation,
        "size": record.size,
        "mapped": mapped * size,
        "exclusive": exclusive * size,
        "origin": origin.name if origin is not None else None,
        "created": record.created,
        "read_only": record.read_only or pool.served_read_only,
        "lost": pool.core.ledger.lost(record.uuid),
        "clients": clients,
        "opened_by": pool.openers.of(record.uuid),
        "labels": record.labels,
    }


def _count(pool: Pool, dev_id: int) -> tuple[int, int]:
    """Return how many blocks a device has mapped, and how many of them are its alone."""
    metadata, core = pool.metadata, pool.core
    with core.looking():
        mapped = metadata.details(dev_id).mapped_blocks
        if mapped <= _FEW_MAPPINGS:
            return mapped, metadata.exclusive_blocks(dev_id)
    pool.commit_to_look()
    with pool.store.snapshot() as store:
        view = ThinMetadata.open(store)
        try:
            return view.details(dev_id).mapped_blocks, view.exclusive_blocks(dev_id)
        finally:
            view.close()
