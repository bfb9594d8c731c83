"""The command line's side of the control socket.

Invariants

1. Whoever answers is trusted with what is asked, and believed: so the socket's directory, and the
   process that listens, must be those of a user who may serve the pool (`PoolPaths.trusted`).

One connection, one request at a time. Not thread-safe; make one a thread.
"""

import os
import socket
import stat
import struct
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Self

from thinpoold.control import jsonrpc
from thinpoold.control.codes import from_rpc
from thinpoold.control.jsonrpc import METHOD_NOT_FOUND, Json, RpcError
from thinpoold.errors import ControlError, PoolNotRunning
from thinpoold.paths import shared_parents
from thinpoold.waiting import Waiting

# An answer lists every volume at most; this is far beyond, and guards against nonsense.
MAX_ANSWER = 256 << 20
_RECEIVE = 64 << 10


class OtherVersion(ControlError):  # noqa: N818 - what happened, not that it is an error
    """The daemon does not say what this version of the program wants to know."""

    @classmethod
    def lacks(cls, what: str) -> Self:
        return cls(
            f"the pool's daemon {what}: it is of another version than this program; "
            "'thinpool stop' and 'thinpool start' bring it to this one"
        )


class Answer(dict[str, Json]):
    """An object in an answer. Asked for what the daemon did not say, it tells why that may be."""

    def __missing__(self, key: str) -> Json:
        raise OtherVersion.lacks(f"does not say {key!r}")


class ControlClient:
    """A connection to the daemon of a running pool."""

    def __init__(self, peer: socket.socket, timeout: float | None = None) -> None:
        self._peer = peer
        self._peer.settimeout(timeout)
        self._next_id = 1
        self._received = bytearray()

    @classmethod
    def connect(
        cls,
        path: Path,
        trusted: Collection[int] | None = None,
        *,
        timeout: float | None = None,
    ) -> Self:
        """Connect to the socket at `path`, of a daemon of one of these users: root's, or ours.

        With `timeout`, in seconds, a call that takes longer has failed (ControlError).

        Raises PoolNotRunning when nobody listens there, ControlError when connecting fails, or it
        is somebody else who listens, or could.
        """
        users = trusted if trusted is not None else {0, os.geteuid()}
        for directory in (*shared_parents(path.parent), path.parent):
            _check_directory(directory, users)
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
        pid, uid = _listener(peer)
        if uid not in users:
            peer.close()
            raise ControlError(
                f"will not speak to control socket {path}: process {pid} of user {uid} listens, "
                "and the pool is not that user's; have it ended, and the socket removed"
            )
        return cls(peer, timeout)

    @property
    def server_pid(self) -> int:
        """The process that listens, as the kernel knows it; 0 in a namespace that is not ours."""
        return _listener(self._peer)[0]

    def call(self, method: str, params: dict[str, Json] | None = None) -> Json:
        """Call a method and return its result.

        Raises RemoteError when the daemon refuses or fails, ControlError when it goes away or
        answers nonsense.
        """
        what = f"the pool's daemon, process {self.server_pid}, to answer {method!r}"
        seconds = self._peer.gettimeout()
        with Waiting(what, f"for at most {seconds:.0f} s" if seconds else "until it does"):
            return self._call(method, params or {})

    def _call(self, method: str, params: dict[str, Json]) -> Json:
        request_id = self._next_id
        self._next_id += 1
        try:
            self._peer.sendall(jsonrpc.encode_request(method, params, request_id))
            line = self._receive_line()
        except TimeoutError:
            raise ControlError(
                f"the daemon, process {self.server_pid}, does not answer; see its log"
            ) from None
        except OSError as error:
            raise ControlError(f"the daemon went away: {error.strerror}; see its log") from None
        try:
            return jsonrpc.parse_response(line, request_id, Answer)
        except RpcError as error:
            if error.code == METHOD_NOT_FOUND:
                raise OtherVersion.lacks(f"has no method {method!r}") from None
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


def _listener(peer: socket.socket) -> tuple[int, int]:
    """The process and the user that listen at the other end, as the kernel knows them."""
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("iIi", credentials)
    return pid, uid


def _check_directory(directory: Path, users: Collection[int]) -> None:
    """Raise ControlError if somebody else than these users could have put a socket there."""
    try:
        found = directory.lstat()
    except OSError:
        # Connecting tells.
        return
    why = ""
    if found.st_uid not in users:
        why = f"belongs to user {found.st_uid}, and the pool does not"
    elif not stat.S_ISDIR(found.st_mode):
        why = "is no directory"
    elif found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        why = "can be written by others"
    if why:
        raise ControlError(
            f"will not use the control socket in {directory}, which {why}: have it removed"
        )
