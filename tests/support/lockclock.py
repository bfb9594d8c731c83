"""A clock on each lock and gate: what a thread waits for while it holds one, and how long.

The clock is a modelled disk's, not the machine's: each system call that may wait for a disk costs
what it would on a slow one, and is charged to every lock that its thread holds. So a test fails
because of what the code does in a lock, never because the machine was busy.

    transfers            0.1 ms, and 10 ms for each MiB
    a metadata block     0.1 ms
    syncs and commits    1 s
    no bound             a name service, a client that is to take bytes, space, write-out, a commit

Rules

1. Nobody has more than `MOST_SECONDS` of disk in one stay in a lock or gate.
2. Nobody waits for what has no bound with a lock or gate in hand.
3. Inside a gate a request may wait for another's cell or cache slots, and who closes a gate for
   those inside: they end after their own bounded I/O. With a lock in hand nobody waits for that.
4. A *turn* lets one job of a kind wait for another of it, and for nothing else: it may be kept for
   as long as the disk takes, but not for space, a name service or a client.

Locks are those that `thinpoold` and `thinmeta` make while the clock is on; each has the name of the
attribute that it becomes. What test code takes itself is not watched.

Thread-safety: any thread; `Clock.complaints` only ever grows.
"""

from __future__ import annotations

import grp
import linecache
import os
import pwd
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any, Final
from unittest import mock

from thinmeta.store.lmdb import LmdbStore
from thinmeta.store.memory import MemoryStore
from thinpoold import access, fallocate, pagecache
from thinpoold.gate import Gate

MOST_SECONDS: Final = 0.05
_CALL: Final = 0.0001
_BYTE: Final = 0.01 / (1 << 20)
_SYNC: Final = 1.0

TURNS: Final = frozenset(
    {
        "thinpoold.deletion._working",
        "thinpoold.ledger._growing",
        "thinpoold.pool.accepting",
        "thinpoold.pool.growing",
        "thinpoold.reclaim._working",
    }
)

# Whose waiting ends with another request's own I/O.
_BOUNDED: Final = frozenset(
    {"thinpoold.cells._lock", "thinpoold.datacache._changed", "thinpoold.gate._changed"}
)

# Nothing may be answered while the pool goes back to its last commit: that is done with the lock.
_GOING_BACK: Final = frozenset({"abandon", "resume"})

_ATTRIBUTE: Final = re.compile(r"(\w+)(?:: [\w.]+)? = .*Lock\(\)")
_OURS: Final = ("thinpoold", "thinmeta")


class _Held:
    """One lock or gate that a thread has, and what it has waited for with it."""

    __slots__ = ("name", "seconds", "what")

    def __init__(self, name: str, what: object) -> None:
        self.name = name
        self.what = what
        self.seconds = 0.0


class Clock:
    """All locks' clock. `complaints` are breaches of the rules, each with where it happened."""

    def __init__(self) -> None:
        self.complaints: list[str] = []
        # A block is copied in one stay in the gate, whatever its size.
        self.most_in_gate = MOST_SECONDS
        self._own = threading.local()

    @property
    def held(self) -> list[_Held]:
        """What this thread holds, in the order in which it took them."""
        try:
            found: list[_Held] = self._own.held
        except AttributeError:
            found = self._own.held = []
        return found

    def take(self, name: str, what: object) -> None:
        if not _module(_caller()).startswith("tests."):
            self.held.append(_Held(name, what))

    def give(self, what: object) -> None:
        held = self.held
        for place in range(len(held) - 1, -1, -1):
            if held[place].what is what:
                del held[place]
                return

    def charge(self, seconds: float, why: str) -> None:
        """This thread waits for a disk."""
        for one in self.held:
            before = one.seconds
            one.seconds += seconds
            most = self.most_in_gate if one.name == "gate" else MOST_SECONDS
            if before <= most < one.seconds and one.name not in TURNS:
                self._complain(f"{one.name} is held for {one.seconds:.2f} s of disk, with {why}")

    def unbounded(self, why: str, but: object = None) -> None:
        """This thread waits for what may never come."""
        for one in self.held:
            if one.what is not but and (one.name not in TURNS or why != "a commit"):
                self._complain(f"{one.name} is held by one who waits for {why}")

    def waits(self, lock: ClockedLock) -> None:
        """This thread waits for a condition with that lock."""
        if lock.name not in _BOUNDED:
            short = lock.name.split(".")[1]
            self.unbounded({"committer": "a commit", "modes": "space"}.get(short, short), lock)
            return
        for one in self.held:
            if one.what is not lock and one.name != "gate" and one.name not in TURNS:
                self._complain(f"{one.name} is held by one who waits for {lock.name}")

    def _complain(self, message: str) -> None:
        where = []
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            module, function = _module(frame), frame.f_code.co_name
            if module == "thinpoold.rounds" and function in _GOING_BACK:
                return
            if module.startswith(_OURS):
                where.append(f"{module}.{function}:{frame.f_lineno}")
            frame = frame.f_back
        self.complaints.append(f"{message}; in {' < '.join(where)}")


class ClockedLock:
    """A lock with a clock."""

    def __init__(self, clock: Clock, name: str) -> None:
        self.name = name
        self._clock = clock
        self._lock = _real_lock()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        got = self._lock.acquire(blocking, timeout)
        if got:
            self._clock.take(self.name, self)
        return got

    def release(self) -> None:
        self._clock.give(self)
        self._lock.release()

    def locked(self) -> bool:
        return self._lock.locked()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


_real_lock = threading.Lock


@contextmanager
def watching() -> Iterator[Clock]:
    """Put the clock on all locks that are made in the context."""
    clock = Clock()
    with ExitStack() as patches:
        for patch in _patches(clock):
            patches.enter_context(patch)
        yield clock


def _patches(clock: Clock) -> Iterator[Any]:
    def lock() -> Any:
        frame = sys._getframe(1)
        if not _module(frame).startswith(_OURS):
            return _real_lock()
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        found = _ATTRIBUTE.search(line)
        name = found[1] if found is not None else str(frame.f_lineno)
        return ClockedLock(clock, f"{_module(frame)}.{name}")

    yield mock.patch.object(threading, "Lock", lock)
    yield from _gate_patches(clock)

    def wait(real: Callable[..., Any]) -> Callable[..., Any]:
        def patched(self: threading.Condition, timeout: float | None = None) -> bool:
            own = self._lock  # type: ignore[attr-defined]
            if isinstance(own, ClockedLock):
                clock.waits(own)
            return bool(real(self, timeout))

        return patched

    yield mock.patch.object(threading.Condition, "wait", wait(threading.Condition.wait))
    for owner, name, cost in _costs():
        yield mock.patch.object(owner, name, _charged(clock, name, getattr(owner, name), cost))
    for owner, name in ((pwd, "getpwnam"), (pwd, "getpwuid"), (grp, "getgrnam")):
        yield _unbounded(clock, owner, name, "a name service")
    yield _unbounded(clock, access, "_getgrouplist", "a name service")
    yield _unbounded(clock, socket.socket, "sendall", "a client")


def _gate_patches(clock: Clock) -> Iterator[Any]:
    enter, leave, closed = Gate.enter, Gate.leave, Gate.closed

    def entered(self: Gate) -> None:
        enter(self)
        clock.take("gate", self)

    def left(self: Gate) -> None:
        clock.give(self)
        leave(self)

    @contextmanager
    def closed_(self: Gate) -> Iterator[None]:
        with closed(self):
            clock.held.append(_Held("gate", self))
            try:
                yield
            finally:
                clock.give(self)

    yield mock.patch.object(Gate, "enter", entered)
    yield mock.patch.object(Gate, "leave", left)
    yield mock.patch.object(Gate, "closed", closed_)


Cost = Callable[..., float]


def _costs() -> Iterator[tuple[object, str, Cost]]:
    """What may wait for a disk, and how long it does."""

    def moved(*arguments: Any) -> float:
        buffers = arguments[1]
        parts = buffers if isinstance(buffers, list | tuple) else [buffers]
        count = sum(one if isinstance(one, int) else len(one) for one in parts)
        return _CALL + count * _BYTE

    for name in ("pread", "preadv", "pwrite", "pwritev"):
        yield os, name, moved
    yield os, "copy_file_range", lambda *arguments: _CALL + arguments[2] * _BYTE
    yield os, "posix_fadvise", lambda *arguments: _CALL + arguments[2] * _BYTE
    for name in ("fsync", "fdatasync"):
        yield os, name, lambda *arguments: _SYNC
    yield pagecache, "sync_file_system", lambda *arguments: _SYNC
    yield fallocate, "discard", lambda *arguments: _SYNC
    yield fallocate, "_call", lambda *arguments: 10 * _CALL
    for store in (LmdbStore, MemoryStore):
        yield store, "read", lambda *arguments: _CALL
        yield store, "commit", lambda *arguments: _SYNC
    yield time, "sleep", float


def _charged(clock: Clock, name: str, real: Callable[..., Any], cost: Cost) -> Callable[..., Any]:
    def patched(*arguments: Any, **named: Any) -> Any:
        if clock.held:
            clock.charge(cost(*arguments), name)
        return real(*arguments, **named)

    return patched


def _unbounded(clock: Clock, owner: object, name: str, why: str) -> Any:
    real = getattr(owner, name)

    def patched(*arguments: Any, **named: Any) -> Any:
        clock.unbounded(why)
        return real(*arguments, **named)

    return mock.patch.object(owner, name, patched)


def _caller() -> FrameType:
    """The frame that takes a lock: the first that is neither of here nor of `threading`."""
    frame = sys._getframe(2)
    while frame.f_back is not None and _module(frame) in (__name__, "threading", "contextlib"):
        frame = frame.f_back
    return frame


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))
