"""Tells the service manager how the daemon is: readiness, a line of status, and the watchdog.

The protocol is sd_notify(3)'s: `KEY=value` lines in one datagram to the socket that NOTIFY_SOCKET
names. Without a service manager nothing here does anything.

Invariants

1. Nothing here stops the daemon: what cannot be sent is logged and forgotten.
2. The watchdog is fed by a thread that feeds only after it has seen the pool alive: the pool's own
   timer came round since the last time, and the pool answered what state it is in, for which it
   takes the lock that all else takes. Where either has to wait for a disk that is slow, it is
   enough that the work that it waits for has moved (`motion`). A pool that is read-only or failed
   is alive: it says so, and starting it again would not mend it.
3. While a start or an end has to wait for the disk, the manager is asked for more time (`Longer`),
   for as long as the work moves.
4. The variables are taken out of the environment, so no child speaks for the daemon.

Thread-safety: `Notifier` may be used from any thread. `Heart` is started and stopped by one; what
`beat` remembers is its own thread's. `Asked` and `Longer` are one thread's, and have one of their
own.
"""

import faulthandler
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass

from thinpoold.motion import Motion, Pulse

log = logging.getLogger(__name__)

# A watchdog is fed this often in its time, so that one round that comes late is not the end.
FEEDINGS = 4
# The line of status is looked at this often at least.
STATUS_SECONDS = 10.0
# A manager that takes no datagrams must not hold up whoever sends one.
_SEND_SECONDS = 5.0
_MAX_STATUS = 512
_STDERR = 2


@dataclass(frozen=True)
class Notifier:
    """Where to send, "" for nowhere, and the watchdog's time in seconds, None for no watchdog."""

    address: str = ""
    watchdog: float | None = None

    def send(self, **fields: str) -> bool:
        """Send the fields as one message; return whether it went out."""
        if not self.address:
            return False
        message = "\n".join(f"{key}={_one_line(value)}" for key, value in fields.items())
        # '@' stands for the NUL that an abstract socket's name begins with.
        address = f"\0{self.address[1:]}" if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
                manager.settimeout(_SEND_SECONDS)
                manager.sendto(message.encode(errors="surrogateescape"), os.fsencode(address))
        except OSError as error:
            log.warning("cannot notify the service manager: %s", error)
            return False
        return True

    def stopping(self) -> bool:
        """Say that the daemon has begun to shut down."""
        return self.send(STOPPING="1", STATUS="stopping: answering what is under way, flushing")


def from_environment(environment: MutableMapping[str, str] = os.environ) -> Notifier:
    """Return what a service manager asked for, and take it out of the environment."""
    address = environment.pop("NOTIFY_SOCKET", "")
    watchdog = environment.pop("WATCHDOG_USEC", "")
    for_process = environment.pop("WATCHDOG_PID", str(os.getpid()))
    if not address.startswith(("/", "@")) or len(address) < 2:
        if address:
            log.warning("NOTIFY_SOCKET is %r, which is no socket: not used", address)
        return Notifier()
    # One that is meant for another process is none of ours.
    ours = for_process == str(os.getpid()) and watchdog.isascii() and watchdog.isdigit()
    seconds = int(watchdog) / 1e6 if ours else 0.0
    return Notifier(address, seconds or None)


class Asked:
    """A question whose answer may take long: a thread of its own waits for it.

    What `ask` raises is the answer. The thread ends after `stop`, when it has its answer.
    """

    def __init__(self, ask: Callable[[], str]) -> None:
        self._ask = ask
        self._wanted = threading.Semaphore(0)
        self._answered = threading.Event()
        self._answer = ""
        self._waiting = False
        self._ending = False
        self._thread: threading.Thread | None = None

    def answer(self, seconds: float) -> str | None:
        """Return the answer if it comes in that time, else None; the next call waits on."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="status", daemon=True)
            self._thread.start()
        if not self._waiting:
            self._waiting = True
            self._wanted.release()
        if not self._answered.wait(seconds) or self._ending:
            return None
        self._answered.clear()
        self._waiting = False
        return self._answer

    def now(self) -> str:
        """Return the answer, whatever it takes."""
        try:
            return self._ask()
        except Exception as error:
            return f"cannot say how the pool is: {error}"

    def stop(self) -> None:
        """Ask no more; who waits for an answer gets none."""
        self._ending = True
        self._wanted.release()
        self._answered.set()

    def _run(self) -> None:
        while True:
            self._wanted.acquire()
            if self._ending:
                return
            self._answer = self.now()
            self._answered.set()


class Heart:
    """The thread of invariant 2. It also keeps the manager's line of status up to date.

    `ticks` returns a count that goes up when the pool's timer comes round; `status` returns the
    line. What `status` raises becomes the line. `motion` has the work that both may wait for,
    which is done in rounds; `rounds` returns how many have ended.
    """

    def __init__(
        self,
        notifier: Notifier,
        ticks: Callable[[], int],
        status: Callable[[], str],
        motion: Motion,
        rounds: Callable[[], int],
    ) -> None:
        self._notifier = notifier
        self._ticks = ticks
        self._status = Asked(status)
        self._timer = Pulse(motion, rounds, -1)
        self._answers = Pulse(motion, rounds, 0)
        self._answered = 0
        self._last_status = ""
        self._interval = STATUS_SECONDS
        if notifier.watchdog is not None:
            self._interval = min(self._interval, notifier.watchdog / FEEDINGS)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heart", daemon=True)

    def start(self) -> None:
        """Say that the pool is served, and begin; when there is anyone to tell."""
        if not self._notifier.address:
            return
        if self._notifier.watchdog is not None:
            # The manager ends a daemon that hangs with SIGABRT: leave a trace of where it hung.
            faulthandler.enable(_STDERR)
        self._last_status = self._status.now()
        self._notifier.send(READY="1", STATUS=self._last_status)
        self._thread.start()

    def stop(self) -> None:
        """Feed no more, and leave the pool alone. One that hangs is not waited for."""
        self._ending.set()
        self._status.stop()
        if self._thread.is_alive():
            self._thread.join(_SEND_SECONDS)

    def beat(self) -> bool:
        """Look at the pool once, tell the manager, and return whether the watchdog was fed."""
        # Of a watchdog's time this takes a part, and the pause before it another.
        status = self._status.answer(self._interval)
        fields: dict[str, str] = {}
        if status is not None:
            self._answered += 1
            if status != self._last_status:
                fields["STATUS"] = self._last_status = status
        # Both look, whatever the other sees.
        alive = all([self._timer.beats(self._ticks()), self._answers.beats(self._answered)])
        if alive and self._notifier.watchdog is not None:
            fields["WATCHDOG"] = "1"
        if fields and not self._ending.is_set():
            self._notifier.send(**fields)
        return "WATCHDOG" in fields

    def _run(self) -> None:
        hungry, fed = 0, time.monotonic()
        while not self._ending.wait(self._interval):
            if self.beat():
                hungry, fed = 0, time.monotonic()
                continue
            hungry += 1
            # Once is chance: a timer of a second against a watchdog of few.
            if self._notifier.watchdog is not None and hungry > 1:
                log.error(
                    "the commit timer has not come round for %.0f s, or the pool does not answer, "
                    "and nothing that they wait for moves",
                    time.monotonic() - fed,
                )


class Longer:
    """A context of work that a manager waits for, only so long unless it is asked for more time."""

    # How much more, from each time on, and how often to look.
    SECONDS = 60.0
    LOOK_SECONDS = 30.0

    def __init__(self, notifier: Notifier, motion: Motion | None = None) -> None:
        self._notifier = notifier
        self._motion = motion or Motion()
        self._pulse = Pulse(self._motion, lambda: 0, 0)
        self._over = threading.Event()
        self._work = self._motion.work()
        self._thread = threading.Thread(target=self._run, name="longer", daemon=True)

    def __enter__(self) -> None:
        self._work.__enter__()
        if self._notifier.address:
            self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._work.__exit__(None, None, None)
        if self._thread.is_alive():
            self._thread.join(_SEND_SECONDS)

    def look(self) -> bool:
        """Ask for more time if the work has moved; return whether that was done."""
        return self._pulse.beats(0) and self._notifier.send(
            EXTEND_TIMEOUT_USEC=str(int(self.SECONDS * 1e6))
        )

    def _run(self) -> None:
        while not self._over.wait(self.LOOK_SECONDS):
            self.look()


def _one_line(text: str) -> str:
    """Return what fits into a field: a line feed would begin another."""
    return " ".join(text.split())[:_MAX_STATUS]
