"""The command line's side of the control socket.

One connection, one request at a time. Not thread-safe; make one a thread.
"""

import os
import socket
import struct
from pathlib import Path
from types import TracebackType
from typing import Self

from thinpoold.control import jsonrpc
from thinpoold.control.codes import from_rpc
from thinpoold.control.jsonrpc import Json, RpcError
from thinpoold.errors import ControlError, PoolNotRunning

# An answer lists every volume at most; this is far beyond, and guards against nonsense.
MAX_ANSWER = 256 << 20
_RECEIVE = 64 << 10


class OtherVersion(ControlError):  # noqa: N818 - what happened, not that it is an error
    """The daemon does not say what this version of the program wants to know."""


class Answer(dict[str, Json]):
    """An object in an answer. Asked for what the daemon did not say, it tells why that may be."""

    def __missing__(self, key: str) -> Json:
        raise OtherVersion(
            f"the pool's daemon does not say {key!r}: it is of another version than this program; "
            "'thinpool stop' and 'thinpool start' bring it to this one"
        )


class ControlClient:
    """A connection to the daemon of a running pool."""

    def __init__(self, peer: socket.socket) -> None:
        self._peer = peer
        self._next_id = 1
        self._received = bytearray()

    @classmethod
    def connect(cls, path: Path) -> Self:
        """Connect to the socket at `path`.

        Raises PoolNotRunning when nobody listens there, ControlError when connecting fails.
        """
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            peer.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError):
            peer.close()
            raise PoolNotRunning(
                "the pool is not running: start it with 'thinpool start'"
            ) from None
        except OSError as error:
            peer.close()
            raise ControlError(f"control socket {path}: {error.strerror}") from None
        return cls(peer)

    @property
    def server_pid(self) -> int:
        """The process that listens, as the kernel knows it."""
        credentials = self._peer.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
        )
        pid, _, _ = struct.unpack("3i", credentials)
        return int(pid)

    def call(self, method: str, params: dict[str, Json] | None = None) -> Json:
        """Call a method and return its result.

        Raises RemoteError when the daemon refuses or fails, ControlError when it goes away or
        answers nonsense.
        """
        request_id = self._next_id
        self._next_id += 1
        try:
            self._peer.sendall(jsonrpc.encode_request(method, params or {}, request_id))
            line = self._receive_line()
        except OSError as error:
            raise ControlError(f"the daemon went away: {error.strerror}; see its log") from None
        try:
            return jsonrpc.parse_response(line, request_id, Answer)
        except RpcError as error:
            raise from_rpc(error) from None
        except ValueError as error:
            raise ControlError(f"the daemon answered with {error}") from None

    def _receive_line(self) -> bytes:
        start = 0
        while (end := self._received.find(b"\n", start)) < 0:
            start = len(self._received)
            if start > MAX_ANSWER:
                raise ControlError(f"the daemon's answer has over {MAX_ANSWER} bytes")
            piece = self._peer.recv(_RECEIVE)
            if not piece:
                raise ControlError("the daemon went away before it answered; see its log")
            self._received += piece
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line

    def close(self) -> None:
        self._peer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
