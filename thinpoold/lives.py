"""The life of a pool's data device: a number that goes up each time the pool is opened for serving.

The pool's record has it and the device's mark has it (`identity`). They are two places that become
durable on their own, so the record announces a life before the mark has it:

    step                                   record       mark    a crash right after it leaves
    0   the pool was served, or made       n            n       what was
    1   the record announces the next      n, next m    n       either life is this pool's; the next
    2   the mark is written, and synced    n, next m    m       start goes on from here
    3   the record has it                  m            m       a start that has not served

Invariants

1. Nothing is served, and no data is written by a client, between 1 and 3: so a copy with life n and
   one with m are alike then, and either may be there.
2. A life that was served is never another's: after 3 a device with life n is refused.
3. On a block device the mark lies at the end. One that has become larger gets its mark there at the
   next start, or when the pool grows; the record says where it is, and where it will be.
4. When the pool grows, the mark at the new end is durable before the metadata that makes the old
   place data.

A step that fails for want of room is left to the next start: the pool serves in the life before.

Thread-safety: `advance` one thread, before the pool is anyone's; `moved` as `admin.grow`.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from thinmeta.errors import ThinMetaError
from thinmeta.thin import ThinMetadata
from thinpoold import identity, pool_record
from thinpoold.device import DataDevice
from thinpoold.errors import InvalidSize
from thinpoold.pool_record import MarkState, PoolRecord
from thinpoold.sizes import exact_size

log = logging.getLogger(__name__)


def advance(
    metadata: ThinMetadata, device: DataDevice, record: PoolRecord, *, accepting: bool = False
) -> PoolRecord:
    """Begin a new life, with nothing in the open transaction; return the record as it is then.

    `accepting`: the device may have any life, or none, and is the pool's from now on. Raises
    `DeviceError` when the device fails, and what `ThinMetadata.abandon` raises.
    """
    state, data_bytes = record.data_mark, metadata.data_blocks * record.block_size
    at = identity.new_place(device, data_bytes)
    if device.regular and not record.data_known_by and not accepting:
        # A file system without extended attributes.
        return record
    if not device.regular and at is None:
        log.info(
            "data device %s has no room for the pool's mark at its end: the pool knows it by what "
            "the kernel knows it by; one block more of it, and it gets its mark at the next start",
            device.path,
        )
        if not accepting:
            return record
        return _kept(metadata, _as_known(record, identity.known_by(device), MarkState()))
    life = state.next_life if state.next_life is not None else state.life + 1
    if accepting:
        life = max({life - 1, *identity.found_lives(device, record, data_bytes)}) + 1
    announced = replace(record, data_mark=replace(state, next_life=life, next_at=at))
    try:
        if announced != record:
            record = _kept(metadata, announced)
        try:
            identity.put(device, record.uuid, life, at)
        except OSError as error:
            if not accepting:
                log.warning("data device %s takes no new mark: %s", device.path, error.strerror)
                return record
            return _kept(metadata, _as_known(record, {}, MarkState()))
        known = identity.known_by(device) if accepting else record.data_known_by
        return _kept(metadata, _as_known(record, known, _marked(state, life, at)))
    except ThinMetaError as error:
        metadata.abandon()
        if accepting:
            raise
        log.warning("the data device keeps life %d, for that commit failed: %s", state.life, error)
        return pool_record.load(metadata)


def moved(device: DataDevice, record: PoolRecord, data_bytes: int) -> MarkState:
    """The device is to hold `data_bytes` of data: put its mark behind, and return where it is.

    Nothing of the record has changed; the caller commits that with the growth. Raises
    `InvalidSize` when there is no room, `DeviceError`.
    """
    state = record.data_mark
    if device.regular:
        return state
    check_room(device, data_bytes, record.block_size)
    at = identity.new_place(device, data_bytes)
    if at == state.at:
        return state
    # Of the same life: until the commit, either place is right.
    identity.put(device, record.uuid, state.life, at)
    return _marked(state, state.life, at)


def _marked(state: MarkState, life: int, at: int | None) -> MarkState:
    """The state of a mark that has been put."""
    return replace(state, life=life, at=at, next_life=None, next_at=None)


def check_room(device: DataDevice, data_bytes: int, block_size: int) -> None:
    """Raise `InvalidSize` when a block device has no room for a mark behind `data_bytes`."""
    if device.regular or identity.new_place(device, data_bytes) is not None:
        return
    most = (identity.new_place(device, 0) or 0) // block_size * block_size
    raise InvalidSize(
        f"data device {device.path} has {exact_size(device.size)}, and its last 4K are for the "
        f"pool's mark: {exact_size(data_bytes)} do not fit, the most that does is "
        f"{exact_size(most)}"
    )


def _as_known(record: PoolRecord, known: dict[str, str], state: MarkState) -> PoolRecord:
    return replace(record, data_known_by=known, data_mark=state)


def _kept(metadata: ThinMetadata, record: PoolRecord) -> PoolRecord:
    pool_record.store(metadata, record)
    metadata.commit()
    return record
