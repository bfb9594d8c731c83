"""What NBD clients say over a bare socket, well-formed and not.

Thread-safety: functions over the caller's socket and dice.
"""

import random
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from tests.fuzz.mutation import mutated
from tests.support.tools import PATIENCE

TARGET = "target"
SIZE = 4 << 20

OPTION_MAGIC = b"IHAVEOPT"
REQUEST_MAGIC = 0x25609513
READ, WRITE, DISCONNECT, FLUSH, TRIM, CACHE, ZERO, STATUS = range(8)
STARTTLS = 5
GO = 7
ACK = 1
ERROR = 1 << 31


class Served(Protocol):
    """Where a daemon serves: a `PoolRig`, or whoever knows the socket."""

    @property
    def socket(self) -> str: ...


def connected(rig: Served) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Before there is a timeout: with one, connect does not wait for a place in the queue.
    peer.connect(rig.socket)
    peer.settimeout(PATIENCE)
    return peer


def receive(peer: socket.socket, count: int) -> bytes:
    """`count` bytes. Raises ConnectionError when the other side hangs up first."""
    got = bytearray()
    while len(got) < count:
        piece = peer.recv(count - len(got))
        if not piece:
            raise ConnectionError("hung up")
        got += piece
    return bytes(got)


def option(number: int, data: bytes) -> bytes:
    return OPTION_MAGIC + struct.pack(">II", number, len(data)) + data


def go(name: str = TARGET) -> bytes:
    return option(GO, struct.pack(">I", len(name)) + name.encode() + b"\0\0")


def attached(rig: Served) -> socket.socket:
    """A connection that is past its handshake."""
    peer = connected(rig)
    receive(peer, 18)
    peer.sendall(struct.pack(">I", 3) + go())
    verdict = decided(peer)
    assert verdict == ACK, f"refused: {verdict:#x}"
    return peer


def decided(peer: socket.socket) -> int:
    """The last of the replies to an option: an acknowledgement, or an error."""
    while True:
        _, _, kind, length = struct.unpack(">QIII", receive(peer, 20))
        receive(peer, length)
        if kind == ACK or kind >= ERROR:
            return int(kind)


def request(kind: int, offset: int, length: int, *, flags: int = 0, cookie: int = 7) -> bytes:
    return struct.pack(">IHHQQI", REQUEST_MAGIC, flags, kind, cookie, offset, length)


def handshake(dice: random.Random) -> bytes:
    """What a client says first, more or less."""
    flags = struct.pack(">I", dice.choice((0, 1, 2, 3, 3, 3, 0xFFFFFFFF)))
    parts = [flags]
    for _ in range(dice.randrange(1, 6)):
        number = dice.choice((1, 3, 5, 6, 7, 7, 8, 9, 10, dice.randrange(1 << 32)))
        name = dice.choice((TARGET, "none", "", "x" * 5000, "a\0b", "../" * 20)).encode()
        data = struct.pack(">I", len(name)) + name
        if number in (9, 10):
            query = dice.choice((b"base:allocation", b"base:", b"x" * 4000, b""))
            data += struct.pack(">II", dice.choice((1, 0, 5, 1 << 31)), len(query)) + query
        elif number in (6, 7):
            data += dice.choice((b"\0\0", b"\0\1\0\3", b"\xff\xff", b"\0\2\0\0\0\1"))
        elif number == 1:
            data = name
        else:
            data = b"" if dice.random() < 0.7 else data
        parts.append(option(number, data))
    said = b"".join(parts)
    return mutated(dice, said, most=4) if dice.random() < 0.6 else said


def requests(dice: random.Random) -> Iterator[bytes]:
    """Requests to one volume, most of them well-formed and many beyond what there is."""
    offsets = (0, 512, 65536, SIZE - 512, SIZE, SIZE + 1, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)
    lengths = (0, 1, 512, 4096, 65536, 1 << 20, SIZE, 32 << 20, 64 << 20, (1 << 32) - 1)
    while True:
        kind = dice.choice((READ, WRITE, FLUSH, TRIM, CACHE, ZERO, STATUS, 99, 65535))
        flags = 0 if dice.random() < 0.6 else dice.randrange(64)
        length = dice.choice(lengths)
        if kind == READ and length > 1 << 20 and dice.random() < 0.8:
            length = 4096
        if kind == WRITE and length > 1 << 20:
            length = 65536
        line = request(kind, dice.choice(offsets), length, flags=flags)
        if kind == WRITE:
            line += dice.randbytes(length)
        yield mutated(dice, line, most=4) if dice.random() < 0.1 else line


@dataclass
class Drain:
    """Reads and forgets what comes back, so that the server is never held up by this side."""

    peer: socket.socket

    def some(self) -> bool:
        """Take what is there; false once the other side has hung up."""
        self.peer.setblocking(False)
        try:
            while True:
                if not self.peer.recv(1 << 20):
                    return False
        except BlockingIOError:
            return True
        except ConnectionError:
            return False
        finally:
            self.peer.setblocking(True)

    def send(self, data: bytes) -> bool:
        """Send all, taking answers meanwhile; false once the other side has hung up."""
        view, deadline = memoryview(data), time.monotonic() + PATIENCE
        while view:
            if not self.some():
                return False
            assert time.monotonic() < deadline
            self.peer.settimeout(0.05)
            try:
                view = view[self.peer.send(view) :]
            except TimeoutError:
                continue
            except ConnectionError:
                return False
        return True
