"""At a pool's opening: what the daemon answered, or flushed, and did not commit before it died.

    leftovers of `recent` -> changes of the metadata -> data flushed -> committed, one by one

Invariants

1. Each leftover becomes one commit, as it would have been, also if there is nothing in it and
   another follows: so a crash on the way leaves a state from which the next opening goes on.
2. A leftover counts only on top of the very commit that it was made on top of.
3. Only what belongs to a volume of the last commit, within its size, is made good: a volume, or a
   size, whose making was not committed was never answered for.
4. Where a leftover contradicts the metadata, it ends: nothing after that is trusted.
5. What was flushed is made good, or the pool does not open for writing and the notes stay.

Thread-safety: one thread, before the pool is anyone's.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from thinmeta.errors import Corrupt, ThinMetaError
from thinmeta.store.protocol import BlockStore
from thinmeta.thin import ThinMetadata
from thinpoold.device import DataDevice
from thinpoold.errors import DeviceError, NotRecovered
from thinpoold.notes import Change, Leftover
from thinpoold.recent import RecentChanges
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
    commit stands, and the log says that something is lost; if that was flushed, nothing is, and
    this raises `NotRecovered`.
    """
    freed: Ranges = []
    leftovers = waiting(recent, metadata.generation)
    for left in leftovers:
        if left.generation > metadata.generation or metadata.needs_check:
            why = "metadata needs a check" if metadata.needs_check else "they fit no commit"
            _lose(left, why)
            break
        try:
            done = apply(metadata, left.changes, sizes)
            if done < left.flushed:
                raise Corrupt("notes", f"change {done}", "is at odds with the metadata")
            device.flush()
            frozen = metadata.freeze()
            metadata.write(frozen)
            freed += metadata.committed(frozen)
        except (ThinMetaError, DeviceError) as error:
            metadata.abandon()
            _lose(left, str(error))
            break
        log.warning("the daemon ended without a commit: made %d changes of mappings good", done)
        if done < len(left.changes):
            log.error("%d that were answered are lost: they are at odds", len(left.changes) - done)
            break
    return freed


def waiting(recent: RecentChanges, generation: int) -> list[Leftover]:
    """The leftovers that the commit `generation` does not hold. Raises `NotRecovered`."""
    try:
        found = [left for left in recent.leftovers() if left.generation >= generation]
    except OSError as error:
        raise NotRecovered(f"what was flushed may be there, and cannot be read: {error}") from None
    while found and not found[-1].changes:
        found.pop()
    return found


def flushed(store: BlockStore, paths: Sequence[Path], uuid: bytes) -> int:
    """How many changes that were flushed wait for the next opening. Raises `NotRecovered`."""
    return sum(left.flushed for left in waiting(RecentChanges(paths, uuid), store.generation))


def apply(metadata: ThinMetadata, changes: Sequence[Change], sizes: Mapping[int, int]) -> int:
    """Carry changes out in the open transaction, until one cannot be right; how many."""
    for done, change in enumerate(changes):
        count = min(change.count, sizes.get(change.dev_id, 0) - change.block)
        if count > 0 and not _carry_out(metadata, change, count):
            return done
    return len(changes)


def _lose(left: Leftover, why: str) -> None:
    if left.flushed:
        raise NotRecovered(
            f"{left.flushed} changes that were flushed wait in the pool's recent-0 and recent-1, "
            f"and cannot be committed: {why}; mend that and start again, or move the two files "
            "away to do without the changes"
        )
    log.error("%d changes that were answered are lost: %s", len(left.changes), why)


def _carry_out(metadata: ThinMetadata, change: Change, count: int) -> bool:
    if change.data_block is None:
        metadata.remove(change.dev_id, change.block, change.block + count)
        return True
    if not metadata.reserve_these(change.data_block, count):
        return False
    metadata.insert(change.dev_id, change.block, change.data_block, count)
    return True
