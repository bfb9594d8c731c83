"""At a pool's opening: what the daemon answered, or flushed, and did not commit before it died.

    leftovers of `recent` -> data flushed -> changes of the metadata -> committed, one by one

Invariants

1. Each leftover becomes one commit, as it would have been, also if there is nothing in it and
   another follows: so a crash on the way leaves a state from which the next opening goes on.
2. A leftover counts only on top of the very commit that it was made on top of.
3. Only what belongs to a volume of the last commit, within its size, is made good: a volume, or a
   size, whose making was not committed was never answered for.
4. Where a leftover contradicts the metadata, it ends: nothing after that is trusted.
5. What was flushed is made good, or the pool does not open for writing and the notes stay. So they
   do while there is no room for a commit, or the store fails.
6. When the data device fails a flush, what was flushed before counts alone, now and at any later
   opening: the kernel may have dropped the rest, and would not say so again.

Thread-safety: one thread, before the pool is anyone's.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from thinmeta.errors import Corrupt, ThinMetaError
from thinmeta.store.protocol import BlockStore
from thinmeta.thin import ThinMetadata
from thinpoold.device import DataDevice
from thinpoold.errors import DeviceError, NotRecovered
from thinpoold.notes import Change, Leftover
from thinpoold.recent import RecentChanges
from thinpoold.reclaim import Ranges

log = logging.getLogger(__name__)


class Recovered(NamedTuple):
    """The data blocks that this freed, which nobody else has released, and why what was answered,
    and not flushed, is lost: None if it is not."""

    freed: Ranges
    lost: DeviceError | None


def recover(
    metadata: ThinMetadata,
    device: DataDevice,
    recent: RecentChanges,
    sizes: Mapping[int, int],
) -> Recovered:
    """Make the leftovers good. `sizes` has the virtual blocks of each device that is a volume.

    What of them cannot be right the log calls lost. Raises `NotRecovered` when they cannot be
    committed, or what was flushed cannot be right; then the last commit stands.
    """
    leftovers, lost = _durable(recent, device, metadata.generation)
    freed: Ranges = []
    for left in leftovers:
        if left.generation > metadata.generation or metadata.needs_check:
            why = "metadata needs a check" if metadata.needs_check else "they fit no commit"
            _lose(left, why)
            break
        try:
            done = apply(metadata, left.changes, sizes)
            if done < left.flushed:
                raise Corrupt("notes", f"change {done}", "is at odds with the metadata")
            frozen = metadata.freeze()
            metadata.write(frozen)
            freed += metadata.committed(frozen)
        except Corrupt as error:
            metadata.abandon()
            _lose(left, str(error))
            break
        except ThinMetaError as error:
            metadata.abandon()
            raise _not_recovered(left, str(error)) from None
        log.warning("the daemon ended without a commit: made %d changes of mappings good", done)
        if done < len(left.changes):
            log.error("%d that were answered are lost: they are at odds", len(left.changes) - done)
            break
    return Recovered(freed, lost)


def _durable(
    recent: RecentChanges, device: DataDevice, generation: int
) -> tuple[list[Leftover], DeviceError | None]:
    """The leftovers, their data durable, and why some are not among them."""
    leftovers = waiting(recent, generation)
    if not leftovers:
        return leftovers, None
    try:
        device.flush()
    except DeviceError as error:
        try:
            recent.keep_flushed()
        except OSError as worse:
            raise NotRecovered(f"{error}; and what was not flushed stays noted: {worse}") from None
        log.error("what was answered, and not flushed, is lost: %s", error)
        return waiting(recent, generation), error
    return leftovers, None


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
        raise _not_recovered(left, why)
    log.error("%d changes that were answered are lost: %s", len(left.changes), why)


def _not_recovered(left: Leftover, why: str) -> NotRecovered:
    what = f"{left.flushed} changes that were flushed"
    if not left.flushed:
        what = f"{len(left.changes)} changes that were answered"
    return NotRecovered(
        f"{what} wait in the pool's recent-0 and recent-1, and cannot be committed: {why}; mend "
        "that and start again, or move the two files away to do without the changes"
    )


def _carry_out(metadata: ThinMetadata, change: Change, count: int) -> bool:
    if change.data_block is None:
        metadata.remove(change.dev_id, change.block, change.block + count)
        return True
    if not metadata.reserve_these(change.data_block, count):
        return False
    metadata.insert(change.dev_id, change.block, change.data_block, count)
    return True
