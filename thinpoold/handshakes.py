"""Ends connections over a network that do not come to open a volume.

nbdkit waits for ever for a client in its handshake, with TLS or without, and each costs it a thread
and up to three descriptors. At a UNIX socket only who may use the pool can do that; at a port,
anybody.

Invariants

1. A connection that has a volume open is never touched.
2. One that has none is hung up on when it has been there for so many seconds, a round more or less.
3. Each is kept alive, so that one whose machine died ends, whether it has a volume open or not.

Thread-safety: `start` and `stop` are one thread's; `look` is the thread's own.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection

from thinpoold import clients
from thinpoold.clients import Addresses, Place

log = logging.getLogger(__name__)

SECONDS = 60.0
_ROUND_SECONDS = 10.0


class Handshakes:
    """The watch over one server's ports. `opened` tells where clients with an open volume are."""

    def __init__(
        self,
        addresses: Addresses,
        opened: Callable[[], Collection[Place]],
        *,
        seconds: float = SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._addresses = addresses
        self._opened = opened
        self._seconds = seconds
        self._clock = clock
        self._since: dict[Place, float] = {}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="handshakes", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Touch no connection any more."""
        self._ending.set()
        self._thread.join()

    def look(self) -> int:
        """Hang up on who has taken too long; return on how many."""
        now = self._clock()
        # For who was waiting to be accepted when the port got it.
        clients.keep_alive(self._addresses)
        self._since = {
            place: self._since.get(place, now) for place in clients.places(self._addresses)
        }
        late = {place for place, since in self._since.items() if now - since >= self._seconds}
        late.difference_update(self._opened())
        return clients.hang_up_at(self._addresses, late) if late else 0

    def _run(self) -> None:
        while not self._ending.wait(min(_ROUND_SECONDS, self._seconds)):
            try:
                ended = self.look()
            except OSError as error:
                # It is what keeps the port open to others: it goes on.
                log.warning("cannot look for clients that open no volume: %s", error)
                continue
            if ended:
                log.info("hung up on %d clients that did not open a volume", ended)
