"""Many NBD requests in flight over many connections, from one thread.

Invariants:
1. Every request submitted is answered exactly once: with 0, with the server's errno, or, when the
   connection dies, with ENOTCONN or whatever libnbd calls it.
2. `Pump.turn` never sleeps while something can be done.
3. What a callback raises is kept and raised again from `Pump.turn`: libnbd, whose C code is between
   the two, would abort the process.

Thread-safety: none; one thread drives a pump and all that belongs to it.
"""

import errno
import select
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.client import NbdError, translated
from tests.support.libnbd import nbd
from tests.support.tools import PATIENCE

Done = Callable[[int], None]


class InflightClient:
    """One connection whose requests are answered through callbacks."""

    def __init__(self, socket: Path | str, export: str) -> None:
        self.export = export
        self.waiting = 0
        self.troubles: list[Exception] = []
        self.raw: Any = nbd.NBD()
        with translated():
            self.raw.set_export_name(export)
            self.raw.connect_unix(str(socket))
            self.size: int = self.raw.get_size()

    @property
    def dead(self) -> bool:
        return bool(self.raw.aio_is_dead() or self.raw.aio_is_closed())

    def _submit(self, call: Callable[[Callable[[Any], int]], Any], done: Done) -> None:
        def completed(error: Any) -> int:
            self.waiting -= 1
            try:
                done(error.value)
            except Exception as trouble:
                self.troubles.append(trouble)
            return 1  # Retires the command.

        self.waiting += 1
        try:
            call(completed)
        except nbd.Error as error:
            # Refused before it was sent: libnbd may or may not have dropped the callback.
            self.waiting -= 1
            done(error.errnum or errno.ENOTCONN)

    def write(self, offset: int, data: bytes, flags: int, done: Done) -> None:
        self._submit(lambda c: self.raw.aio_pwrite(data, offset, c, flags), done)

    def read(self, offset: int, count: int, done: Callable[[int, bytes], None]) -> None:
        # Not libnbd's own Buffer, whose memory Debian 12's never gives back.
        buffer = bytearray(count)
        self._submit(
            lambda c: self.raw.aio_pread(buffer, offset, c),
            lambda error: done(error, b"" if error else bytes(buffer)),
        )

    def zero(self, offset: int, count: int, flags: int, done: Done) -> None:
        self._submit(lambda c: self.raw.aio_zero(count, offset, c, flags), done)

    def trim(self, offset: int, count: int, flags: int, done: Done) -> None:
        self._submit(lambda c: self.raw.aio_trim(count, offset, c, flags), done)

    def flush(self, done: Done) -> None:
        self._submit(self.raw.aio_flush, done)

    def notify(self, events: int) -> None:
        """Lets libnbd do what the socket is ready for; a dead peer answers all that waits."""
        try:
            if events & (select.POLLIN | select.POLLHUP | select.POLLERR):
                self.raw.aio_notify_read()
            elif events & select.POLLOUT:
                self.raw.aio_notify_write()
        except nbd.Error:
            if not self.dead:
                raise
        if self.troubles:
            raise self.troubles.pop()

    def close(self) -> None:
        """Ends the connection; nothing may be in flight unless it is dead."""
        if not self.dead:
            try:
                self.raw.shutdown()
            except nbd.Error as error:
                raise NbdError(error.string, error.errnum) from None
        self.raw = None


class Pump:
    """Drives connections, and wakes for other file descriptors too."""

    def __init__(self) -> None:
        self.clients: list[InflightClient] = []

    @property
    def waiting(self) -> int:
        return sum(client.waiting for client in self.clients)

    def turn(self, *others: int, wait: bool = True) -> set[int]:
        """Handles what is ready, waiting for something; returns those of `others` to read."""
        poll = select.poll()
        by_fd: dict[int, InflightClient] = {}
        for client in self.clients:
            if client.dead:
                continue
            fd = client.raw.aio_get_fd()
            direction = client.raw.aio_get_direction()
            events = select.POLLIN if direction & nbd.AIO_DIRECTION_READ else 0
            events |= select.POLLOUT if direction & nbd.AIO_DIRECTION_WRITE else 0
            by_fd[fd] = client
            poll.register(fd, events)
        for other in others:
            poll.register(other, select.POLLIN)
        if not by_fd and not others:
            return set()
        ready = poll.poll(PATIENCE * 1000 if wait else 0)
        if wait and not ready:
            raise AssertionError(f"nothing was answered, {self.waiting} requests wait")
        for fd, events in ready:
            if fd in by_fd:
                by_fd[fd].notify(events)
        return {fd for fd, _ in ready if fd in others}

    def drain(self) -> None:
        """Until every request is answered."""
        while any(client.waiting and not client.dead for client in self.clients):
            self.turn()
        left = self.waiting
        if left:
            raise AssertionError(f"{left} requests of dead connections were never answered")
