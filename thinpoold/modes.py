"""The pool's mode, dm-thin's: what still works after something went wrong.

    write                   everything
    out-of-data-space       all but new blocks; those queue or fail, as the setting `on_full` says
    out-of-metadata-space   likewise, and no new volumes or snapshots
    read-only               reads alone; the last commit stands, and what came after it is lost
    failed                  nothing: not even the last commit can be read

Invariants

1. From `write` the mode goes to `out-of-data-space` or `out-of-metadata-space`, and back. To
   `read-only` and `failed` it only ever goes down, with the reason, and comes back when the pool is
   opened anew; from `read-only` also when its cause has ended and nothing was lost (`resume`).
2. Each change of the mode is logged, once.
3. While a mode lasts in which the pool is full, one clock runs for all who wait: it started with
   the mode.

Thread-safety: any thread. `_changed` guards all attributes; `mode` may be read without it.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable
from enum import Enum
from time import monotonic

from thinpoold.errors import NoSpace, PoolStopped

log = logging.getLogger(__name__)

# A waiting writer tries again this often when only the file system under the data device is full:
# nobody tells when that has room again.
RETRY_SECONDS = 1.0


class Mode(Enum):
    """The values are those that `status` shows."""

    WRITE = "write"
    OUT_OF_DATA_SPACE = "out-of-data-space"
    OUT_OF_METADATA_SPACE = "out-of-metadata-space"
    READ_ONLY = "read-only"
    FAILED = "failed"


FULL_MODES = frozenset({Mode.OUT_OF_DATA_SPACE, Mode.OUT_OF_METADATA_SPACE})
_SAFETY = {mode: rank for rank, mode in enumerate(Mode)}


class Stopped(PoolStopped):
    """The pool no longer does this. `errno` is what an NBD client gets."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.errno = number


class Modes:
    """The mode of one pool."""

    def __init__(self, *, read_only: bool = False) -> None:
        self._changed = threading.Condition(threading.Lock())
        self.mode = Mode.READ_ONLY if read_only else Mode.WRITE
        self.reason = "it was opened read-only" if read_only else ""
        # A pool that was opened to be read has lost nothing: its flushes succeed.
        self.lost_data = False
        self._freed = 0
        # Since when the pool is full, by the monotonic clock, in a mode in which it is.
        self._full_since = 0.0
        self._ending = False

    def begin_read_only(self, reason: str, *, lost_data: bool = False) -> None:
        """The pool is opened in this mode, for this reason."""
        with self._changed:
            self.mode, self.reason = Mode.READ_ONLY, reason
            self.lost_data = lost_data

    def look(self) -> None:
        """The pool is looked at; say what it would do if it was opened."""
        with self._changed:
            self.mode, self.reason = Mode.WRITE, ""

    @property
    def takes_writes(self) -> bool:
        """Whether mapped blocks may be written."""
        return self.mode is Mode.WRITE or self.mode in FULL_MODES

    @property
    def full(self) -> bool:
        """Whether what needs space waits or fails."""
        return self.mode in FULL_MODES

    def check_writable(self) -> None:
        """Raise `Stopped` unless the pool takes writes."""
        if self.mode is Mode.WRITE:
            return
        if self.mode is Mode.FAILED:
            raise Stopped(f"the pool has failed: {self.reason}", errno.EIO)
        if self.mode is Mode.READ_ONLY:
            raise Stopped(f"the pool is read-only: {self.reason}", errno.EROFS)

    def check_readable(self) -> None:
        """Raise `Stopped` when nothing works any more."""
        if self.mode is Mode.FAILED:
            raise Stopped(f"the pool has failed: {self.reason}", errno.EIO)

    def check_flushable(self) -> None:
        """Raise `Stopped` when writes that were answered may have been lost."""
        if self.lost_data:
            raise Stopped(
                f"the pool is {self.mode.value}: {self.reason}; what was written after the last "
                "commit is lost",
                errno.EIO,
            )

    def degrade(self, mode: Mode, reason: str, *, lost_data: bool = True) -> None:
        """Go down to `mode`, unless the pool is there or further down already."""
        with self._changed:
            self.lost_data = self.lost_data or lost_data
            if _SAFETY[mode] <= _SAFETY[self.mode]:
                return
            self._enter(mode, reason)

    def resume(self, reason: str) -> None:
        """Take writes again, after what made the pool read-only has ended and nothing was lost."""
        with self._changed:
            if self.mode is Mode.READ_ONLY and not self.lost_data:
                self._enter(Mode.WRITE, reason)

    def out_of_space(self, reason: str) -> None:
        """There is no room for a new block."""
        self._fill(Mode.OUT_OF_DATA_SPACE, reason)

    def out_of_metadata_space(self, reason: str) -> None:
        """There is no room for commits but for those that delete or discard."""
        self._fill(Mode.OUT_OF_METADATA_SPACE, reason)

    def _fill(self, mode: Mode, reason: str) -> None:
        with self._changed:
            if _SAFETY[mode] <= _SAFETY[self.mode]:
                return
            if not self.full:
                self._full_since = monotonic()
            self._enter(mode, reason)

    def space_found(self) -> None:
        """There may be room for data again: waiting writers try."""
        self._found(Mode.OUT_OF_DATA_SPACE)

    def metadata_space_found(self) -> None:
        """There is room for commits of all kinds again."""
        self._found(Mode.OUT_OF_METADATA_SPACE)

    def _found(self, mode: Mode) -> None:
        with self._changed:
            self._freed += 1
            if self.mode is mode:
                self._enter(Mode.WRITE, "there is room again")
            self._changed.notify_all()

    def end(self) -> None:
        """The daemon ends: nobody waits for space any more."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()

    def settings_changed(self) -> None:
        """Waiting writers look again how long to wait."""
        with self._changed:
            self._changed.notify_all()

    def freed(self) -> int:
        """A number that changes with every `space_found`."""
        return self._freed

    def wait_for_space(
        self, seen: int, patience: Callable[[], float | None], *, retry: bool = False
    ) -> None:
        """Wait until space was found since `seen` was taken from `freed`.

        `patience()` is for how many seconds the pool may have been full until whoever waits gives
        up, None for ever; with `retry`, returns after a while in any case. Raises `NoSpace` when
        that is over, `Stopped` when the pool stops.
        """
        with self._changed:
            give_up = monotonic() + RETRY_SECONDS if retry else None
            while self._freed == seen:
                self.check_writable()
                if self._ending:
                    raise Stopped("the pool is full, and the daemon ends", errno.ESHUTDOWN)
                now, seconds = monotonic(), patience()
                end = None if seconds is None else self._full_since + seconds
                if end is not None and now >= end:
                    raise NoSpace(f"no room for a new block: {self.reason or 'the pool is full'}")
                if give_up is not None and now >= give_up:
                    return
                times = [time for time in (end, give_up) if time is not None]
                self._changed.wait(min(times) - now if times else None)

    def _enter(self, mode: Mode, reason: str) -> None:
        worse = _SAFETY[mode] > _SAFETY[self.mode]
        level = logging.ERROR if worse else logging.WARNING
        log.log(level, "pool mode: %s -> %s: %s", self.mode.value, mode.value, reason)
        self.mode = mode
        self.reason = reason if mode is not Mode.WRITE else ""
        self._changed.notify_all()
