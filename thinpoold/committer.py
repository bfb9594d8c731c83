"""Group commit: flushes that wait together share one round.

A round is one whole commit, or, if nobody who waits for it asks for more, the cheaper way to make
things durable that `commit` knows. Whoever finds none running leads the next one on its own thread,
so no thread is handed anything; those who come meanwhile wait for the round after it, of which one
of them becomes the leader.

Invariants

1. `flush` returns after a round that began after it was called.
2. One round runs at a time.
3. A round that raises raises for all who waited for it, but for one that raises `Kept`: then those
   who asked for no commit have what they asked for. Else a flush never succeeds on the strength of
   a round that failed.

A timer runs a round each second while there is something to commit; it goes through `flush` as
everybody does.

Thread-safety: any thread. `_changed` guards `_next` and `_leading`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 1.0

T = TypeVar("T")


class Kept(Exception):  # noqa: N818 - says what became of it
    """A round made everything durable that clients did, but no commit, for `cause`."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class _Round:
    """One round: whether it is over, and how it went."""

    __slots__ = ("done", "error", "whole")

    def __init__(self) -> None:
        self.done = False
        self.whole = False
        self.error: Exception | None = None


class Committer:
    """Runs `commit(whole)`, which makes everything durable or raises."""

    def __init__(self, commit: Callable[[bool], None]) -> None:
        self._commit = commit
        self._changed = threading.Condition(threading.Lock())
        self._next = _Round()
        self._leading = False

    def flush(self, *, whole: bool = True) -> None:
        """Return when all that was done before the call is durable. Raises what the round raised.

        With `whole`, it is committed.
        Never call this inside a gate or with the metadata lock held.
        """
        with self._changed:
            mine = self._next
            mine.whole = mine.whole or whole
            while not mine.done and (self._leading or mine is not self._next):
                self._changed.wait()
            if not mine.done:
                self._leading = True
                self._next = _Round()
        if not mine.done:
            self._lead(mine)
        error = mine.error
        if isinstance(error, Kept):
            error = error.cause if whole else None
        if error is not None:
            raise _again(error)

    def alone(self, act: Callable[[], T]) -> T:
        """Do something while no round runs."""
        with self._changed:
            while self._leading:
                self._changed.wait()
            self._leading = True
        try:
            return act()
        finally:
            with self._changed:
                self._leading = False
                self._changed.notify_all()

    def _lead(self, mine: _Round) -> None:
        error: Exception | None = RuntimeError("the commit was interrupted")
        try:
            self._commit(mine.whole)
            error = None
        except Exception as raised:
            error = raised
        finally:
            with self._changed:
                mine.error = error
                mine.done = True
                self._leading = False
                self._changed.notify_all()


def _again(error: Exception) -> Exception:
    """Return the error for one of several threads to raise.

    All raise the same object; only the last traceback is seen, which is no loss.
    """
    return error.with_traceback(None)


class Timer:
    """A thread that calls `tick` each second, or sooner when kicked.

    What `tick` raises has been dealt with by whoever raised it, and is only logged.
    """

    def __init__(self, name: str, tick: Callable[[], None], interval: float | None) -> None:
        self._tick = tick
        self._interval = interval
        self._wake = threading.Condition(threading.Lock())
        self._kicked = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._running = False

    def start(self) -> None:
        self._running = True
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._running

    def kick(self) -> None:
        """Tick soon."""
        with self._wake:
            self._kicked = True
            self._wake.notify()

    def stop(self) -> None:
        """End the thread; a tick under way is waited for."""
        if not self._running:
            return
        self._running = False
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                if not self._kicked and not self._stopping:
                    self._wake.wait(self._interval)
                if self._stopping:
                    return
                self._kicked = False
            try:
                self._tick()
            except Exception as error:
                log.error("%s: %s", self._thread.name, error)
