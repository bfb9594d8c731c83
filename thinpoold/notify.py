"""Tells the service manager how the daemon is: readiness, a line of status, and the watchdog.

The protocol is sd_notify(3)'s: `KEY=value` lines in one datagram to the socket that NOTIFY_SOCKET
names. Without a service manager nothing here does anything.

Invariants

1. Nothing here stops the daemon: what cannot be sent is logged and forgotten.
2. The watchdog is fed by a thread that feeds only after it has seen the pool alive: the count of
   the pool's own timer moved since the last time, and the pool answered what state it is in, for
   which it takes the lock that all else takes. A pool that is read-only or failed is alive: it says
   so, and starting it again would not mend it.
3. The variables are taken out of the environment, so no child speaks for the daemon.

Thread-safety: `Notifier` may be used from any thread. `Heart` is started and stopped by one; what
`beat` remembers is its own thread's.
"""

import faulthandler
import logging
import os
import socket
import threading
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass

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


class Heart:
    """The thread of invariant 2. It also keeps the manager's line of status up to date.

    `beats` returns a count that goes up while the pool's timer comes round; `status` returns the
    line. What `status` raises becomes the line.
    """

    def __init__(
        self, notifier: Notifier, beats: Callable[[], int], status: Callable[[], str]
    ) -> None:
        self._notifier = notifier
        self._beats = beats
        self._status = status
        self._last_beats = -1
        self._last_status = ""
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heart", daemon=True)

    def start(self) -> None:
        """Say that the pool is served, and begin; when there is anyone to tell."""
        if not self._notifier.address:
            return
        if self._notifier.watchdog is not None:
            # The manager ends a daemon that hangs with SIGABRT: leave a trace of where it hung.
            faulthandler.enable(_STDERR)
        self._last_status = self._ask()
        self._notifier.send(READY="1", STATUS=self._last_status)
        self._thread.start()

    def stop(self) -> None:
        """Feed no more, and leave the pool alone. One that hangs is not waited for."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(_SEND_SECONDS)

    def beat(self) -> bool:
        """Look at the pool once, tell the manager, and return whether the watchdog was fed."""
        status = self._ask()
        fields: dict[str, str] = {}
        if status != self._last_status:
            fields["STATUS"] = self._last_status = status
        beats = self._beats()
        alive = beats != self._last_beats
        self._last_beats = beats
        if alive and self._notifier.watchdog is not None:
            fields["WATCHDOG"] = "1"
        if fields and not self._ending.is_set():
            self._notifier.send(**fields)
        return "WATCHDOG" in fields

    def _ask(self) -> str:
        try:
            return self._status()
        except Exception as error:
            return f"cannot say how the pool is: {error}"

    def _run(self) -> None:
        watchdog = self._notifier.watchdog
        interval = STATUS_SECONDS
        if watchdog is not None:
            interval = min(interval, watchdog / FEEDINGS)
        hungry = 0
        while not self._ending.wait(interval):
            hungry = 0 if self.beat() else hungry + 1
            # Once is chance: a timer of a second against a watchdog of few.
            if watchdog is not None and hungry > 1:
                log.error("the commit timer has not come round for %.0f s", hungry * interval)


def _one_line(text: str) -> str:
    """Return what fits into a field: a line feed would begin another."""
    return " ".join(text.split())[:_MAX_STATUS]
