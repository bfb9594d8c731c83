"""Waiting for space, for one request: what a writer does that found no room for a new block.

    1. blocks that commits free: commit, reclaim, try again
    2. the mode becomes out-of-data-space
    3. on_full=error: fail. on_full=queue: wait until something was freed or the pool has grown, and
       fail when the pool has been full for `full_timeout` seconds

A writer waits here with no gate, cell or lock held, and then starts its request again.

Invariants

1. All who wait give up at one time, the pool's; who comes later fails at once, until there is
   space.
2. Of the threads that serve a connection, one at least does not wait: reads, flushes and writes in
   place go on. So a connection with a single thread does not wait at all.

Thread-safety: one `SpaceWait` is one thread's; `Waiters` any thread's.
"""

from __future__ import annotations

import errno
import threading
from typing import Final

from thinpoold.core import Core
from thinpoold.errors import DeviceError, NoMetadataRoom, NoSpace

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Errors that say that there is no room, which may change."""


class Waiters:
    """Those requests of one connection that wait for space; `threads` serve it, 0 for unknown."""

    def __init__(self, threads: int = 0) -> None:
        self._lock = threading.Lock()
        # Below 0: without end.
        self._left = threads - 1

    def begin(self) -> bool:
        """One request more is to wait; whether it may."""
        with self._lock:
            if not self._left:
                return False
            self._left -= 1
            return True

    def end(self) -> None:
        """One that was let wait goes on."""
        with self._lock:
            self._left += 1


class SpaceWait:
    """The waiting of one request, among `waiters` if a client's connection waits for it.

    One that does not queue fails at once, whatever `on_full`.
    """

    def __init__(self, core: Core, waiters: Waiters | None = None, *, queues: bool = True) -> None:
        self._core = core
        self._waiters = waiters
        self._queues = queues
        self._seen = 0

    def attempt(self) -> None:
        """Call before each try: what is freed from here on is worth another."""
        self._seen = self._core.modes.freed()

    def for_blocks(self, error: Exception) -> None:
        """The pool had no free data block. Raises `NoSpace`, `Stopped`, or what a commit raises."""
        core = self._core
        if core.metadata.data_freed or core.reclaimer.pending:
            core.flush()
            core.reclaimer.drain()
            if core.modes.freed() != self._seen:
                return
        core.modes.out_of_space(f"{error}; grow the pool, or delete or discard something")
        self._wait(str(error), retry=False)

    def for_device(self, error: DeviceError) -> None:
        """The data device had no room, for its file system is full. Raises as `for_blocks`."""
        if error.errno not in FULL:
            raise error
        self._core.modes.out_of_space(f"{error}; make room on the file system of the data device")
        self._wait(str(error), retry=True)

    def for_metadata(self, error: NoMetadataRoom) -> None:
        """There was no room to commit what is new. Raises as `for_blocks`."""
        self._wait(str(error), retry=False)

    def _wait(self, why: str, *, retry: bool) -> None:
        core, waiters = self._core, self._waiters
        if not self._queues or core.settings.on_full == "error":
            raise NoSpace(f"no room for a new block: {why}")
        if waiters is None:
            core.modes.wait_for_space(self._seen, self._patience, retry=retry)
            return
        if not waiters.begin():
            raise NoSpace(
                f"no room for a new block: {why}; it cannot wait, for its connection has no other "
                "thread"
            )
        try:
            core.modes.wait_for_space(self._seen, self._patience, retry=retry)
        finally:
            waiters.end()

    def _patience(self) -> float | None:
        settings = self._core.settings
        if settings.on_full == "error":
            return 0.0
        return settings.full_timeout or None
