"""Python's time, shared out to the volumes that want it.

The interpreter runs one thread at a time. Left to itself it goes round the threads, so who sends
the most and the longest requests gets the most of it; and a thread that has let it go for a system
call waits behind all others to have it back. So each volume has a share of its time, whatever its
clients ask for and however many they are, and a request waits before it begins while its volume is
ahead.

What a volume wants is how much of the time it had a request here: a request that is held up by
others counts in full. What it has had is processor time. Shares are max-min fair: who wants less
than an even share has what it wants, and what that leaves is shared evenly by the others. A volume
alone waits for nothing.

A share is a bucket with a rate, as in `ratelimit`: it keeps the moment from which on the volume is
owed something again.

Invariants

1. A request waits outside every lock and gate, and at most `MOST_SECONDS`.
2. A volume is held back only while another wants Python's time, and never below an even share.

Thread-safety: any thread. The numbers are changed without a lock, by operations that the
interpreter does not interrupt; a look at all shares that overlaps another's does no harm.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from thinpoold.ratelimit import ENDING, Wait

# A flush wants no more than this: the rest of it waits for the disk.
MOST_OF_FLUSH: Final = 0.001
# What volumes want is looked at so often, and half of it forgotten each time.
LOOK_SECONDS: Final = 0.01
# A volume that was away has so much at once, and one that has had too much is owed no more.
BURST_SECONDS: Final = 0.005
MOST_SECONDS: Final = 0.25
# A read or write is charged no more for what it moves: that is the kernel's copying, beside which
# Python runs.
MOST_OF_TRANSFER: Final = 0.0005
# Who wants less is as good as not there.
_NEGLIGIBLE: Final = 0.02
_NOT_ASKED: Final = -1.0


class Shares:
    """All volumes' shares. `level` is the most that one may have just now; None: all there is."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        used: Callable[[], float] = time.thread_time,
        wait: Wait = ENDING.wait,
    ) -> None:
        self.clock = clock
        self.used = used
        self.wait = wait
        self.level: float | None = None
        self.look_at = clock() + LOOK_SECONDS
        self._looked = clock()
        self._shares: list[Share] = []

    def add(self, inside: Callable[[], bool]) -> Share:
        """Return a share for a volume; `inside` says whether it has a request under way."""
        share = Share(self, inside)
        self._shares = [*self._shares, share]
        return share

    def remove(self, share: Share) -> None:
        """The volume is closed."""
        self._shares = [one for one in self._shares if one is not share]
        self.look(self.clock())

    def look(self, now: float) -> None:
        """Share out anew, by what each has wanted since the last time."""
        passed = max(now - self._looked, 1e-6)
        self._looked = now
        self.look_at = now + LOOK_SECONDS
        self.level = level([one.wanted_in(passed) for one in self._shares])


def level(wanted: list[float]) -> float | None:
    """Return the most that each may have of 1, so that what is wanted is had as far as it goes.

    None when nobody needs to be held back. (Water-filling; max-min fairness.)
    """
    wanting = sorted(one for one in wanted if one > _NEGLIGIBLE)
    left = 1.0
    for number, one in enumerate(wanting):
        even = left / (len(wanting) - number)
        if one > even:
            return even if len(wanting) > 1 else None
        left -= one
    return None


class Share:
    """One volume's."""

    __slots__ = ("_due", "_inside", "_looking", "_of", "_spent", "_waiting", "_wants")

    def __init__(self, of: Shares, inside: Callable[[], bool]) -> None:
        self._of = of
        self._inside = inside
        self._due = 0.0
        # Seconds for which requests were here since the last look, and what they wanted before.
        self._spent = 0.0
        self._wants = 0.0
        self._waiting = 0
        # Held by whoever looks, while it waits for its turn as well.
        self._looking = threading.Lock()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """A request, or a portion of one: wait for the turn, and be charged at the end."""
        begun = self.begin()
        try:
            yield
        finally:
            self.end(begun)

    @contextmanager
    def taken_for_look(self) -> Iterator[None]:
        """As `taken`, for what is all Python's: the volume has one such at a time.

        Others would only have the interpreter go round more threads, and volumes' with fewer wait.
        """
        with self._looking, self.taken():
            yield

    @contextmanager
    def taken_for_flush(self) -> Iterator[None]:
        """As `taken`: what a flush wants of Python is little, however long it takes."""
        came, had = self.begin()
        try:
            yield
        finally:
            came = max(came, self._of.clock() - MOST_OF_FLUSH)
            self.end((came, had), MOST_OF_TRANSFER)

    def begin(self) -> tuple[float, float]:
        """Wait until the volume's turn comes; what `end` wants. Outside locks and gates."""
        of = self._of
        came = of.clock()
        if of.level is None:
            # What was used is not asked for nothing: that takes as long as all the rest of this.
            return came, _NOT_ASKED
        if self._due > came:
            self._wait(came)
        return came, of.used()

    def end(self, begun: tuple[float, float], most: float = MOST_SECONDS) -> None:
        """A request is over. It is charged what it used, `most` seconds at most."""
        of = self._of
        came, had = begun
        now = of.clock()
        self._spent += now - came
        if now >= of.look_at:
            of.look(now)
        share = of.level
        if share is not None and had != _NOT_ASKED:
            used = of.used() - had
            due = max(self._due, now - BURST_SECONDS) + (used if used < most else most) / share
            self._due = min(due, now + MOST_SECONDS)

    def wanted_in(self, seconds: float) -> float:
        """Return which part of the last seconds the volume wanted; they begin anew."""
        here = self._waiting or self._inside()
        wanted = 1.0 if here else min(1.0, self._spent / seconds)
        self._spent = 0.0
        self._wants = max(wanted, self._wants / 2)
        return self._wants

    def _wait(self, now: float) -> None:
        of = self._of
        self._waiting += 1
        try:
            while of.level is not None and self._due > now:
                if of.wait(min(self._due - now, LOOK_SECONDS)):
                    return
                now = of.clock()
                if now >= of.look_at:
                    of.look(now)
        finally:
            self._waiting -= 1
