"""One round: making durable what was done before it, or going back when that fails.

    commit       freeze, flush the data device, write the metadata
    notes        flush the data device, mark the notes of the changes and sync them

Notes are enough for a client's flush when they tell of all that the open transaction holds, and
a commit that follows is sure of its room. The steps of both, and what a crash leaves of each, are
in docs/crash-ordering.md.

Invariants

1. What a round has made durable by its notes, going back keeps: it is brought back on top of the
   last commit, and its notes stay for the next opening.
2. After going back no round succeeds any more, and nothing is changed.

Thread-safety: the committer runs one round at a time.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from thinmeta.errors import Corrupt, NoMetadataSpace, StoreError, ThinMetaError
from thinpoold.errors import ThinPoolError
from thinpoold.modes import Mode
from thinpoold.reclaim import Ranges

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
        """One round; a commit if it is to be `whole`, or notes are not enough."""
        core = self._core
        freed: Ranges = []
        try:
            frozen = None
            with core.lock:
                # Also of a pool that has become read-only without losing anything.
                dirty = self._check_dirty()
                new_notes = False
                if dirty and not whole and self._notes_suffice():
                    new_notes = core.recent.prepare()
                elif dirty:
                    frozen = self._freeze()
            core.device.flush()
            if new_notes and not self._sync_notes():
                with core.lock:
                    self._check_dirty()
                    frozen = self._freeze()
                core.device.flush()
            if frozen is None:
                return
            core.metadata.write(frozen)
            with core.lock:
                freed = core.metadata.committed(frozen)
                core.unshared.committed()
                ended = bool(core.unshared.durable)
        except BaseException as error:
            # Whatever it was, the frozen transaction will never be written.
            if core.broken_by is not None or not core.modes.lost_data:
                self.abandon(error)
            raise
        core.reclaimer.add(freed)
        if freed or ended:
            core.reclaim_timer.kick()

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

    def abandon(self, error: BaseException) -> None:
        """Go back to the last commit, and what was flushed since, and take no more writes."""
        core = self._core
        with core.lock:
            core.recent.abandon()
            self._go_back(str(error) or type(error).__name__)
            if core.modes.mode is not Mode.FAILED and isinstance(error, Corrupt):
                self._demand_check()

    def _go_back(self, reason: str) -> None:
        core, mode = self._core, Mode.READ_ONLY
        try:
            core.metadata.abandon()
            core.on_abandon()
        except (ThinMetaError, ThinPoolError, OSError, ValueError) as worse:
            mode, reason = Mode.FAILED, f"{reason}; the last commit cannot be read: {worse}"
        core.broken_by = None
        core.unshared.abandon()
        core.modes.degrade(mode, reason)
        for volume in core.volumes.values():
            volume.forget()
            if mode is not Mode.FAILED:
                volume.reload()

    def _demand_check(self) -> None:
        """Mark the metadata, in a commit with what was flushed."""
        metadata = self._core.metadata
        try:
            metadata.set_needs_check(True)
            metadata.commit()
        except FAILURES as error:
            log.error("the metadata cannot be marked as in need of a check: %s", error)
            self._go_back(str(error))
