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

Requests that the C filter serves pass a gate of their own beside this one, which is closed and
opened with it (plugins/fastpath/gate.h). There nobody waits: what finds it closed comes here.

Thread-safety: any thread. `_changed` guards `_closed`, `_watchers` and `_epoch` against writers.
"""

from __future__ import annotations

import threading
from _thread import get_ident
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Beside(Protocol):
    """A gate of requests that do not come through Python."""

    def close(self) -> None:
        """Let nobody in, and return when nobody is inside. Closers may overlap."""

    def open(self) -> None:
        """Take one `close` back."""


class Gate:
    """Open when made. `beside` is closed whenever this is."""

    def __init__(self, beside: Beside | None = None) -> None:
        self._beside = beside
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

    def occupied(self) -> bool:
        """Whether a request is inside, or about to be, just now."""
        return bool(self._inside)

    def leave(self) -> None:
        """End the request that this thread began."""
        del self._inside[get_ident()]
        if self._watchers:
            with self._changed:
                self._changed.notify_all()

    @contextmanager
    def stay(self) -> Iterator[None]:
        """A request, or a part of one: enter for the context."""
        self.enter()
        try:
            yield
        finally:
            self.leave()

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Leave for the context, and enter again; what was seen before may be untrue by then."""
        self.leave()
        try:
            yield
        finally:
            self.enter()

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
            # Without `_changed`: those whom the other gate sends here need it to wait.
            if self._beside is None:
                yield
            else:
                with _closed(self._beside):
                    yield
        finally:
            with self._changed:
                self._open()

    def synchronize(self, *, wait: bool = True) -> bool:
        """Wait until every request that is inside now has left.

        Without `wait`, of those that come through Python: return whether none is inside.
        """
        if self._beside is not None:
            # Requests come through Python for that moment.
            with _closed(self._beside):
                pass
        with self._changed:
            self._epoch += 1
            now = self._epoch
            self._watchers += 1
            try:
                # A copy: requests come and go while we look.
                while any(epoch < now for epoch in self._inside.copy().values()):
                    if not wait:
                        return False
                    self._changed.wait()
            finally:
                self._watchers -= 1
        return True

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


@contextmanager
def _closed(gate: Beside) -> Iterator[None]:
    gate.close()
    try:
        yield
    finally:
        gate.open()
