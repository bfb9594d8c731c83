"""The daemon's side of the control socket: accepts connections and answers line by line.

A thread accepts, and each connection has a thread of its own, so a slow request or a client that
says nothing holds up nobody else.

Invariants

1. Nothing a client sends ends its connection: a line that is too long or makes no sense gets an
   error, and what follows the next line feed is read as usual.
2. At most `max_connections` are open. When one more comes, the idle one that asked for nothing for
   the longest time is closed for it; when all are busy, the newcomer is told so.
3. A client that does not read its answers is dropped after `send_timeout`.
4. `close` lets requests under way finish and their answers out, and leaves no thread behind.

Thread-safety: `start` and `close` are called by one thread. `_lock` guards `_connections`.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from thinpoold import poolfiles
from thinpoold.control import jsonrpc
from thinpoold.control.jsonrpc import INVALID_REQUEST, MAX_LINE, RpcError

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 32
SEND_TIMEOUT = 30.0
_BACKLOG = 64
_RECEIVE = 64 << 10
_JOIN_TIMEOUT = 60.0


class ControlServer:
    """Serves `answer` at `path`: from a line without its line feed to the answering line or b""."""

    def __init__(
        self,
        path: Path,
        answer: Callable[[bytes], bytes],
        *,
        max_connections: int = MAX_CONNECTIONS,
        send_timeout: float = SEND_TIMEOUT,
    ) -> None:
        self._path = path
        self._answer = answer
        self._max_connections = max_connections
        self._send_timeout = send_timeout
        self._lock = threading.Lock()
        self._connections: set[_Connection] = set()
        self._closing = threading.Event()
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen. The caller holds the pool's lock, so a socket already there is stale.

        Raises OSError when the socket cannot be made.
        """
        poolfiles.remove(self._path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Before bind, so that there is no moment when others could connect.
            os.fchmod(listener.fileno(), 0o600)
            # A daemon of root's is for the pool's owner too.
            with poolfiles.acting_as_owner(self._path.parent) as reached:
                listener.bind(os.fspath(reached / self._path.name))
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
        self._listener = listener
        self._thread = threading.Thread(
            target=self._accept, args=(listener,), name="control", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening, wait for requests under way, remove the socket."""
        listener, thread = self._listener, self._thread
        if listener is None or thread is None:
            return
        self._listener = None
        self._closing.set()
        poolfiles.remove(self._path)
        # Wakes accept; closing the descriptor alone would not.
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.finish()
        for connection in connections:
            connection.thread.join(_JOIN_TIMEOUT)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError as error:
                # When it is not the end: out of descriptors, most likely. Others may free some.
                if self._closing.wait(0.1):
                    return
                log.warning("control socket: accept: %s", error)
                continue
            self._admit(peer)

    def _admit(self, peer: socket.socket) -> None:
        peer.settimeout(None)
        connection = _Connection(peer, self._answer, self._send_timeout, self._forget)
        with self._lock:
            victim = self._make_room()
            admitted = victim is not None or len(self._connections) < self._max_connections
            if victim is not None:
                self._connections.discard(victim)
            if admitted:
                self._connections.add(connection)
        if victim is not None:
            victim.drop()
        if not admitted:
            connection.refuse(f"{self._max_connections} connections are busy; try again")
            return
        try:
            connection.thread.start()
        except RuntimeError as error:
            # Out of threads. Others may end some, and those to come are not to find nobody.
            log.warning("control socket: %s", error)
            self._forget(connection)
            connection.refuse("no thread for one more connection; try again")

    def _make_room(self) -> "_Connection | None":
        if len(self._connections) < self._max_connections:
            return None
        idle = [connection for connection in self._connections if not connection.busy]
        return min(idle, key=lambda connection: connection.last_request, default=None)

    def _forget(self, connection: "_Connection") -> None:
        with self._lock:
            self._connections.discard(connection)


class _Connection:
    """One client. Its thread reads, answers and closes; the others only look and shut down.

    `busy` and `last_request` are the connection's thread's; others read them for a hint.
    """

    def __init__(
        self,
        peer: socket.socket,
        answer: Callable[[bytes], bytes],
        send_timeout: float,
        forget: Callable[["_Connection"], None],
    ) -> None:
        self._peer = peer
        self._answer = answer
        self._send_timeout = send_timeout
        self._forget = forget
        self.busy = False
        self.last_request = time.monotonic()
        self.thread = threading.Thread(target=self._run, name="control client", daemon=True)

    def finish(self) -> None:
        """Let no more requests in; the one under way is still answered."""
        self._shutdown(socket.SHUT_RD)

    def drop(self) -> None:
        """End the connection from outside."""
        self._shutdown(socket.SHUT_RDWR)

    def refuse(self, message: str) -> None:
        """Say why this connection is not served, and close it. For one that was never started."""
        error = jsonrpc.encode_error(RpcError(INVALID_REQUEST, message))
        try:
            self._peer.settimeout(0)
            self._peer.sendall(jsonrpc.join([error], batch=False))
        except OSError:
            pass
        self._peer.close()

    def _shutdown(self, how: int) -> None:
        try:
            self._peer.shutdown(how)
        except OSError:
            pass

    def _run(self) -> None:
        try:
            self._serve()
        except OSError as error:
            log.info("control socket: a client went away: %s", error)
        except Exception:
            log.exception("control socket: a connection failed")
        finally:
            self._forget(self)
            self._peer.close()

    def _serve(self) -> None:
        buffer = bytearray()
        skipping = False
        while True:
            piece = self._peer.recv(_RECEIVE)
            if not piece:
                break
            buffer += piece
            *lines, rest = buffer.split(b"\n") if b"\n" in piece else [buffer]
            buffer = rest
            for line in lines:
                if skipping:
                    skipping = False
                elif len(line) >= MAX_LINE:
                    self._too_long()
                else:
                    self._handle(bytes(line))
            if len(buffer) >= MAX_LINE:
                if not skipping:
                    self._too_long()
                skipping = True
                buffer.clear()
        # The last line of a client that shut down its side need not end in a line feed.
        if buffer and not skipping:
            self._handle(bytes(buffer))

    def _handle(self, line: bytes) -> None:
        self.busy = True
        self.last_request = time.monotonic()
        try:
            self._send(self._answer(line))
        finally:
            self.busy = False

    def _too_long(self) -> None:
        error = RpcError(INVALID_REQUEST, f"a message has at most {MAX_LINE} bytes")
        self._send(jsonrpc.join([jsonrpc.encode_error(error)], batch=False))

    def _send(self, answer: bytes) -> None:
        if not answer:
            return
        self._peer.settimeout(self._send_timeout)
        self._peer.sendall(answer)
        self._peer.settimeout(None)
