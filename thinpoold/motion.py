"""Whether work that takes long is slow, or stuck: what the watchdog goes by (`notify`).

A commit is several waits for the disk, each of any length on a disk that is slow, and nothing of
it has ended before the last. But a thread that waits for a disk is woken again and again: by each
page of a sync, by the end of each write. One that waits for a lock that is never given back, or
for a disk that answers no more, is not. The kernel counts how often a thread has gone to sleep
(`voluntary_ctxt_switches` in proc(5)), so the thread need not say anything for itself.

Invariants

1. While nothing that is registered ends or begins, and no thread at work is woken, `position` is
   the same.
2. A pulse stops where what is counted waits for what does not move, or for something else than the
   rounds that do: a tick or an answer waits for few of them, never for more than `MOST_ROUNDS`.

Thread-safety: `work` and `position` from any thread; a `Pulse` is one thread's.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

# A tick waits for three at most, and leads some of them.
MOST_ROUNDS = 8

Position: TypeAlias = tuple[int, tuple[tuple[int, int], ...]]


class Motion:
    """The threads at work that others wait for."""

    def __init__(self, switches: Callable[[int], int] | None = None) -> None:
        self._switches = switches or switches_of
        self._lock = threading.Lock()
        # By kernel thread id, how often it has begun and not ended. Both guarded by the lock.
        self._at_work: dict[int, int] = {}
        self._changes = 0

    @contextmanager
    def work(self) -> Iterator[None]:
        """The calling thread is at work. It may be so already."""
        thread = threading.get_native_id()
        with self._lock:
            self._changes += 1
            self._at_work[thread] = self._at_work.get(thread, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                self._changes += 1
                self._at_work[thread] -= 1
                if not self._at_work[thread]:
                    del self._at_work[thread]

    def position(self) -> Position:
        """Return what differs once anything of the work has moved."""
        with self._lock:
            changes, threads = self._changes, list(self._at_work)
        return changes, tuple((thread, self._switches(thread)) for thread in threads)


class Pulse:
    """Tells whether what is counted, ticks or answers, goes on, or waits for what moves.

    `count` is how many there were; `rounds` returns how many rounds have ended.
    """

    def __init__(self, motion: Motion, rounds: Callable[[], int], count: int) -> None:
        self._motion = motion
        self._rounds = rounds
        self._count = count
        self._rounds_then = rounds()
        self._position = motion.position()

    def beats(self, count: int) -> bool:
        """Look again. `count` is how many there were by now."""
        rounds, position = self._rounds(), self._motion.position()
        went_on, moved = count != self._count, position != self._position
        self._count, self._position = count, position
        if went_on:
            self._rounds_then = rounds
        return went_on or (moved and rounds - self._rounds_then <= MOST_ROUNDS)


def switches_of(thread: int) -> int:
    """Return how often a thread of this process has gone to sleep; -1 when that is not known."""
    try:
        with open(f"/proc/self/task/{thread}/status", "rb") as status:
            for line in status:
                if line.startswith(b"voluntary_ctxt_switches:"):
                    return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return -1
