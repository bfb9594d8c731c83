"""The connections of this process's NBD clients.

They are nbdkit's, and it tells nobody, but they are sockets of this process, and they share their
local address with the one that nbdkit listens on.

Invariants

1. A connection is only ever shut, never closed: its descriptor stays nbdkit's.
2. What is looked at is what is shut: a duplicate is made first, so that a number that nbdkit closes
   and opens anew meanwhile is never taken for what it was.
3. A client whose connection takes no more requests gets the answers to those that nbdkit has, and
   then its end of file. That goes for connections served by one thread alone: of several, the one
   that sees the end has nbdkit answer what the others have in hand with an error.

Thread-safety: any thread.
"""

import ipaddress
import os
import select
import socket
import stat
import struct
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from thinpoold.paths import CONTROL_SOCKET

Addresses: TypeAlias = frozenset[Any]
# Where a client over a network is: its address, as text, and its port.
Place: TypeAlias = tuple[str, int]

_LOOK_AGAIN = 0.01


def listening() -> Addresses:
    """The addresses at which this process waits for NBD clients."""
    with _sockets() as sockets:
        found = {_address(one) for one in sockets if _listens(one)}
    return frozenset(name for name in found if not str(name).endswith(CONTROL_SOCKET))


def hang_up(addresses: Addresses) -> bool:
    """Shut the connections of all clients of these addresses; return whether there were any.

    Both ways: requests under way are carried out, and their answers go nowhere.
    """
    with _clients(addresses) as clients:
        for client in clients:
            _shut(client, socket.SHUT_RDWR)
        return bool(clients)


def ports(addresses: Addresses) -> Addresses:
    """Those of the addresses that are reached over a network."""
    return frozenset(one for one in addresses if isinstance(one, int))


def places(addresses: Addresses) -> set[Place]:
    """Where the clients over a network are that have connected to these addresses."""
    with _clients(addresses) as clients:
        return {place for one in clients if (place := _place(one)) is not None}


def hang_up_at(addresses: Addresses, chosen: Collection[Place]) -> int:
    """Shut the connections from these places, both ways; return how many there were."""
    with _clients(addresses) as clients:
        found = [one for one in clients if _place(one) in chosen]
        for one in found:
            _shut(one, socket.SHUT_RDWR)
        return len(found)


def finish_all(addresses: Addresses, seconds: float) -> None:
    """Take no more requests from any client, and wait until all have had their answers.

    After so many seconds those that have not are left as they are. For connections of one thread.
    """
    deadline = time.monotonic() + seconds
    while True:
        # Again and again: there may be one more that nbdkit has just accepted.
        with _clients(addresses) as clients:
            for client in clients:
                _shut(client, socket.SHUT_RD)
        if not clients or time.monotonic() >= deadline:
            return
        time.sleep(_LOOK_AGAIN)


def finish(pids: Collection[int], *, shut: int | None, seconds: float) -> int:
    """Wait until this process is through with connections of these processes that have ended.

    Over a network, where processes are not known, with all that have ended.

    They have ended when their client hung up; with `shut` (SHUT_RD, to answer what there is, or
    SHUT_RDWR), all of them are hung up on first. Returns how many are left after so many seconds:
    requests of theirs are still under way.
    """
    addresses = listening()
    deadline = time.monotonic() + seconds
    while True:
        with _clients(addresses) as clients:
            if shut is not None:
                for one in clients:
                    if _process(one) in pids:
                        _shut(one, shut)
                shut = None
            left = sum(_ended(one) for one in clients if _process(one) in (0, *pids))
        if not left or time.monotonic() >= deadline:
            return left
        time.sleep(_LOOK_AGAIN)


@contextmanager
def _clients(addresses: Addresses) -> Iterator[list[socket.socket]]:
    with _sockets() as sockets:
        yield [one for one in sockets if not _listens(one) and _address(one) in addresses]


@contextmanager
def _sockets() -> Iterator[list[socket.socket]]:
    """Duplicates of all stream sockets of this process."""
    copies = []
    try:
        for fd in map(int, os.listdir("/proc/self/fd")):
            copy = _copy(fd)
            if copy is not None:
                copies.append(copy)
        yield copies
    finally:
        for copy in copies:
            copy.close()


def _copy(fd: int) -> socket.socket | None:
    try:
        # Asked before it is duplicated: who closes any descriptor of a file loses all POSIX locks
        # on it, and LMDB's tell other processes that this one's readers are alive.
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            return None
        own = os.dup(fd)
    except OSError:
        return None
    try:
        if stat.S_ISSOCK(os.fstat(own).st_mode):
            copy = socket.socket(fileno=own)
            if copy.type == socket.SOCK_STREAM and copy.getsockname():
                return copy
            own = copy.detach()
    except OSError:
        pass
    os.close(own)
    return None


def _listens(one: socket.socket) -> bool:
    return bool(one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _address(one: socket.socket) -> Any:
    """Its local address. Of an internet address the port alone: who listens on all addresses is
    connected to at one."""
    name = one.getsockname()
    return name[1] if isinstance(name, tuple) else name


def _place(one: socket.socket) -> Place | None:
    """Where its client is, None for a UNIX socket or one that has just been closed."""
    try:
        name = one.getpeername()
    except OSError:
        return None
    if not isinstance(name, tuple):
        return None
    address = ipaddress.ip_address(name[0].partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address), int(name[1])


def _process(one: socket.socket) -> int:
    """Who connected, 0 when that is not known."""
    if one.family != socket.AF_UNIX:
        return 0
    size = struct.calcsize("3i")
    pid, _, _ = struct.unpack("3i", one.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(pid)


def _ended(one: socket.socket) -> bool:
    """Whether the other side, or this one, has hung up."""
    poll = select.poll()
    poll.register(one, select.POLLRDHUP)
    return bool(poll.poll(0))


def _shut(one: socket.socket, how: int) -> None:
    try:
        one.shutdown(how)
    except OSError:
        pass
