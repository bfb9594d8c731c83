"""A bare client of the control socket: one JSON-RPC 2.0 message a line, both ways.

Written from the protocol alone, so that it does not share the product's mistakes. It is also what
makes long runs possible: a CLI command costs a Python start, a call here a millisecond.

Thread-safety: one thread at a time per connection.
"""

# An outcome, not always an error.
# ruff: noqa: N818

import json
import socket
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.tools import PATIENCE


class RpcError(Exception):
    """The daemon answered with an error."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(f"{message} ({code})")
        self.code = code
        self.message = message
        self.data = data


class RpcGone(Exception):
    """The daemon closed the connection, or was not there to take it."""


class Rpc:
    """One connection to a control socket."""

    def __init__(self, path: Path | str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(PATIENCE)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise RpcGone(str(error)) from None
        self._lines = self._socket.makefile("rb")
        self._serial = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._lines.close()
        self._socket.close()

    def fileno(self) -> int:
        """To wait for an answer with others."""
        return self._socket.fileno()

    def send_raw(self, line: bytes) -> None:
        """Sends bytes as they are: for messages that no proper client sends."""
        try:
            self._socket.sendall(line)
        except OSError as error:
            raise RpcGone(str(error)) from None

    def receive(self) -> Any:
        """The next message from the daemon."""
        try:
            line = self._lines.readline()
        except OSError as error:
            raise RpcGone(str(error)) from None
        if not line.endswith(b"\n"):
            raise RpcGone("the daemon closed the connection")
        return json.loads(line)

    def send(self, method: str, **params: Any) -> int:
        """Sends a request and does not wait; returns its id."""
        self._serial += 1
        message = {"jsonrpc": "2.0", "id": self._serial, "method": method, "params": params}
        self.send_raw(json.dumps(message).encode() + b"\n")
        return self._serial

    def finish(self, serial: int) -> Any:
        """Waits for the answer to request `serial`. Raises RpcError or RpcGone."""
        answer = self.receive()
        if answer.get("id") != serial:
            raise AssertionError(f"answer to {answer.get('id')} where {serial} was asked")
        if "error" in answer:
            error = answer["error"]
            raise RpcError(error["code"], error["message"], error.get("data"))
        return answer["result"]

    def call(self, method: str, **params: Any) -> Any:
        """One request and its result."""
        return self.finish(self.send(method, **params))
