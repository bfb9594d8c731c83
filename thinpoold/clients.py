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
4. It works without a free descriptor: that is when those who have taken them must be found.

Thread-safety: any thread. `_looking` guards the descriptor that duplicates are made at.
"""

import errno
import functools
import ipaddress
import os
import resource
import select
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any, TypeAlias, TypeVar

from thinpoold.paths import CONTROL_SOCKET

Addresses: TypeAlias = frozenset[Any]
# Where a client over a network is: its address, as text, and its port.
Place: TypeAlias = tuple[str, int]

T = TypeVar("T")

# A machine that died is known to be gone after two minutes.
KEEP_IDLE_SECONDS = 60
KEEP_INTERVAL_SECONDS = 10
KEEP_PROBES = 6

_LOOK_AGAIN = 0.01
_looking = threading.Lock()


def listening() -> Addresses:
    """The addresses at which this process waits for NBD clients."""
    found = _each(lambda one: _address(one) if _listens(one) else None)
    return frozenset(name for name in found if not str(name).endswith(CONTROL_SOCKET))


def keep_alive(
    addresses: Addresses,
    *,
    idle: int = KEEP_IDLE_SECONDS,
    interval: int = KEEP_INTERVAL_SECONDS,
    probes: int = KEEP_PROBES,
) -> None:
    """Have connections to these ports end when nothing answers at the other side any more.

    A machine that died says nothing. After `idle` seconds without a word from it the kernel asks,
    `probes` times, every `interval` seconds. The connections that there are get that, and those to
    come, from the socket that listens. While answers are on their way, which nobody confirms, the
    kernel gives up by a clock of its own, after a quarter of an hour (net.ipv4.tcp_retries2): to
    cut that short would also cut off a client that was only paused.
    """

    def see(one: socket.socket) -> None:
        if _address(one) in addresses:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, probes)

    _each(see)


def hang_up(addresses: Addresses) -> bool:
    """Shut the connections of all clients of these addresses; return whether there were any.

    Both ways: requests under way are carried out, and their answers go nowhere.
    """
    return bool(_clients(addresses, lambda one: _shut(one, socket.SHUT_RDWR)))


def ports(addresses: Addresses) -> Addresses:
    """Those of the addresses that are reached over a network."""
    return frozenset(one for one in addresses if isinstance(one, int))


def places(addresses: Addresses) -> set[Place]:
    """Where the clients over a network are that have connected to these addresses."""
    return set(_clients(addresses, _place))


def sockets_of(addresses: Addresses, pid: int | None) -> set[int]:
    """The sockets of this process's at UNIX sockets whose client that process is; their inodes."""
    found = _clients(
        addresses,
        lambda one: (
            os.fstat(one.fileno()).st_ino
            if one.family == socket.AF_UNIX and _process(one) == (pid or 0)
            else None
        ),
    )
    return set(found)


def hang_up_on(addresses: Addresses, sockets: Collection[int]) -> int:
    """Shut these sockets, both ways; return how many there were."""
    return len(
        _clients(
            addresses,
            lambda one: (
                _shut(one, socket.SHUT_RDWR) if os.fstat(one.fileno()).st_ino in sockets else None
            ),
        )
    )


def hang_up_at(addresses: Addresses, chosen: Collection[Place]) -> int:
    """Shut the connections from these places, both ways; return how many there were."""
    return len(
        _clients(
            addresses, lambda one: _shut(one, socket.SHUT_RDWR) if _place(one) in chosen else None
        )
    )


def finish_all(addresses: Addresses, seconds: float) -> None:
    """Take no more requests from any client, and wait until all have had their answers.

    After so many seconds those that have not are left as they are. For connections of one thread.
    """
    deadline = time.monotonic() + seconds
    while True:
        # Again and again: there may be one more that nbdkit has just accepted.
        left = _clients(addresses, lambda one: _shut(one, socket.SHUT_RD))
        if not left or time.monotonic() >= deadline:
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
    if shut is not None:
        how = shut
        _clients(addresses, lambda one: _shut(one, how) if _process(one) in pids else None)
    while True:
        left = sum(
            _clients(addresses, lambda one: _ended(one) if _process(one) in (0, *pids) else None)
        )
        if not left or time.monotonic() >= deadline:
            return left
        time.sleep(_LOOK_AGAIN)


def _clients(addresses: Addresses, see: Callable[[socket.socket], T | None]) -> list[T]:
    """What `see` makes of each client of these addresses, where that is something."""
    return _each(lambda one: see(one) if not _listens(one) and _address(one) in addresses else None)


def _each(see: Callable[[socket.socket], T | None]) -> list[T]:
    """What `see` makes of each stream socket of this process, where that is something.

    It is shown duplicates, one after the other: each is gone when it returns.
    """
    made = []
    with _looking:
        nothing, own = _spare()
        for fd in _numbers():
            if fd == own or not _is_socket(fd):
                continue
            try:
                os.dup2(fd, own, inheritable=False)
            except OSError as error:
                if error.errno == errno.EBADF:  # It has just been closed.
                    continue
                raise
            try:
                found = _seen(own, see)
            finally:
                # At once: until then what nbdkit closes stays open.
                os.dup2(nothing, own, inheritable=False)
            if found is not None:
                made.append(found)
    return made


@functools.cache
def _spare() -> tuple[int, int]:
    """Two descriptors of nothing: one to look at others by, and what to put there afterwards.

    Opened at the first look and kept: when somebody has used up all there are is when it matters.
    One that was let go for the moment would be nbdkit's next connection.
    """
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    return nothing, os.dup(nothing)


def _numbers() -> Iterable[int]:
    """The descriptors that there are, and maybe some that are not."""
    try:
        return map(int, os.listdir("/proc/self/fd"))
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    # None is left to list them with: all that this process may have, it has.
    return range(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _is_socket(fd: int) -> bool:
    try:
        # Asked before it is duplicated: who closes any descriptor of a file loses all POSIX locks
        # on it, and LMDB's tell other processes that this one's readers are alive.
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False


def _seen(own: int, see: Callable[[socket.socket], T | None]) -> T | None:
    if not _is_socket(own):
        return None
    one = socket.socket(fileno=own)
    try:
        return see(one) if one.type == socket.SOCK_STREAM and one.getsockname() else None
    finally:
        one.detach()


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


def _shut(one: socket.socket, how: int) -> bool:
    """Shut it, if it is not yet; return that it was there."""
    try:
        one.shutdown(how)
    except OSError:
        pass
    return True
