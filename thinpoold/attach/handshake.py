"""The part of the NBD protocol before the kernel can take a connection over.

    server: NBDMAGIC IHAVEOPT flags        client: flags
    client: NBD_OPT_GO with the export     server: NBD_REP_INFO (size, flags)... NBD_REP_ACK

Nothing else is negotiated: the kernel knows simple replies alone. See the NBD project's proto.md;
integers are big-endian.

Thread-safety: functions over a socket.
"""

import os
import socket
import struct
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

from thinpoold.errors import ControlError, PoolNotRunning, UserError

READ_ONLY = 1 << 1

_PORT = 10809

_GREETING = struct.Struct(">QQH")
_NBDMAGIC = 0x4E42444D41474943
_IHAVEOPT = 0x49484156454F5054
_FIXED_NEWSTYLE = 1 << 0
_NO_ZEROES = 1 << 1

_OPTION = struct.Struct(">QII")
_OPT_GO = 7
_REPLY = struct.Struct(">QIII")
_REPLY_MAGIC = 0x3E889045565A9
_REP_ACK = 1
_REP_INFO = 3
_REP_ERROR = 1 << 31
_INFO_EXPORT = 0
_EXPORT = struct.Struct(">HQH")
_LONGEST = 1 << 16


@dataclass(frozen=True)
class Export:
    """What the server says of an export: its size in bytes, its transmission flags."""

    size: int
    flags: int

    @property
    def read_only(self) -> bool:
        return bool(self.flags & READ_ONLY)


@dataclass(frozen=True)
class Server:
    """Where a server listens: the path of a UNIX socket, or a host and a port."""

    address: str | tuple[str, int]

    def connect(self, timeout: float) -> socket.socket:
        """Connect; `timeout`, in seconds, is for each step from then on. Raises OSError."""
        if isinstance(self.address, tuple):
            peer = socket.create_connection(self.address, timeout)
            # A request is sent in two pieces, and must not wait for the answer to the first.
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return peer
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            peer.settimeout(timeout)
            peer.connect(self.address)
        except BaseException:
            peer.close()
            raise
        return peer


def parse_uri(uri: str) -> tuple[Server, str]:
    """Return where an NBD URI points, and the export it names, '' for none.

    Raises UserError for what is neither a UNIX socket nor a port without TLS.
    """
    parts = urlsplit(uri)
    export = unquote(parts.path.removeprefix("/"))
    # A path need not be UTF-8.
    path = parse_qs(parts.query, errors="surrogateescape").get("socket", [""])[0]
    if parts.scheme == "nbd+unix" and path:
        return Server(path), export
    if parts.scheme == "nbd" and parts.hostname:
        return Server((parts.hostname, parts.port or _PORT)), export
    raise UserError(
        f"cannot attach from {uri}: thinpool attach does not do TLS; start the pool with "
        "'--listen unix', or use nbd-client itself, as docs/network.md says"
    )


def wait_for_daemon(server: Server, seconds: float) -> None:
    """Connect and wait for the greeting, which starts a daemon that a service manager starts.

    Raises PoolNotRunning when nobody listens.
    """
    try:
        with server.connect(seconds) as peer:
            greet(peer)
    except (FileNotFoundError, ConnectionRefusedError):
        raise PoolNotRunning("the pool is not running: start it with 'thinpool start'") from None
    except OSError as error:
        raise ControlError(f"the pool's daemon does not come up: {error}; see its log") from None


def open_export(server: Server, export: str, timeout: float) -> tuple[socket.socket, Export]:
    """Connect to an export, up to where requests may be sent.

    `timeout`, in seconds, is for each step. Raises OSError, ControlError for a refusal or nonsense.
    """
    peer = server.connect(timeout)
    try:
        found = negotiate(peer, export)
        # No timeout of ours may be left on what the kernel gets.
        peer.settimeout(None)
    except BaseException:
        peer.close()
        raise
    return peer, found


def greet(peer: socket.socket) -> int:
    """Take the server's greeting, and return its flags. Raises OSError, ControlError."""
    magic, option, flags = _GREETING.unpack(_receive(peer, _GREETING.size))
    if magic != _NBDMAGIC or option != _IHAVEOPT:
        raise ControlError("whoever listens there does not speak NBD's newstyle protocol")
    return int(flags)


def negotiate(peer: socket.socket, export: str) -> Export:
    """Ask for an export on a fresh connection. Raises OSError, ControlError."""
    flags = greet(peer)
    if not flags & _FIXED_NEWSTYLE:
        raise ControlError("the NBD server is too old to be asked for an export")
    name = os.fsencode(export)
    data = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
    peer.sendall(
        struct.pack(">I", flags & (_FIXED_NEWSTYLE | _NO_ZEROES))
        + _OPTION.pack(_IHAVEOPT, _OPT_GO, len(data))
        + data
    )
    found = None
    while True:
        magic, option, kind, length = _REPLY.unpack(_receive(peer, _REPLY.size))
        if magic != _REPLY_MAGIC or option != _OPT_GO or length > _LONGEST:
            raise ControlError("the NBD server answers nonsense")
        body = _receive(peer, length)
        if kind & _REP_ERROR:
            said = body.decode("utf-8", "replace").strip() or f"error {kind & ~_REP_ERROR}"
            raise ControlError(f"the NBD server refuses export {export!r}: {said}")
        if kind == _REP_INFO and length == _EXPORT.size:
            what, size, transmission = _EXPORT.unpack(body)
            if what == _INFO_EXPORT:
                found = Export(size, transmission)
        elif kind == _REP_ACK:
            if found is None:
                raise ControlError("the NBD server does not say how large the export is")
            return found


def _receive(peer: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = peer.recv(count - len(data))
        if not piece:
            raise ConnectionResetError("the NBD server closed the connection")
        data += piece
    return bytes(data)
