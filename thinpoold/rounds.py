"""One round: making durable what was done before it, or going back when that fails.

    commit       freeze, flush the data device, write the metadata
    notes        flush the data device, mark the notes of the changes and sync them

Notes are enough for a client's flush when they tell of all that the open transaction holds, and
a commit that follows is sure of its room. The steps of both, and what a crash leaves of each, are
in docs/crash-ordering.md.

Going back. Whatever fails, the open transaction goes, and the pool takes no more writes. What
becomes of what clients were answered, and no commit holds:

    the data device failed   it may be lost: the ledger has the volumes that had something
                             unwritten, what was flushed stays, no flush succeeds any more
    notes are missing        likewise
    anything else            nothing is lost: the notes are carried out again, and committed. If
                             that fails, the pool is *suspended*: it shows them, flushes make them
                             durable as notes, and once there is room they are committed

Invariants

1. What was answered, and is not marked as lost, going back keeps: it is committed, or its notes
   stay for the next opening.
2. After something was lost no round succeeds any more. While the pool is suspended no commit does;
   what is not noted, an administrator's change, is dropped, and whoever waits for it is told.

Thread-safety: the committer runs one round at a time.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from thinmeta.errors import Corrupt, NoMetadataSpace, StoreError, ThinMetaError
from thinpoold.committer import Kept
from thinpoold.errors import DeviceError, ThinPoolError
from thinpoold.ledger import State
from thinpoold.losses import Loss
from thinpoold.modes import Mode
from thinpoold.reclaim import Ranges
from thinpoold.recovery import Contradiction, apply, replay

if TYPE_CHECKING:
    from thinmeta.transaction import FrozenTransaction
    from thinpoold.core import Core

log = logging.getLogger(__name__)

FAILURES = (Corrupt, StoreError, NoMetadataSpace)
"""What the metadata raises when the store, or what is in it, is at fault."""


class Rounds:
    """The rounds of one pool."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def run(self, whole: bool) -> None:
        """One round; a commit if it is to be `whole`, or notes are not enough.

        Raises what made it fail, or `Kept` with it.
        """
        core = self._core
        try:
            # Those that nobody has open: what they hold was written before the flush below.
            closed = core.ledger.closed_unwritten()
            if core.suspended is not None:
                self._vouch()
                raise Kept(core.suspended)
            freed = self._make_durable(whole)
            core.ledger.written(closed)
        except Kept:
            raise
        except BaseException as error:
            if core.broken_by is None and core.modes.lost_data:
                raise
            # Whatever it was, the frozen transaction will never be written.
            self.abandon(error)
            if core.modes.lost_data or not isinstance(error, Exception):
                raise
            if core.suspended is not None:
                self._vouch()
            raise Kept(error) from None
        core.reclaimer.add(freed)
        if freed or core.unshared.durable:
            core.reclaim_timer.kick()

    def _make_durable(self, whole: bool) -> Ranges:
        """Do what `run` does, and return the data blocks that a commit has freed."""
        core = self._core
        frozen = None
        with core.lock:
            # Also of a pool that has become read-only without losing anything.
            dirty = self._check_dirty()
            new_notes = False
            if dirty and not whole and self._notes_suffice():
                new_notes = core.recent.prepare()
            elif dirty:
                frozen = self._freeze()
        self._flush_data()
        if new_notes and not self._sync_notes():
            with core.lock:
                self._check_dirty()
                frozen = self._freeze()
            self._flush_data()
        if frozen is None:
            return []
        core.metadata.write(frozen)
        with core.lock:
            freed = core.metadata.committed(frozen)
            core.unshared.committed()
            core.recent.committed()
            if core.recent.complete:
                core.ledger.note(State.UNNOTED, on=False)
        core.make_metadata_room()
        return freed

    def _flush_data(self) -> None:
        device = self._core.device
        try:
            device.flush()
        except DeviceError as error:
            # Also where it could not be noted that a flush is under way.
            device.fail(error)
            raise

    def _check_dirty(self) -> bool:
        """Whether there is anything to commit; raises if it cannot be. Lock held."""
        core = self._core
        if core.broken_by is not None:
            raise core.broken_by
        core.modes.check_flushable()
        return core.metadata.dirty

    def _freeze(self) -> FrozenTransaction:
        core = self._core
        frozen = core.metadata.freeze()
        core.unshared.freeze()
        core.recent.freeze()
        core.unnoted = False
        return frozen

    def _notes_suffice(self) -> bool:
        core = self._core
        # The commit that follows must find room: as much as all of the metadata in memory.
        return (
            not core.unnoted
            and not core.metadata.pressure
            and core.recent.room() >= core.metadata.memory_limit
        )

    def _sync_notes(self) -> bool:
        with self._core.lock:
            marked = self._core.recent.mark()
        return marked and self._core.recent.sync()

    # --- going back -------------------------------------------------------------------------------

    def abandon(self, error: BaseException) -> None:
        """Go back to the last commit and what was noted since, and take no more writes."""
        core = self._core
        reason = str(error) or type(error).__name__
        with core.lock:
            keeps = core.device.failed is None and core.recent.complete
            if keeps:
                keeps = self._keep(error, reason)
            else:
                self._lose(error, reason)
        if keeps and self._commit_held(needs_check=isinstance(error, Corrupt)):
            # Want of room may end by itself: until then, and a grace period, the pool waits.
            core.suspended = error if isinstance(error, NoMetadataSpace) else None

    def _lose(self, error: BaseException, reason: str) -> None:
        """What was answered, and not flushed, may be lost."""
        core = self._core
        unwritten = core.ledger.unwritten()
        try:
            core.ledger.lose(unwritten)
        except ThinPoolError as worse:
            # The notes stay as they are, and no flush of this process succeeds any more.
            log.critical("a loss cannot be noted: %s", worse)
            core.recent.hold()
        else:
            core.losses.add({uuid: Loss.now(reason) for uuid in unwritten})
            core.recent.abandon()
        core.suspended = None
        if self._go_back_to_flushed(reason) and isinstance(error, Corrupt):
            self._demand_check()

    def _keep(self, error: BaseException, reason: str) -> bool:
        """Nothing is lost: show what was noted on top of the last commit; whether that was done."""
        core = self._core
        core.recent.hold()
        if not self._go_back(reason, lost_data=False):
            return False
        return self._suspend(error if isinstance(error, Exception) else RuntimeError(reason))

    def _commit_held(self, *, needs_check: bool = False) -> bool:
        """Commit what is held; whether that is done. The pool is suspended, so nothing changes."""
        core = self._core
        try:
            # Data before the mapping that points at it.
            self._flush_data()
        except DeviceError as error:
            with core.lock:
                self._lose(error, str(error))
            return False
        with core.lock:
            try:
                core.metadata.abandon()
                core.on_abandon()
                held = core.recent.held(core.metadata.generation)
                core.reclaimer.add(replay(core.metadata, held, core.sizes()))
                if needs_check:
                    core.metadata.set_needs_check(True)
                    core.metadata.commit()
                core.recent.release()
            except (Contradiction, OSError) as worse:
                why = f"what was noted is at odds with the last commit: {worse}"
                self._lose(worse, f"{core.modes.reason}; {why}")
                return False
            except FAILURES as worse:
                log.error("what was noted cannot be committed yet: %s", worse)
                self._suspend(worse)
                return False
            for volume in core.volumes.values():
                volume.forget()
        return True

    def _suspend(self, error: Exception) -> bool:
        """Show what is held, until it can be committed; whether that was done."""
        core, metadata = self._core, self._core.metadata
        core.suspended = error
        try:
            for left in core.recent.held(metadata.generation):
                if apply(metadata, left.changes, core.sizes()) < len(left.changes):
                    raise Corrupt("notes", "changes that were answered", "are at odds")
        except (ThinMetaError, OSError) as worse:
            if isinstance(error, Corrupt):
                # The metadata is damaged where they go: what is there can be read.
                self._lose(error, f"{error}; what was answered cannot be carried out: {worse}")
            else:
                self._fail(f"{error}; what was answered cannot be carried out: {worse}")
            return False
        return True

    def _vouch(self) -> None:
        """Make durable what is held. Raises `DeviceError`."""
        core = self._core
        self._flush_data()
        try:
            # What is held nobody changes but the committer's rounds.
            core.recent.vouch()
        except OSError as error:
            raise DeviceError(f"notes: {error.strerror}", error.errno or 0) from None

    def resume(self) -> bool:
        """Commit what is held, if there may be room by now; whether that is done."""
        core = self._core
        if core.suspended is None or core.modes.mode is Mode.FAILED or not self._commit_held():
            return False
        with core.lock:
            core.suspended = None
            core.recent.begin(core.metadata.generation)
        return True

    def _go_back_to_flushed(self, reason: str) -> bool:
        """Show the last commit, and what was flushed since; False if that cannot be done."""
        core = self._core
        if not self._go_back(reason, lost_data=True):
            return False
        try:
            flushed = core.recent.flushed(core.metadata.generation)
            if apply(core.metadata, flushed, core.sizes()) < len(flushed):
                raise Corrupt("notes", "changes that were flushed", "are at odds")
        except (ThinMetaError, OSError) as worse:
            self._fail(f"{reason}; what was flushed cannot be carried out: {worse}")
            return False
        return True

    def _go_back(self, reason: str, *, lost_data: bool) -> bool:
        """Show the last commit, and take no more writes; False if it cannot be read."""
        core = self._core
        core.broken_by = None
        core.times_gone_back += 1
        core.unshared.abandon()
        try:
            core.metadata.abandon()
            core.on_abandon()
        except (ThinMetaError, ThinPoolError, OSError, ValueError) as worse:
            self._fail(f"{reason}; the last commit cannot be read: {worse}")
            return False
        core.modes.degrade(Mode.READ_ONLY, reason, lost_data=lost_data)
        for volume in core.volumes.values():
            volume.forget()
            volume.reload()
        return True

    def _fail(self, reason: str) -> None:
        core = self._core
        core.modes.degrade(Mode.FAILED, reason)
        for volume in core.volumes.values():
            volume.forget()

    def _demand_check(self) -> None:
        """Mark the metadata, in a commit with what was flushed."""
        core = self._core
        try:
            core.metadata.set_needs_check(True)
            core.metadata.commit()
        except FAILURES as error:
            log.error("the metadata cannot be marked as in need of a check: %s", error)
            self._go_back_to_flushed(str(error))
