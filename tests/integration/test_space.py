"""Space: what discards give back, what happens when there is none, and growing."""

import errno
import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import PoolMaker
from tests.support.client import NbdError
from tests.support.inflight import InflightClient, Pump
from tests.support.pools import PoolRig
from tests.support.tools import PATIENCE

pytestmark = pytest.mark.disk

BLOCK = 65536
MIB = 1 << 20
# Of a connection whose writes wait for space: all but one may.
THREADS = 8


def await_status(pool: PoolRig, wanted: Callable[[Any], bool]) -> Any:
    """Asks for the status until it is as wanted."""
    deadline = time.monotonic() + PATIENCE
    with pool.rpc() as rpc:
        while True:
            status = rpc.call("status")
            if wanted(status):
                return status
            assert time.monotonic() < deadline, status


def used(pool: PoolRig) -> int:
    return int(pool.status()["data"]["used"])


def disk_usage(pool: PoolRig) -> int:
    """Bytes of disk that the data file takes."""
    return os.stat(pool.status()["data"]["path"]).st_blocks * 512


def test_discard_gives_space_back(pool: PoolRig) -> None:
    pool.create("vol", "20M")
    with pool.connect("vol") as client:
        client.write(0, os.urandom(10 * MIB))
        client.flush()
        assert used(pool) == 10 * MIB
        before = disk_usage(pool)
        assert before >= 10 * MIB
        client.trim(0, 4 * MIB)
        client.zero(4 * MIB, 4 * MIB)
        client.flush()
        assert used(pool) == 2 * MIB
        assert pool.volumes()["vol"]["mapped"] == 2 * MIB
    # Punched out of the data device once the commit is durable.
    deadline = time.monotonic() + PATIENCE
    while disk_usage(pool) > before - 8 * MIB:
        assert time.monotonic() < deadline, "the data file did not shrink"


def test_a_discard_of_parts_of_blocks_frees_none(pool: PoolRig) -> None:
    pool.create("vol", "1M")
    with pool.connect("vol") as client:
        client.write(0, b"d" * 4 * BLOCK)
        client.trim(512, BLOCK)
        client.trim(BLOCK + 512, 2 * BLOCK)
        client.flush()
        # Only the third block lies wholly within a trim.
        assert used(pool) == 3 * BLOCK
        assert client.read(0, 512) == b"d" * 512


def test_a_block_that_a_snapshot_holds_is_not_freed(pool: PoolRig) -> None:
    pool.create("vol", "1M")
    with pool.connect("vol") as client:
        client.write(0, b"d" * 4 * BLOCK)
        pool.snapshot("vol", "snap")
        client.trim(0, MIB)
        client.flush()
        assert used(pool) == 4 * BLOCK
        volumes = pool.volumes()
        assert (volumes["vol"]["mapped"], volumes["vol"]["exclusive"]) == (0, 0)
        assert (volumes["snap"]["mapped"], volumes["snap"]["exclusive"]) == (4 * BLOCK, 4 * BLOCK)
    with pool.connect("snap") as snap:
        assert snap.read(0, 4 * BLOCK) == b"d" * 4 * BLOCK
    pool.delete("snap")
    assert used(pool) == 0


def test_ignored_discards_free_nothing(new_pool: PoolMaker) -> None:
    pool = new_pool(discard="ignore")
    pool.create("vol", "1M")
    with pool.connect("vol") as client:
        client.write(0, b"d" * MIB)
        assert not client.raw.can_trim()
        client.zero(0, MIB)
        client.flush()
        assert used(pool) == MIB
        assert client.read(0, MIB) == bytes(MIB)


def test_writing_in_place_after_the_snapshot_has_gone(pool: PoolRig) -> None:
    """A block whose last other owner has gone is written in place: no new block is taken."""
    pool.create("vol", "1M")
    with pool.connect("vol") as client:
        client.write(0, b"d" * 8 * BLOCK)
        pool.snapshot("vol", "snap")
        client.write(0, b"e")
        client.flush()
        assert used(pool) == 9 * BLOCK
        pool.delete("snap")
        assert used(pool) == 8 * BLOCK
        client.write(0, b"f" * 8 * BLOCK)
        client.flush()
        assert used(pool) == 8 * BLOCK


def fill(pool: PoolRig, blocks: int) -> None:
    pool.create("full", 200 * BLOCK)
    with pool.connect("full") as client:
        client.write(0, b"f" * blocks * BLOCK)
        client.flush()


def test_out_of_space_with_error(new_pool: PoolMaker) -> None:
    pool = new_pool("8M", on_full="error")
    fill(pool, 128)
    pool.create("vol", "1M")
    with pool.connect("full") as client, pool.connect("vol") as other:
        with pytest.raises(NbdError) as caught:
            other.write(0, b"x" * 512)
        assert caught.value.errno == errno.ENOSPC
        assert pool.status()["mode"] == "out-of-data-space"
        # What is mapped is read and written as ever.
        client.write(5, b"mapped")
        assert client.read(5, 6) == b"mapped"
        assert other.read(0, 512) == bytes(512)
        client.flush()
        pool.cli("grow", "--size", "9M")
        assert pool.status()["mode"] == "write"
        other.write(0, b"x" * 512)
        assert other.read(0, 1024) == b"x" * 512 + bytes(512)


def test_a_discard_ends_out_of_space(new_pool: PoolMaker) -> None:
    pool = new_pool("8M", on_full="error")
    fill(pool, 128)
    with pool.connect("full") as client:
        with pytest.raises(NbdError) as caught:
            client.write(128 * BLOCK, b"x")
        assert caught.value.errno == errno.ENOSPC
        client.trim(0, 2 * BLOCK)
        client.flush()
        await_status(pool, lambda status: status["mode"] == "write")
        client.write(128 * BLOCK, b"x")
        assert client.read(128 * BLOCK, 2) == b"x\0"


def queueing(new_pool: PoolMaker, size: str, **options: str | bool) -> PoolRig:
    """A pool whose connections have threads that can wait: one that is alone never does."""
    pool = new_pool(size, start=False, on_full="queue", **options)
    pool.start("--threads", str(THREADS))
    return pool


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_requests_that_wait_hold_up_no_others(new_pool: PoolMaker, threads: int) -> None:
    """On one connection: what needs space waits, but for the last thread's; the rest goes on."""
    pool = new_pool("8M", start=False, on_full="queue", full_timeout="0")
    pool.start("--threads", str(threads))
    fill(pool, 128)
    pump = Pump()
    client = InflightClient(pool.socket, "full")
    pump.clients.append(client)
    writes: list[int] = []
    others: list[int] = []
    for block in range(128, 133):
        client.write(block * BLOCK, b"q" * 512, 0, writes.append)
    client.write(0, b"in place", 0, others.append)
    client.flush(others.append)
    while len(others) < 2:
        pump.turn()
    assert others == [0, 0]
    assert writes == [errno.ENOSPC] * (5 - (threads - 1))
    assert pool.status()["mode"] == "out-of-data-space"
    pool.cli("grow", "--size", "9M")
    pump.drain()
    assert sorted(writes) == [0] * (threads - 1) + [errno.ENOSPC] * (5 - (threads - 1))
    client.close()


def test_out_of_space_with_queue(new_pool: PoolMaker) -> None:
    """Writes wait, others go on, and growing lets them through."""
    pool = queueing(new_pool, "8M")
    fill(pool, 128)
    pump = Pump()
    writer = InflightClient(pool.socket, "full")
    pump.clients.append(writer)
    answers: list[int] = []
    for block in range(128, 132):
        # Small ones: a server with one thread reads no further than its socket's buffer.
        writer.write(block * BLOCK, b"q" * 512, 0, answers.append)
    while writer.raw.aio_get_direction() & 2:
        pump.turn()
    await_status(pool, lambda status: status["mode"] == "out-of-data-space")
    with pool.connect("full") as client:
        assert client.read(0, 4) == b"ffff"
        client.write(0, b"g")
    assert answers == []
    pool.cli("grow", "--size", "9M")
    pump.drain()
    assert answers == [0, 0, 0, 0]
    writer.close()
    with pool.connect("full") as client:
        whole = b"q" * 512 + bytes(BLOCK - 512)
        assert client.read(128 * BLOCK, 4 * BLOCK) == 4 * whole
    assert pool.status()["mode"] == "write"


def test_a_queue_does_not_wait_for_ever(new_pool: PoolMaker) -> None:
    pool = queueing(new_pool, "8M", full_timeout="1")
    fill(pool, 128)
    with pool.connect("full") as client:
        with pytest.raises(NbdError) as caught:
            client.write(128 * BLOCK, b"late")
        assert caught.value.errno == errno.ENOSPC


def test_changing_the_setting_while_writes_wait(new_pool: PoolMaker) -> None:
    pool = queueing(new_pool, "8M")
    fill(pool, 128)
    pump = Pump()
    writer = InflightClient(pool.socket, "full")
    pump.clients.append(writer)
    answers: list[int] = []
    writer.write(128 * BLOCK, b"q" * BLOCK, 0, answers.append)
    await_pump(pool, pump)
    pool.cli("set", "on_full=error")
    pump.drain()
    assert answers == [errno.ENOSPC]
    writer.close()


def await_pump(pool: PoolRig, pump: Pump) -> None:
    """Sends what is to be sent, and waits until the pool has noticed that it is full."""
    for client in pump.clients:
        while client.raw.aio_get_direction() & 2:
            pump.turn()
    await_status(pool, lambda status: status["mode"] == "out-of-data-space")


def test_a_stop_does_not_wait_for_queued_writes(new_pool: PoolMaker) -> None:
    pool = queueing(new_pool, "8M", full_timeout="0")
    fill(pool, 128)
    pump = Pump()
    writer = InflightClient(pool.socket, "full")
    pump.clients.append(writer)
    answers: list[int] = []
    writer.write(128 * BLOCK, b"q" * BLOCK, 0, answers.append)
    await_pump(pool, pump)
    pool.stop()
    pump.drain()
    assert len(answers) == 1
    assert answers[0] != 0
    writer.close()


def test_a_full_pool_can_be_opened_and_emptied(new_pool: PoolMaker) -> None:
    pool = new_pool("8M", on_full="error")
    fill(pool, 128)
    pool.kill()
    pool.start()
    pool.snapshot("full", "snap")
    with pool.connect("full") as client:
        assert client.read(0, 128 * BLOCK) == b"f" * 128 * BLOCK
        with pytest.raises(NbdError):
            client.write(0, b"a copy would be needed")
    pool.delete("full", "snap")
    assert used(pool) == 0


def test_growing_while_it_is_written(new_pool: PoolMaker) -> None:
    pool = queueing(new_pool, "4M")
    pool.create("vol", "20M")
    pump = Pump()
    writer = InflightClient(pool.socket, "vol")
    pump.clients.append(writer)
    answers: list[int] = []
    sizes = iter(("6M", "10M", "16M"))
    for block in range(200):
        # One more than may wait would be refused.
        while writer.waiting == THREADS - 1:
            with pool.rpc() as rpc:
                full = rpc.call("status")["mode"] == "out-of-data-space"
            if full and (size := next(sizes, None)):
                pool.cli("grow", "--size", size)
            pump.turn(wait=False)
        writer.write(block * BLOCK, bytes([block % 250 + 1]) * BLOCK, 0, answers.append)
    pump.drain()
    assert answers == [0] * 200
    writer.close()
    with pool.connect("vol") as client:
        for block in range(200):
            assert client.read(block * BLOCK, BLOCK) == bytes([block % 250 + 1]) * BLOCK
    assert pool.status()["data"]["size"] == 16 * MIB


def test_reserved_space_is_kept_for_its_volume(new_pool: PoolMaker) -> None:
    pool = new_pool("8M", on_full="error")
    pool.create("safe", "2M", "--reserve", "2M")
    pool.create("greedy", "20M")
    with pool.connect("greedy") as greedy, pool.connect("safe") as safe:
        for block in range(128 - 32):
            greedy.write(block * BLOCK, b"g" * BLOCK)
        with pytest.raises(NbdError) as caught:
            greedy.write((128 - 32) * BLOCK, b"g" * BLOCK)
        assert caught.value.errno == errno.ENOSPC
        safe.write(0, b"s" * 2 * MIB)
        safe.flush()
        assert safe.read(0, 2 * MIB) == b"s" * 2 * MIB
