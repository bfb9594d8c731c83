"""At a pool's opening: what the daemon answered and did not commit before it died.

    leftovers of `recent` -> changes of the metadata -> data flushed -> committed, one by one

Invariants

1. Each leftover becomes one commit, as it would have been, also if there is nothing in it and
   another follows: so a crash on the way leaves a state from which the next opening goes on.
2. A leftover counts only on top of the very commit that it was made on top of.
3. Only what belongs to a volume of the last commit, within its size, is made good: a volume, or a
   size, whose making was not committed was never answered for.
4. Where a leftover contradicts the metadata, it ends: nothing after that is trusted.

Thread-safety: one thread, before the pool is anyone's.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from thinmeta.errors import ThinMetaError
from thinmeta.thin import ThinMetadata
from thinpoold.device import DataDevice
from thinpoold.errors import DeviceError
from thinpoold.recent import Change, Leftover, RecentChanges
from thinpoold.reclaim import Ranges

log = logging.getLogger(__name__)


def recover(
    metadata: ThinMetadata,
    device: DataDevice,
    recent: RecentChanges,
    sizes: Mapping[int, int],
) -> Ranges:
    """Make the leftovers good. `sizes` has the virtual blocks of each device that is a volume.

    Returns the data blocks this freed, which nobody else has released. When it fails the last
    commit stands, and the log says that something is lost.
    """
    freed: Ranges = []
    leftovers = recent.leftovers()
    for left in leftovers:
        if left.generation < metadata.generation:
            continue
        if left is leftovers[-1] and not left.changes:
            break
        if left.generation > metadata.generation or metadata.needs_check:
            why = "metadata needs a check" if metadata.needs_check else "they fit no commit"
            log.error("%d changes that were answered are lost: %s", len(left.changes), why)
            break
        try:
            done = _apply(metadata, left, sizes)
            device.flush()
            frozen = metadata.freeze()
            metadata.write(frozen)
            freed += metadata.committed(frozen)
        except (ThinMetaError, DeviceError) as error:
            log.error("%d changes that were answered are lost: %s", len(left.changes), error)
            metadata.abandon()
            break
        log.warning("the daemon ended without a commit: made %d changes of mappings good", done)
        if done < len(left.changes):
            log.error("%d that were answered are lost: they are at odds", len(left.changes) - done)
            break
    return freed


def _apply(metadata: ThinMetadata, left: Leftover, sizes: Mapping[int, int]) -> int:
    """Carry changes out in the open transaction, until one cannot be right; how many."""
    for done, change in enumerate(left.changes):
        count = min(change.count, sizes.get(change.dev_id, 0) - change.block)
        if count > 0 and not _carry_out(metadata, change, count):
            return done
    return len(left.changes)


def _carry_out(metadata: ThinMetadata, change: Change, count: int) -> bool:
    if change.data_block is None:
        metadata.remove(change.dev_id, change.block, change.block + count)
        return True
    if not metadata.reserve_these(change.data_block, count):
        return False
    metadata.insert(change.dev_id, change.block, change.data_block, count)
    return True
