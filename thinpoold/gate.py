"""A volume's gate: requests pass through it, and whoever must be alone closes it.

    request                    close()                      synchronize()
    enter() .. leave()         waits for those inside;      waits for those inside;
                               holds up new ones            lets new ones pass

`synchronize` is a grace period in the sense of RCU: when it returns, every request that may have
seen a mapping from before the call has ended.

Invariants

1. While the gate is closed, nobody is inside; what was done inside before is complete.
2. Nobody waits inside for anything that may wait for the gate: not for a commit, nor for space, nor
   for an administrator's operation. So `close` and `synchronize` end.
3. A thread is inside at most once, and the closer is not inside.

Why enter and leave take no lock: `_inside` and the flags are only ever touched by operations that
are atomic under the interpreter's lock, and in the order that Dekker's algorithm needs. A request
first registers, then looks whether the gate is closed; a closer first closes, then looks who is
registered: at least one sees the other. The same holds for leaving and `_watchers`.

Thread-safety: any thread. `_changed` guards `_closed`, `_watchers` and `_epoch` against writers.
"""

from __future__ import annotations

import threading
from _thread import get_ident
from collections.abc import Iterator
from contextlib import contextmanager


class Gate:
    """Open when made."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        # Thread -> the epoch in which its request entered.
        self._inside: dict[int, int] = {}
        self._closed = False
        self._watchers = 0
        self._epoch = 0

    def enter(self) -> None:
        """Begin a request; waits while the gate is closed."""
        me = get_ident()
        self._inside[me] = self._epoch
        if self._closed:
            self._wait_outside(me)

    def leave(self) -> None:
        """End the request that this thread began."""
        del self._inside[get_ident()]
        if self._watchers:
            with self._changed:
                self._changed.notify_all()

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Close the gate for the context; one closer at a time, others wait for it."""
        with self._changed:
            while self._closed:
                self._changed.wait()
            self._closed = True
            self._watchers += 1
            try:
                while self._inside:
                    self._changed.wait()
            except BaseException:
                self._open()
                raise
            finally:
                self._watchers -= 1
        try:
            yield
        finally:
            with self._changed:
                self._open()

    def synchronize(self) -> None:
        """Wait until every request that is inside now has left."""
        with self._changed:
            self._epoch += 1
            now = self._epoch
            self._watchers += 1
            try:
                # A copy: requests come and go while we look.
                while any(epoch < now for epoch in self._inside.copy().values()):
                    self._changed.wait()
            finally:
                self._watchers -= 1

    def _open(self) -> None:
        self._closed = False
        self._changed.notify_all()

    def _wait_outside(self, me: int) -> None:
        with self._changed:
            while self._closed:
                self._inside.pop(me, None)
                self._changed.notify_all()
                self._changed.wait()
                self._inside[me] = self._epoch
