"""What the kernel's nbd module is asked over generic netlink, and what it tells.

The numbers are those of linux/nbd-netlink.h (Linux 4.12 and later).

    reconfigure   gives a device a new size, patience with a lost server, or sockets in the place
                  of dead ones
    disconnect    takes the server away from a device
    LinkEvents    one message for each connection that has died

All but listening needs CAP_SYS_ADMIN.

Thread-safety: the functions open a socket of their own; a LinkEvents belongs to one thread.
"""

import errno
import socket
import struct
from collections.abc import Sequence
from typing import Self

from thinpoold.attach.genl import GenericSocket, nested, u32, u64

FAMILY = "nbd"
GROUP = "nbd_mc_group"

CMD_DISCONNECT = 2
CMD_RECONFIGURE = 3
CMD_LINK_DEAD = 4

ATTR_INDEX = 1
ATTR_SIZE_BYTES = 2
ATTR_SOCKETS = 7
ATTR_DEAD_CONN_TIMEOUT = 8
SOCK_ITEM = 1
SOCK_FD = 1


def available() -> bool:
    """Whether the nbd module is there, with netlink."""
    try:
        GenericSocket(FAMILY).close()
    except OSError:
        return False
    return True


def reconfigure(
    index: int,
    *,
    size: int | None = None,
    patience: int | None = None,
    sockets: Sequence[socket.socket] = (),
) -> None:
    """Change the device /dev/nbd`index`.

    `size` is in bytes. `patience` is for how many seconds I/O waits while all connections are dead,
    instead of failing. `sockets` are negotiated connections: each takes the place of a dead one,
    and those that are too many are dropped. Raises OSError.
    """
    attributes = [u32(ATTR_INDEX, index)]
    if size is not None:
        attributes.append(u64(ATTR_SIZE_BYTES, size))
    if patience is not None:
        attributes.append(u64(ATTR_DEAD_CONN_TIMEOUT, patience))
    if sockets:
        items = [nested(SOCK_ITEM, u32(SOCK_FD, one.fileno())) for one in sockets]
        attributes.append(nested(ATTR_SOCKETS, *items))
    with GenericSocket(FAMILY) as kernel:
        kernel.call(CMD_RECONFIGURE, *attributes)


def disconnect(index: int) -> None:
    """Take the server away from /dev/nbd`index`; requests that wait for it fail. Raises OSError."""
    with GenericSocket(FAMILY) as kernel:
        kernel.call(CMD_DISCONNECT, u32(ATTR_INDEX, index))


class LinkEvents:
    """Tells of connections that die. Subscribed from when it is made."""

    def __init__(self) -> None:
        self._kernel = GenericSocket(FAMILY)
        self._kernel.subscribe(GROUP)
        self._kernel.set_blocking(False)

    def fileno(self) -> int:
        return self._kernel.fileno()

    def any_of(self, index: int) -> bool:
        """Take in what has come, and tell whether a connection of /dev/nbd`index` has died.

        When messages were lost, it may have.
        """
        found = False
        while True:
            try:
                messages = self._kernel.receive()
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                found = True
                continue
            for message in messages:
                number = message.attributes.get(ATTR_INDEX)
                if message.command == CMD_LINK_DEAD and number is not None:
                    found = found or struct.unpack("=I", number)[0] == index

    def close(self) -> None:
        self._kernel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
