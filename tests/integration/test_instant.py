"""A snapshot is of one instant, of one volume or of several, while they are written."""

import struct
import threading
from collections.abc import Callable

import pytest

from tests.support.client import NbdClient
from tests.support.pools import PoolRig

pytestmark = pytest.mark.both_ways

BLOCK = 65536
WIDE = 3 * BLOCK


def stamp(turn: int) -> bytes:
    return struct.pack("<Q", turn) * (WIDE // 8)


class Writer(threading.Thread):
    """Writes turn after turn to its volumes, each in one request, one volume after the other."""

    def __init__(self, clients: list[NbdClient]) -> None:
        super().__init__(daemon=True)
        self.clients = clients
        self.turn = 0
        self.ending = threading.Event()
        self.trouble: Exception | None = None

    def run(self) -> None:
        try:
            while not self.ending.is_set():
                self.turn += 1
                for client in self.clients:
                    client.write(BLOCK // 2, stamp(self.turn))
        except Exception as error:
            self.trouble = error

    def finish(self) -> None:
        self.ending.set()
        self.join()
        if self.trouble is not None:
            raise self.trouble


def seen(pool: PoolRig, name: str) -> int:
    """The turn a snapshot shows; all of one request must be there."""
    with pool.connect(name) as client:
        data = client.read(BLOCK // 2, WIDE)
    (turn,) = struct.unpack_from("<Q", data)
    assert data == stamp(turn), f"{name} shows a part of a request"
    return int(turn)


def during_writes(pool: PoolRig, names: list[str], take: Callable[[int], None]) -> None:
    clients = [pool.connect(name) for name in names]
    for client in clients:
        client.write(BLOCK // 2, stamp(0))
    writer = Writer(clients)
    writer.start()
    try:
        for number in range(25):
            take(number)
    finally:
        writer.finish()
        for client in clients:
            client.close()


def test_a_request_is_in_a_snapshot_or_not(pool: PoolRig) -> None:
    pool.create("vol", "1M")
    turns = []

    def take(number: int) -> None:
        with pool.rpc() as rpc:
            rpc.call("snapshot", pairs=[["vol", f"s{number}"]])
        turns.append(seen(pool, f"s{number}"))

    during_writes(pool, ["vol"], take)
    assert turns == sorted(turns)


def test_snapshots_of_two_volumes_are_of_one_instant(pool: PoolRig) -> None:
    """The second volume is written after the first: it is never ahead, nor two behind."""
    pool.create("a", "1M")
    pool.create("b", "1M")
    turns = []

    def take(number: int) -> None:
        with pool.rpc() as rpc:
            rpc.call("snapshot", pairs=[["a", f"a{number}"], ["b", f"b{number}"]])
        first, second = seen(pool, f"a{number}"), seen(pool, f"b{number}")
        assert first - 1 <= second <= first
        turns.append(first)

    during_writes(pool, ["a", "b"], take)
    assert turns == sorted(turns)


def test_what_was_answered_before_is_in_the_snapshot(pool: PoolRig) -> None:
    pool.create("vol", "1M")
    with pool.connect("vol") as client, pool.rpc() as rpc:
        for number in range(20):
            client.write(BLOCK // 2, stamp(number))
            rpc.call("snapshot", pairs=[["vol", f"s{number}"]])
            client.write(BLOCK // 2, stamp(1000 + number))
    for number in range(20):
        assert seen(pool, f"s{number}") == number
