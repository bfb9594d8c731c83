"""Waiting for space, for one request: what a writer does that found no room for a new block.

    1. blocks that commits free: commit, reclaim, try again
    2. the mode becomes out-of-data-space
    3. on_full=error: fail. on_full=queue: wait until something was freed or the pool has grown, and
       fail after `full_timeout` seconds

A writer waits here with no gate, cell or lock held, and then starts its request again.

Thread-safety: one `SpaceWait` is one thread's.
"""

from __future__ import annotations

import errno
from time import monotonic
from typing import Final

from thinpoold.core import Core
from thinpoold.errors import DeviceError, NoSpace

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Errors that say that there is no room, which may change."""


class SpaceWait:
    """The waiting of one request."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._seen = 0
        self._since: float | None = None

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

    def _wait(self, why: str, *, retry: bool) -> None:
        core = self._core
        if core.settings.on_full == "error":
            raise NoSpace(f"no room for a new block: {why}")
        if self._since is None:
            self._since = monotonic()
        core.modes.wait_for_space(self._seen, self._deadline, retry=retry)

    def _deadline(self) -> float | None:
        settings = self._core.settings
        since = self._since if self._since is not None else monotonic()
        if settings.on_full == "error":
            return since
        return since + settings.full_timeout if settings.full_timeout else None
