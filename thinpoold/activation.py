"""Sockets that a service manager opened for the daemon, after sd_listen_fds(3).

They are nbdkit's: it finds them by the same variables, once `thinpoold` has become nbdkit with its
process id unchanged. Here they are only looked at: where do clients connect, and may the daemon
serve there at all.

Everything happens in one thread, before any other exists; no socket is changed.
"""

import os
import socket
from collections.abc import Mapping
from pathlib import Path

from thinpoold.errors import UserError
from thinpoold.uri import tcp_uri, unix_uri

# The first descriptor, by the protocol.
FIRST_FD = 3


def handed_over(environment: Mapping[str, str] = os.environ) -> list[int]:
    """Return the descriptors of the sockets that this process was given, most often none."""
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = environment.get("LISTEN_FDS", "")
    if not (count.isascii() and count.isdigit()):
        return []
    return list(range(FIRST_FD, FIRST_FD + int(count)))


def address_of(fd: int) -> Path | tuple[str, int]:
    """Return where a socket listens: a path, or an address and a port.

    Raises UserError for what is no socket that clients of NBD could connect to.
    """
    try:
        with socket.socket(fileno=os.dup(fd)) as copy:
            listens = copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            stream = copy.type == socket.SOCK_STREAM
            name = copy.getsockname()
            family = copy.family
    except OSError as error:
        raise UserError(f"cannot use file descriptor {fd} as a socket: {error.strerror}") from None
    if not listens or not stream:
        raise UserError(
            f"file descriptor {fd} is no listening stream socket: a socket unit needs "
            "ListenStream= and Accept=no"
        )
    if family == socket.AF_UNIX and isinstance(name, str) and name.startswith("/"):
        return Path(name)
    if family in (socket.AF_INET, socket.AF_INET6):
        return str(name[0]), int(name[1])
    raise UserError(
        f"file descriptor {fd} listens where NBD URIs cannot point: use a path or an IP address"
    )


def uri_of(address: Path | tuple[str, int]) -> str:
    """Return the URI of the server at an address of `address_of`."""
    return unix_uri(address) if isinstance(address, Path) else tcp_uri(*address)
