"""Who is at the other end of the connection that nbdkit serves on this thread.

nbdkit tells C plugins (nbdkit_peer_name(3), nbdkit_is_tls), its Python has no words for it; so its
functions are called as they are in this process.

Thread-safety: any of nbdkit's threads, each about its own connection.
"""

from __future__ import annotations

import ctypes
import functools
import ipaddress
import socket
import sys
from typing import Final

from thinpoold.access import Address, Peer

_SIZE: Final = 128  # struct sockaddr_storage


def current(is_tls: int | None = None) -> Peer:
    """Return who is connected. Only inside nbdkit's functions about a connection.

    `is_tls` is what nbdkit said of that already: while exports are listed it does not know when it
    is asked (1.32), and logs an error.
    """
    server = _server()
    name = ctypes.create_string_buffer(_SIZE)
    length = ctypes.c_uint32(_SIZE)
    if server.nbdkit_peer_name(name, ctypes.byref(length)) != 0:
        return Peer()
    tls = (server.nbdkit_is_tls() if is_tls is None else is_tls) > 0
    family = int.from_bytes(name.raw[:2], sys.byteorder)
    if family == socket.AF_UNIX:
        uid, gid = server.nbdkit_peer_uid(), server.nbdkit_peer_gid()
        pid = server.nbdkit_peer_pid()
        return Peer(
            uid if uid >= 0 else None,
            gid if gid >= 0 else None,
            tls=tls,
            # 0 is one that this process cannot see.
            pid=pid if pid > 0 else None,
        )
    # Both families have the port in the same place.
    port = int.from_bytes(name.raw[2:4], "big")
    return Peer(address=address_in(name.raw), tls=tls, port=port)


def address_in(name: bytes) -> Address | None:
    """Return the address in a struct sockaddr of the internet families, else None."""
    family = int.from_bytes(name[:2], sys.byteorder)
    if family == socket.AF_INET:
        return ipaddress.IPv4Address(name[4:8])
    if family == socket.AF_INET6:
        address = ipaddress.IPv6Address(name[8:24])
        return address.ipv4_mapped or address
    return None


def say(text: str) -> None:
    """Have nbdkit write a line to its log, with the connection's number."""
    _server().nbdkit_error(b"%s", text.encode(errors="replace"))


@functools.cache
def _server() -> ctypes.CDLL:
    server = ctypes.CDLL(None)
    for function in (server.nbdkit_peer_uid, server.nbdkit_peer_gid, server.nbdkit_peer_pid):
        function.restype = ctypes.c_int64
    return server
