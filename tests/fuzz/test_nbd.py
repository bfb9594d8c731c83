"""The NBD side against nonsense, patience and numbers, over bare sockets.

nbdkit takes the bytes; what it makes of them reaches the plugin. Neither may fall, keep anything,
or let one client touch what another sees.
"""

import random
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.conftest import PoolMaker
from tests.fuzz.speech import (
    ACK,
    ERROR,
    READ,
    SIZE,
    STARTTLS,
    TARGET,
    WRITE,
    Drain,
    attached,
    connected,
    decided,
    go,
    handshake,
    option,
    receive,
    request,
    requests,
)
from tests.fuzz.vitals import Bystander, Vitals, fuzz_seconds, settled
from tests.support.pools import PoolRig
from tests.support.tools import PATIENCE

pytestmark = pytest.mark.slow

SLACK = 64 << 20
CONNECTIONS = 1000


@pytest.fixture
def rig(new_pool: PoolMaker) -> PoolRig:
    rig = new_pool()
    rig.cli("set", "max-clients=0")
    rig.create(TARGET, str(SIZE))
    return rig


def shake(rig: PoolRig, dice: random.Random, seconds: float) -> int:
    deadline, count = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        with connected(rig) as peer:
            drain = Drain(peer)
            said = dice.randbytes(dice.randrange(200)) if dice.random() < 0.1 else handshake(dice)
            if drain.send(said) and dice.random() < 0.3:
                drain.send(request(READ, 0, 512))
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
                peer.sendall(request(READ, 0, 512)[:-1])
            elif stage == "half a write":
                peer.sendall(request(WRITE, 0, 65536) + bytes(1000))
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
            peer.sendall(struct.pack(">I", 3) + option(STARTTLS, b""))
            assert decided(peer) == ACK
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
                peer.sendall(request(READ, 0, 1 << 20, cookie=number))
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
        assert decided(peer) == ACK
        for byte in request(READ, 0, 512):
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
                    peer.sendall(request(READ, 0, 4096))
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
            assert decided(peer) >= ERROR
    for peer in peers:
        peer.close()
    settled(rig.pid, Vitals(30, 20, 0), 1 << 40)
    attached(rig).close()
