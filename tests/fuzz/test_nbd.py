"""The NBD side against nonsense, patience and numbers, over bare sockets.

nbdkit takes the bytes; what it makes of them reaches the plugin. Neither may fall, keep anything,
or let one client touch what another sees.
"""

import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.conftest import PoolMaker
from tests.fuzz.vitals import Bystander, Vitals, fuzz_seconds, settled
from tests.support.pools import PoolRig
from tests.support.tools import PATIENCE

pytestmark = pytest.mark.slow

SLACK = 64 << 20
CONNECTIONS = 1000
TARGET = "target"
SIZE = 4 << 20

_OPTION_MAGIC = b"IHAVEOPT"
_REQUEST_MAGIC = 0x25609513
_READ, _WRITE, _DISCONNECT, _FLUSH, _TRIM, _CACHE, _ZERO, _STATUS = range(8)
_STARTTLS = 5
_GO = 7
_ACK = 1
_ERROR = 1 << 31


@pytest.fixture
def rig(new_pool: PoolMaker) -> PoolRig:
    rig = new_pool()
    rig.cli("set", "max-clients=0")
    rig.create(TARGET, str(SIZE))
    return rig


def connected(rig: PoolRig) -> socket.socket:
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
    return _OPTION_MAGIC + struct.pack(">II", number, len(data)) + data


def go(name: str = TARGET) -> bytes:
    return option(_GO, struct.pack(">I", len(name)) + name.encode() + b"\0\0")


def attached(rig: PoolRig) -> socket.socket:
    """A connection that is past its handshake."""
    peer = connected(rig)
    receive(peer, 18)
    peer.sendall(struct.pack(">I", 3) + go())
    verdict = decided(peer)
    assert verdict == _ACK, f"refused: {verdict:#x}"
    return peer


def decided(peer: socket.socket) -> int:
    """The last of the replies to an option: an acknowledgement, or an error."""
    while True:
        _, _, kind, length = struct.unpack(">QIII", receive(peer, 20))
        receive(peer, length)
        if kind == _ACK or kind >= _ERROR:
            return int(kind)


def request(kind: int, offset: int, length: int, *, flags: int = 0, cookie: int = 7) -> bytes:
    return struct.pack(">IHHQQI", _REQUEST_MAGIC, flags, kind, cookie, offset, length)


def mutated(dice: random.Random, line: bytes) -> bytes:
    data = bytearray(line)
    for _ in range(dice.randrange(1, 5)):
        place = dice.randrange(len(data) + 1)
        change = dice.randrange(4)
        if change == 0 and place < len(data):
            data[place] = dice.choice((0, 1, 0x7F, 0x80, 0xFF, data[place] ^ 1))
        elif change == 1:
            del data[place : place + dice.randrange(1, 9)]
        elif change == 2:
            data[place:place] = dice.randbytes(dice.randrange(1, 9))
        else:
            data[place:place] = data[: dice.randrange(len(data) + 1)]
    return bytes(data)


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
    return mutated(dice, said) if dice.random() < 0.6 else said


def requests(dice: random.Random) -> Iterator[bytes]:
    """Requests to one volume, most of them well-formed and many beyond what there is."""
    offsets = (0, 512, 65536, SIZE - 512, SIZE, SIZE + 1, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)
    lengths = (0, 1, 512, 4096, 65536, 1 << 20, SIZE, 32 << 20, 64 << 20, (1 << 32) - 1)
    while True:
        kind = dice.choice((_READ, _WRITE, _FLUSH, _TRIM, _CACHE, _ZERO, _STATUS, 99, 65535))
        flags = 0 if dice.random() < 0.6 else dice.randrange(64)
        length = dice.choice(lengths)
        if kind == _READ and length > 1 << 20 and dice.random() < 0.8:
            length = 4096
        if kind == _WRITE and length > 1 << 20:
            length = 65536
        line = request(kind, dice.choice(offsets), length, flags=flags)
        if kind == _WRITE:
            line += dice.randbytes(length)
        yield mutated(dice, line) if dice.random() < 0.1 else line


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


def shake(rig: PoolRig, dice: random.Random, seconds: float) -> int:
    deadline, count = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        with connected(rig) as peer:
            drain = Drain(peer)
            said = dice.randbytes(dice.randrange(200)) if dice.random() < 0.1 else handshake(dice)
            if drain.send(said) and dice.random() < 0.3:
                drain.send(request(_READ, 0, 512))
            count += 1
    return count


def hurt(rig: PoolRig, dice: random.Random, seconds: float) -> int:
    deadline, count = time.monotonic() + seconds, 0
    source = requests(dice)
    while time.monotonic() < deadline:
        with attached(rig) as peer:
            drain = Drain(peer)
            for _ in range(dice.randrange(1, 60)):
                count += 1
                if not drain.send(next(source)):
                    break
            if dice.random() < 0.3:
                drain.send(next(source)[: dice.randrange(1, 40)])
    return count


Attack: TypeAlias = Callable[[PoolRig, random.Random, float], int]


@pytest.mark.parametrize("attack", [shake, hurt], ids=["handshake", "requests"])
def test_nonsense(rig: PoolRig, seed: int, attack: Attack) -> None:
    dice = random.Random(seed)
    with Bystander(rig) as bystander:
        attack(rig, dice, fuzz_seconds() / 4)
        bystander.goes_on()
        before = settled(rig.pid, Vitals(1 << 20, 20, 0), 1 << 40)
        assert attack(rig, dice, fuzz_seconds()) > 20
        bystander.goes_on()
        settled(rig.pid, before, SLACK)
    log = (rig.directory / "thinpoold.log").read_text(errors="replace")
    assert "which is a bug" not in log, log[log.index("which is a bug") - 300 :][:2000]


@pytest.mark.parametrize("stage", ["silent", "half an option", "half a request", "half a write"])
def test_half_open(rig: PoolRig, stage: str) -> None:
    with Bystander(rig) as bystander:
        bystander.goes_on()
        before = Vitals.of(rig.pid)
        peers = []
        for _ in range(100):
            inside = stage in ("half a request", "half a write")
            peer = attached(rig) if inside else connected(rig)
            peers.append(peer)
            if stage == "half an option":
                peer.sendall(struct.pack(">I", 3) + go()[:-5])
            elif stage == "half a request":
                peer.sendall(request(_READ, 0, 512)[:-1])
            elif stage == "half a write":
                peer.sendall(request(_WRITE, 0, 65536) + bytes(1000))
        bystander.goes_on()
        for peer in peers:
            peer.close()
        settled(rig.pid, before, SLACK)
    with rig.connect(TARGET) as client:
        assert client.read(0, 65536) == bytes(65536)


def test_half_open_at_a_port_does_not_last(new_pool: PoolMaker, tmp_path: Path) -> None:
    rig = new_pool(start=False)
    rig.cli("tls", "init", str(tmp_path / "tls"), "--host", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    rig.start("--listen", f"127.0.0.1:{port}", "--tls", str(tmp_path / "tls"))
    before = Vitals.of(rig.pid)
    peers = []
    for stage in ("silent", "half an option", "before TLS", "half of TLS") * 10:
        peer = socket.create_connection(("127.0.0.1", port))
        peer.settimeout(PATIENCE)
        peers.append(peer)
        receive(peer, 18)
        if stage == "half an option":
            peer.sendall(struct.pack(">I", 3) + go()[:-5])
        elif stage != "silent":
            peer.sendall(struct.pack(">I", 3) + option(_STARTTLS, b""))
            assert decided(peer) == _ACK
        if stage == "half of TLS":
            # A record of the handshake that is longer than what there is of it.
            peer.sendall(b"\x16\x03\x01\x02\x00\x01\x00")
    for peer in peers:
        with pytest.raises(ConnectionError):
            receive(peer, 1 << 20)
        peer.close()
    settled(rig.pid, before, SLACK)


def test_a_client_that_does_not_read(rig: PoolRig) -> None:
    with Bystander(rig) as bystander:
        bystander.goes_on()
        before = Vitals.of(rig.pid)
        peers = [attached(rig) for _ in range(10)]
        for peer in peers:
            for number in range(32):
                peer.sendall(request(_READ, 0, 1 << 20, cookie=number))
        bystander.goes_on()
        for peer in peers:
            peer.close()
        settled(rig.pid, before, SLACK)


def test_a_client_that_writes_a_byte_at_a_time(rig: PoolRig) -> None:
    with Bystander(rig) as bystander, connected(rig) as peer:
        receive(peer, 18)
        for byte in struct.pack(">I", 3) + go():
            peer.sendall(bytes([byte]))
        bystander.goes_on()
        assert decided(peer) == _ACK
        for byte in request(_READ, 0, 512):
            peer.sendall(bytes([byte]))
        assert receive(peer, 16 + 512)[16:] == bytes(512)


@pytest.mark.parametrize("stage", ["silent", "attached"])
def test_a_thousand_connections(rig: PoolRig, stage: str) -> None:
    with Bystander(rig) as bystander:
        bystander.goes_on()
        first = Vitals.of(rig.pid)
        for turn in range(2):
            reach = connected if stage == "silent" else attached
            peers = [reach(rig) for _ in range(CONNECTIONS)]
            bystander.goes_on()
            if stage == "attached":
                assert rig.volumes()[TARGET]["clients"] == CONNECTIONS
                for peer in peers:
                    peer.sendall(request(_READ, 0, 4096))
                for peer in peers:
                    assert receive(peer, 16 + 4096)[16:] == bytes(4096)
            for peer in peers:
                peer.close()
            if turn == 0:
                # What the allocator keeps of the first thousand it uses again for the second.
                before = settled(rig.pid, first, 1 << 40)
        settled(rig.pid, before, SLACK)


def test_the_most_clients_are_the_most(rig: PoolRig) -> None:
    rig.cli("set", "max-clients=10")
    peers = [attached(rig) for _ in range(10)]
    for _ in range(50):
        with connected(rig) as peer:
            receive(peer, 18)
            peer.sendall(struct.pack(">I", 3) + go())
            assert decided(peer) >= _ERROR
    for peer in peers:
        peer.close()
    settled(rig.pid, Vitals(30, 20, 0), 1 << 40)
    attached(rig).close()
