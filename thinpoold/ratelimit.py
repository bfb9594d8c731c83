"""Limits on how fast a volume's clients go: token buckets over requests and over bytes.

A bucket holds what one second allows, and fills at its rate. A request takes its tokens at once,
though the bucket may go below nothing, and then waits until the bucket is back at nothing: so each
goes in the order it came, requests larger than the bucket go too, and over any time t no more
than rate * (t + 1 s) has passed, and the last request.

Instead of tokens a bucket keeps the moment at which it is back at nothing, which is the same thing
with one number and no thread that fills it (the virtual scheduling of ITU-T I.371's GCRA).

Invariants

1. A request waits outside every lock and gate: others, and administrators, pass it.
2. Nobody waits once the limiter is replaced (`retire`) or the process ends (`ENDING` is set).

Thread-safety: any thread. `_lock` guards the buckets.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

# How much may come at once after a pause: what so many seconds allow.
BURST: Final = 1.0
# How long a request sleeps before it looks whether it still needs to.
_SLICE: Final = 0.5

# Set when the process ends: what waits then goes on at once.
ENDING: Final = threading.Event()


class Wait(Protocol):
    """Sleeps for some seconds, or less; true when there is no more need to."""

    def __call__(self, timeout: float) -> bool: ...


class Limiter:
    """One volume's limits: `iops` requests and `bps` bytes a second, 0 for no limit."""

    def __init__(
        self,
        iops: int,
        bps: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Wait = ENDING.wait,
    ) -> None:
        self.rates = (iops, bps)
        self._clock = clock
        self._wait = wait
        self._lock = threading.Lock()
        self._retired = False
        full = clock() - BURST
        self._iops_due = full
        self._bps_due = full

    def pace(self, count: int) -> None:
        """Wait until a request of `count` bytes may go. 0 for one that carries none."""
        iops, bps = self.rates
        with self._lock:
            now = self._clock()
            start = now
            if iops:
                begin = max(self._iops_due, now - BURST)
                self._iops_due = begin + 1 / iops
                start = begin
            if bps:
                begin = max(self._bps_due, now - BURST)
                self._bps_due = begin + count / bps
                start = max(start, begin) if iops else begin
        while not self._retired:
            rest = start - self._clock()
            if rest <= 0 or self._wait(min(rest, _SLICE)):
                return

    def retire(self) -> None:
        """Let all that wait go on."""
        self._retired = True


def renewed(old: Limiter | None, iops: int, bps: int) -> Limiter | None:
    """Return the limiter for these rates: `old` if it has them, None for no limits."""
    if old is not None:
        if old.rates == (iops, bps):
            return old
        old.retire()
    return Limiter(iops, bps) if iops or bps else None
