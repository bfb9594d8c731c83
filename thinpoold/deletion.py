"""Deleting devices, a portion at a time, so that nobody waits long for the metadata's lock.

A device of a large volume has millions of mappings, and letting go of each takes its time. So a
volume goes in two steps:

    its record is taken out, its device noted in the table `deleted`     one transaction: it is gone
    portions of the device, and at last the device and the note          as many as it takes

Between the portions anybody may change or commit anything. A crash between them leaves a pool that
is sound in every respect, with a device that has fewer mappings; who opens it next goes on.

Invariants

1. A noted device belongs to no volume, and nobody but this module touches it.
2. Nothing of a device goes before its note is durable. So nobody will look at what a crash brings
   back of it, and what it shared, its other owner may write in place at once (see `unshared`).
3. The note goes with the device, in one transaction.

Thread-safety: any thread. `_working` is held by whoever works on it, for all devices at once. The
core's lock is held for one portion, and for reading and writing notes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from time import sleep
from typing import Final, Protocol

from thinmeta.thin import Cursor
from thinpoold.committer import Timer
from thinpoold.core import Core

TABLE: Final = "deleted"
_KEY_BYTES: Final = 4
_BREATH_SECONDS: Final = 0.0002


class Keys(Protocol):
    """Where notes are kept: `ThinMetadata` is one."""

    def records(self, table: str) -> Iterator[tuple[bytes, bytes]]: ...


def noted(metadata: Keys) -> list[int]:
    """Return the ids of the devices that are being deleted, ascending."""
    return [int.from_bytes(key, "big") for key, _ in metadata.records(TABLE)]


class Deletion:
    """What is being deleted of one pool."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._working = threading.Lock()
        self._stopping = False
        self.timer = Timer("delete", self.go_on, None)

    def add(self, dev_id: int) -> None:
        """Note a device that no volume has any more. In a change that has begun."""
        self._core.check_begun()
        self._core.metadata.put_record(TABLE, _key(dev_id), b"")

    def start(self) -> None:
        """Go on, on a thread, with what an earlier process left."""
        self.timer.start()
        if self._core.modes.takes_writes and self._pending():
            self.timer.kick()

    def stop(self) -> None:
        """End the thread, and whoever else deletes; what is left is the next process's."""
        self._stopping = True
        self.timer.stop()
        with self._working:
            # Whoever was at it has left.
            pass

    def finish(self, dev_ids: Iterable[int]) -> int:
        """Delete these devices, whose notes are durable, and commit; how many data blocks went.

        Raises `Stopped` when the pool takes no writes, and what the metadata or a commit raises.
        What is left then, or when the process ends, goes when the pool is opened anew.
        """
        freed = 0
        with self._working:
            # One that was being deleted may be gone by now.
            left = set(self._pending())
            for dev_id in dev_ids:
                if dev_id in left:
                    freed += self._delete(dev_id)
            self._core.flush()
        return freed

    def go_on(self) -> None:
        """Delete, and commit, what is left of earlier deletions. Raises as `finish`."""
        with self._working:
            # Among those that are noted may be one whose command is about to commit it.
            self._core.flush()
            pending = self._pending()
            for dev_id in pending:
                self._delete(dev_id)
            self._core.flush()

    def _pending(self) -> list[int]:
        with self._core.lock:
            return noted(self._core.metadata)

    def _is_due(self, dev_id: int) -> bool:
        """Whether a device's note is durable, and still there. Lock held.

        A commit that failed may have taken the note back, and brought back the volume.
        """
        key, metadata = _key(dev_id), self._core.metadata
        return metadata.committed_record(TABLE, key) is not None and (
            metadata.record(TABLE, key) is not None
        )

    def _delete(self, dev_id: int) -> int:
        core, metadata = self._core, self._core.metadata
        freed = 0
        at: Cursor | None = Cursor()
        while at is not None and not self._stopping:
            with core.settled(), core.changing():
                if not self._is_due(dev_id):
                    return freed
                core.begin_change()
                used = metadata.data_used
                at = metadata.delete_some(dev_id, at)
                if at is None:
                    metadata.put_record(TABLE, _key(dev_id), None)
                freed += used - metadata.data_used
            core.throttle()
            # Who gives a lock back and takes it at once gets it: those who wait are still waking.
            sleep(_BREATH_SECONDS)
        return freed


def _key(dev_id: int) -> bytes:
    return dev_id.to_bytes(_KEY_BYTES, "big")
