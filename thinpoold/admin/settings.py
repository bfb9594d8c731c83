"""The pool's settings and size: get, set, grow.

A pool grows in portions, each a commit: the space map of 100 TiB is 100,000 blocks of metadata,
which would keep everybody from the metadata lock for seconds, and be in memory at once. A crash
between portions leaves a pool that has grown by some; `grow` again takes it the rest of the way.

Thread-safety: any thread. `Pool.growing` is held by the one that grows.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any, Final

from thinmeta.format.bitmap import ENTRIES_PER_BITMAP
from thinpoold import lives, volume_settings
from thinpoold.admin.facts import Fact, data_space
from thinpoold.direct import check_direct
from thinpoold.errors import InvalidSize
from thinpoold.pool import Pool
from thinpoold.pool_record import MarkState
from thinpoold.settings import Value
from thinpoold.sizes import check_pool_size, exact_size

log = logging.getLogger(__name__)

# So many blocks are added at a time: 12 ms of the metadata lock, and 128 blocks of metadata.
_PORTION_BLOCKS: Final = 128 * ENTRIES_PER_BITMAP


def get_settings(pool: Pool, volume: str | None = None) -> Fact:
    """Say what the settings are, of the pool or of a volume. Raises `NoSuchVolume`."""
    if volume is None:
        with pool.looking():
            return {"settings": pool.record.settings.as_json()}
    with pool.looking():
        return {"settings": volume_settings.settings_of(pool.registry.get(volume))}


def set_settings(pool: Pool, settings: Mapping[str, Value], volume: str | None = None) -> Fact:
    """Change settings, of the pool or of a volume: all that are given, or none.

    Raises `InvalidSetting`, `NoSuchVolume`, `DeviceError` for a cache that the device cannot have.
    """
    if volume is not None:
        # Before anything is locked: a rule's user or group is asked of the name service.
        changes = volume_settings.parse(settings)
        # With its gate closed, so that no write that has begun ends on a read-only volume.
        with pool.changing(quiet=[volume]) as begin:
            record = volume_settings.changed(pool.registry.get(volume), changes)
            begin()
            pool.put_volume(record)
        return get_settings(pool, volume)
    if pool.record.settings.changed(settings).cache == "bufio" and "cache" in settings:
        check_direct(pool.device.path)
    with pool.changing() as begin:
        changed = pool.record.settings.changed(settings)
        begin()
        pool.put_record(dataclasses.replace(pool.record, settings=changed))
    return get_settings(pool)


def grow(pool: Pool, size: int) -> Fact:
    """Make the data device larger, to `size` bytes.

    Raises `InvalidSize`, `DeviceError`, and what a commit raises; then the pool may have grown by a
    part.
    """
    check_pool_size(size, pool.core.block_size)
    with pool.growing:
        _grow(pool, size)
    with pool.core.lock:
        answer: dict[str, Any] = data_space(pool)
    log.info("the data device has %s now", exact_size(answer["size"]))
    return {"data": answer}


def _grow(pool: Pool, size: int) -> None:
    core = pool.core
    old = pool.metadata.data_blocks
    blocks = size // core.block_size
    if blocks < old:
        raise InvalidSize(
            f"the data device has {exact_size(old * core.block_size)}, more than "
            f"{exact_size(size)}: a pool cannot shrink"
        )
    core.modes.check_writable()
    # The device first: a crash in between leaves one that is larger than it needs to be.
    pool.device.resize(blocks * core.block_size)
    if blocks > old:
        mark = lives.moved(pool.device, pool.record, blocks * core.block_size)
        while old < blocks:
            upto = min(blocks, old - old % _PORTION_BLOCKS + _PORTION_BLOCKS)
            _grow_metadata(pool, old, upto, mark)
            core.modes.space_found()
            old = upto


def _grow_metadata(pool: Pool, old: int, blocks: int, mark: MarkState) -> None:
    reserved = False
    try:
        with pool.changing() as begin:
            begin()
            pool.grow_data(blocks)
            if mark != pool.record.data_mark:
                pool.put_record(dataclasses.replace(pool.record, data_mark=mark))
            # Nobody's before the commit: a note of one would be at odds with what a death leaves.
            reserved = pool.metadata.reserve_these(old, blocks - old)
    finally:
        if reserved:
            pool.core.unreserve(old, blocks - old)
