"""At a pool's opening: what the daemon answered, or flushed, and did not commit before it died.

    what may be trusted -> losses noted -> leftovers of `recent` -> committed, one by one

Invariants

1. Each leftover becomes one commit, as it would have been, also if there is nothing in it and
   another follows: so a crash on the way leaves a state from which the next opening goes on.
2. A leftover counts only on top of the very commit that it was made on top of.
3. Only what belongs to a volume of the last commit, within its size, is made good: a volume, or a
   size, whose making was not committed was never answered for.
4. Where a leftover contradicts the metadata, it ends: nothing after that is trusted.
5. What was flushed is made good, or the pool does not open for writing and the notes stay. So they
   do while there is no room for a commit, or the store fails.
6. Data that was not flushed is relied on only where it is known to be there: in the boot in which
   it was written, as long as no write-back of the data device has failed. The kernel tells of such
   a failure once, whoever asks; so the last process said when it was told (FAILED in the ledger),
   and when it was about to be (SYNCING).
7. What was answered and is not made good is a loss of its volume, durable in the ledger before the
   notes of it go.

    after a death in           unflushed notes      losses
    the same boot              made good            none
    the same, a write failed   dropped              volumes that had something unwritten
    the same, notes missing    made good            volumes that had something unwritten
    another boot               dropped              volumes that clients elsewhere had open
    an unknown boot            dropped              volumes of dropped notes, and as in another boot

Where the data device was opened read-only all this happens in memory: metadata, ledger and losses
are such that nothing reaches a disk, and the next start that may write does it all again. Nothing
is asked that is told once, but of the files themselves, whose file system keeps the errors for that
start; so after a death amid a flush (SYNCING) what was not flushed counts as lost.

Thread-safety: one thread, before the pool is anyone's, but for `replay`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from thinmeta.errors import Corrupt, ThinMetaError
from thinmeta.store.protocol import BlockStore
from thinmeta.thin import ThinMetadata
from thinpoold import boot
from thinpoold.boot import Since
from thinpoold.device import DataDevice
from thinpoold.errors import DeviceError, NoSpace, NotRecovered
from thinpoold.ledger import NO_STATE, Ledger, Mark, State
from thinpoold.losses import Loss, Losses
from thinpoold.notes import Change, Leftover
from thinpoold.recent import RecentChanges
from thinpoold.reclaim import Ranges
from thinpoold.volumes import Registry

log = logging.getLogger(__name__)


class Contradiction(Exception):  # noqa: N818 - a state, not a mistake
    """A leftover is at odds with the metadata from its `at`-th change on; what was before it, and
    the leftovers before, are committed. `freed` are data blocks that those commits have freed."""

    def __init__(self, left: Leftover, at: int, why: str, freed: Ranges) -> None:
        super().__init__(why)
        self.left = left
        self.at = at
        self.freed = freed


def recover(
    metadata: ThinMetadata,
    device: DataDevice,
    recent: RecentChanges,
    ledger: Ledger,
    losses: Losses,
    block_size: int,
) -> Ranges:
    """Make the leftovers good, and note what cannot be made good as lost.

    Returns the data blocks that this freed, which nobody else has released. Raises `NotRecovered`
    when the leftovers cannot be committed, or what was flushed cannot be right; then the last
    commit stands. Raises `DeviceError` when a loss cannot be noted, or the device still fails.
    """
    registry = Registry(metadata)
    since = _since(ledger)
    if since is Since.UNKNOWN:
        recent.distrust()
    leftovers = waiting(recent, metadata.generation)
    lost = _Lost(registry, ledger, losses, block_size)
    if ledger.found.died or leftovers:
        if since is not Since.OTHER:
            doubt = _marks_error(ledger, recent, read_only=device.read_only)
            if doubt is not None:
                lost.all(str(doubt))
            error = _write_error(device, ledger) or doubt
            if error is not None:
                lost.unwritten(str(error), leftovers)
                _keep_flushed(recent, error, read_only=device.read_only)
                device.forgive()
                leftovers = waiting(recent, metadata.generation)
            elif State.UNNOTED in (ledger.found.state or NO_STATE):
                lost.unwritten("changes of mappings could not be noted", ())
        if since is not Since.SAME:
            lost.dropped(since, leftovers)
    sizes = registry.sizes(block_size)
    try:
        freed = replay(metadata, leftovers, sizes)
    except Contradiction as found:
        left, freed = found.left, found.freed
        if found.at < left.flushed:
            raise _not_recovered(left, str(found)) from None
        rest = [left, *leftovers[leftovers.index(left) + 1 :]]
        lost.changes([one for it in rest for one in it.changes][found.at :], str(found))
    except ThinMetaError as error:
        left = next(left for left in leftovers if left.generation >= metadata.generation)
        raise _not_recovered(left, str(error)) from None
    _settle(ledger, registry, since)
    return freed


def replay(
    metadata: ThinMetadata, leftovers: Sequence[Leftover], sizes: Mapping[int, int]
) -> Ranges:
    """Commit leftovers, one by one, on top of the last commit; nothing else is open.

    `sizes` has the virtual blocks of each device that is a volume. Returns the data blocks that
    they freed. Raises `Contradiction`, and what a commit raises: then the last commit stands.
    """
    freed: Ranges = []
    for left in leftovers:
        try:
            if left.generation > metadata.generation or metadata.needs_check:
                why = "metadata needs a check" if metadata.needs_check else "they fit no commit"
                raise Contradiction(left, 0, why, freed)
            done = apply(metadata, left.changes, sizes)
            whole = done == len(left.changes)
            if not whole and done < left.flushed:
                raise Contradiction(
                    left, done, f"change {done} is at odds with the metadata", freed
                )
            frozen = metadata.freeze()
            metadata.write(frozen)
            freed += metadata.committed(frozen)
        except Corrupt as error:
            metadata.abandon()
            raise Contradiction(left, 0, str(error), freed) from None
        except (Contradiction, ThinMetaError):
            metadata.abandon()
            raise
        if left.changes:
            log.warning("made %d changes of mappings good that no commit held", done)
        if not whole:
            raise Contradiction(left, done, f"change {done} is at odds with the metadata", freed)
    return freed


def doubt_data(metadata: ThinMetadata, ledger: Ledger, losses: Losses, block_size: int) -> None:
    """Another data device was accepted: it may lack what clients were answered who come back.

    Raises `DeviceError`.
    """
    lost = _Lost(Registry(metadata), ledger, losses, block_size)
    lost.content(
        [one.uuid for one in ledger.entries() if Mark.OPEN in one.marks],
        "another data device was accepted as the pool's while a client had it open",
    )


class _Lost:
    """What an opening finds to be lost, noted as it is found. Each raises `DeviceError`."""

    def __init__(self, registry: Registry, ledger: Ledger, losses: Losses, block_size: int) -> None:
        self._registry, self._ledger, self._losses = registry, ledger, losses
        self._block_size = block_size

    def unwritten(self, why: str, leftovers: Iterable[Leftover]) -> None:
        """All that was not on disk may be lost; of the leftovers, what was not flushed is."""
        changes = [one for left in leftovers for one in left.changes[left.flushed :]]
        self._note({uuid: [] for uuid in self._ledger.unwritten()}, changes, why)

    def all(self, why: str) -> None:
        """Notes and marks may be missing: nobody can tell of which volume."""
        uuids = [record.uuid for record in self._registry]
        self._ledger.doubt(uuids)
        self.content(uuids, why)

    def content(self, uuids: Iterable[bytes], why: str) -> None:
        """Anything of these volumes may be lost."""
        self._note({uuid: [] for uuid in uuids}, (), why)

    def dropped(self, since: Since, leftovers: Iterable[Leftover]) -> None:
        """The machine has died, or may have."""
        if since is Since.UNKNOWN:
            changes = [one for left in leftovers for one in left.dropped]
            self._note(
                {},
                changes,
                "nobody can tell whether the machine was restarted since (a container, or a boot "
                "id that never changes)",
            )
        away = [one.uuid for one in self._ledger.entries() if Mark.NETWORK in one.marks]
        self.content(away, "the machine was restarted while a client on another had it open")

    def changes(self, changes: Iterable[Change], why: str) -> None:
        """These changes were answered, and cannot be made good."""
        self._note({}, changes, why)

    def _note(
        self, lost: dict[bytes, list[tuple[int, int]]], changes: Iterable[Change], why: str
    ) -> None:
        by_device = {record.dev_id: record.uuid for record in self._registry.unordered()}
        size = self._block_size
        for change in changes:
            uuid = by_device.get(change.dev_id)
            if uuid is not None:
                lost.setdefault(uuid, []).append((change.block * size, change.count * size))
        there = {uuid: ranges for uuid, ranges in lost.items() if self._registry.by_uuid(uuid)}
        if not there:
            return
        self._ledger.lose(there)
        self._losses.add({uuid: Loss.now(why, ranges) for uuid, ranges in there.items()})
        for uuid in there:
            record = self._registry.by_uuid(uuid)
            log.error(
                "volume %r: something that was answered is lost: %s; 'thinpool accept-loss' lets "
                "clients open it again",
                record.name if record is not None else uuid.hex(),
                why,
            )


def _since(ledger: Ledger) -> Since:
    """What became of the machine; by the notes alone where there is no ledger yet."""
    if ledger.found.state is None:
        return Since.SAME
    return boot.current().since(ledger.found.boot)


def _write_error(device: DataDevice, ledger: Ledger) -> DeviceError | None:
    """Why data that was not flushed is not to be relied on, None if it is; then it is flushed."""
    state = ledger.found.state or NO_STATE
    try:
        if device.read_only:
            device.check_written()
        else:
            device.flush()
        if State.FAILED in state:
            raise DeviceError("the data device had failed to write before the daemon ended")
        if State.SYNCING in state or (device.regular and not device.read_only):
            # A file may have been forgotten by the kernel since, and its error with it.
            device.check_untold()
    except DeviceError as error:
        device.fail(error)
        return error
    return None


def _marks_error(ledger: Ledger, recent: RecentChanges, *, read_only: bool) -> DeviceError | None:
    """Why the ledger and the notes are not to be relied on, None if they are."""
    try:
        ledger.check_untold()
        if read_only:
            recent.check_untold()
    except (DeviceError, NoSpace, OSError) as error:
        return DeviceError(f"{error}, while the daemon could not be told: notes may be missing")
    return None


def _keep_flushed(recent: RecentChanges, error: DeviceError, *, read_only: bool) -> None:
    try:
        recent.keep_flushed(read_only=read_only)
    except OSError as worse:
        raise NotRecovered(f"{error}; and what was not flushed stays noted: {worse}") from None


def _settle(ledger: Ledger, registry: Registry, since: Since) -> None:
    """All is committed, and on disk."""
    for entry in ledger.entries():
        if registry.by_uuid(entry.uuid) is None:
            ledger.remove(entry.uuid)
        elif since is Since.OTHER and (ledger.found.died or Mark.NETWORK not in entry.marks):
            # Those on this machine died with it. Of the others the loss is noted, or nothing of
            # theirs was lost, and they come back.
            ledger.forget(entry.uuid)
    ledger.written(ledger.closed_unwritten())


def waiting(recent: RecentChanges, generation: int) -> list[Leftover]:
    """The leftovers that the commit `generation` does not hold. Raises `NotRecovered`."""
    try:
        found = [left for left in recent.leftovers() if left.generation >= generation]
    except OSError as error:
        raise NotRecovered(f"what was flushed may be there, and cannot be read: {error}") from None
    while found and not found[-1].changes and not found[-1].dropped:
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
