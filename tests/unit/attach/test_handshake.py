"""The handshake with servers that keep the protocol, and with some that do not."""

import socket
import struct
import threading
from collections.abc import Callable

import pytest

from thinpoold.attach.handshake import Export, negotiate
from thinpoold.errors import ControlError

GREETING = struct.pack(">QQH", 0x4E42444D41474943, 0x49484156454F5054, 3)


def reply(kind: int, body: bytes = b"", option: int = 7) -> bytes:
    return struct.pack(">QIII", 0x3E889045565A9, option, kind, len(body)) + body


INFO = reply(3, struct.pack(">HQH", 0, 1 << 30, 0b11))
NAME = reply(3, struct.pack(">H", 1) + b"name")
ACK = reply(1)


def converse(*said: bytes, leaves: bool = False) -> tuple[Callable[[], Export], list[bytes]]:
    """A server that says these things and hears something after each, and what it heard.

    One that `leaves` does not wait for anything after the last.
    """
    ours, theirs = socket.socketpair()
    heard: list[bytes] = []

    def serve() -> None:
        with theirs:
            for number, piece in enumerate(said, 1):
                theirs.sendall(piece)
                if not leaves or number < len(said):
                    heard.append(theirs.recv(4096))

    thread = threading.Thread(target=serve)
    thread.start()

    def ask() -> Export:
        try:
            return negotiate(ours, "my disk")
        finally:
            ours.close()
            thread.join()

    return ask, heard


def test_an_export_is_asked_for_by_name() -> None:
    ask, heard = converse(GREETING, NAME + INFO + ACK)
    assert ask() == Export(1 << 30, 0b11)
    assert Export(1, 0b11).read_only
    data = struct.pack(">I", 7) + b"my disk" + struct.pack(">H", 0)
    assert heard[0] == struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 7, len(data)) + data


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ((b"SSH-2.0-OpenSSH_9.",), "does not speak"),
        ((GREETING[:-2] + b"\0\0",), "too old"),
        ((GREETING, reply(1 << 31 | 6, b"no such volume")), "'my disk': no such volume"),
        ((GREETING, reply(1 << 31 | 1)), "error 1"),
        ((GREETING, ACK), "how large"),
        ((GREETING, reply(1, option=6)), "nonsense"),
        ((GREETING, b"x" * 20), "nonsense"),
        ((GREETING, struct.pack(">QIII", 0x3E889045565A9, 7, 3, 1 << 30)), "nonsense"),
    ],
)
def test_refusals_and_nonsense(said: tuple[bytes, ...], word: str) -> None:
    ask, _ = converse(*said)
    with pytest.raises(ControlError, match=word):
        ask()


@pytest.mark.parametrize("said", [(GREETING[:5],), (GREETING, INFO[:7])])
def test_a_server_that_goes_away(said: tuple[bytes, ...]) -> None:
    ask, _ = converse(*said, leaves=True)
    with pytest.raises(ConnectionResetError):
        ask()
