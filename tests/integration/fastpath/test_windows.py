"""Between a request's look-up and its I/O: nothing that it saw may become untrue there.

Each test holds a request up just there, and does what must wait for it. With the gate it waits;
without (a build for this) it does not, and what must not happen happens: so the tests can fail, and
the gate is what they test.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import PoolMaker
from tests.support.client import NbdClient
from tests.support.fastpath import READ, WAITS, WRITE, Hold
from tests.support.pools import PoolRig

BLOCK = 65536
OLD, NEW, SECRET = (letter * BLOCK for letter in (b"o", b"n", b"s"))
BLOCKS = 16

Trouble = Callable[[PoolRig, Hold], bool]


def write(pool: PoolRig, volume: str, data: bytes, offset: int = 0) -> None:
    with pool.connect(volume) as client:
        client.write(offset, data)
        client.flush()


def read(pool: PoolRig, volume: str, count: int = BLOCK) -> bytes:
    with pool.connect(volume) as client:
        return client.read(0, count)


def write_reaches_snapshot(pool: PoolRig, hold: Hold) -> bool:
    """A write is held up; a snapshot is made; the write goes on. Did it change the snapshot?"""
    pool.create("v", f"{BLOCK}")
    with pool.connect("v") as client, ThreadPoolExecutor() as threads:
        client.write(0, OLD)
        hold.arm(WRITE)
        writing = threads.submit(client.write, 0, NEW)
        assert hold.next() == WRITE
        snapshot = threads.submit(pool.snapshot, "v", "s")
        hold.note(snapshot)
        if hold.next() == WAITS:
            hold.go()
            snapshot.result()
            before = NEW
        else:
            before = read(pool, "s")
            assert before == OLD
            hold.go()
        writing.result()
        return read(pool, "s") != before


def read_reaches_taken_block(
    pool: PoolRig,
    hold: Hold,
    blocks: int,
    take_away: Callable[[NbdClient], None],
    *,
    shared: bool = False,
) -> bool:
    """A read of v's first block is held up, `take_away` makes the block free, and w gets it, for
    the pool is full but for that one. Does the read see what w wrote?
    """
    pool.create("v", f"{blocks * BLOCK}")
    pool.create("w", f"{BLOCK}")
    with (
        pool.connect("v") as client,
        pool.connect("v") as other,
        ThreadPoolExecutor() as threads,
    ):
        client.write(0, OLD * blocks)
        if shared:
            pool.snapshot("v", "s")
            # Shared now, and known again.
            assert client.read(0, BLOCK) == OLD
        hold.arm(READ)
        reading = threads.submit(client.read, 0, BLOCK)
        assert hold.next() == READ

        def take() -> None:
            take_away(other)
            write(pool, "w", SECRET)

        taking = threads.submit(take)
        hold.note(taking)
        waited = hold.next() == WAITS
        hold.go()
        taking.result()
        assert read(pool, "w") == SECRET
        saw = reading.result()
        assert saw in ((OLD,) if waited else (OLD, SECRET))
        return saw == SECRET


def read_reaches_discarded_block(pool: PoolRig, hold: Hold) -> bool:
    """A read is held up; its block is discarded and given to another volume."""
    return read_reaches_taken_block(pool, hold, BLOCKS, lambda other: other.trim(0, BLOCK))


def read_reaches_replaced_block(pool: PoolRig, hold: Hold) -> bool:
    """A read of a shared block is held up; the block is replaced by a write, given up by the
    snapshot that shared it, and given to another volume.
    """

    def replace(other: NbdClient) -> None:
        other.write(0, NEW)
        other.flush()
        # Deleting waits for nobody; using the block again does.
        pool.delete("s")

    return read_reaches_taken_block(pool, hold, BLOCKS - 1, replace, shared=True)


TROUBLES = (write_reaches_snapshot, read_reaches_discarded_block, read_reaches_replaced_block)


@pytest.fixture
def held(new_pool: PoolMaker, hold: Hold) -> Callable[[Path], PoolRig]:
    """A pool of BLOCKS blocks, started with a filter that can be held up."""

    def start(filter_: Path) -> PoolRig:
        pool = new_pool(f"{BLOCKS * BLOCK}", start=False)
        hold.take(pool, filter_)
        pool.start()
        return pool

    return start


@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_a_request_saw_stays_true_until_it_is_done(
    held: Callable[[Path], PoolRig],
    hold: Hold,
    filter_of: Callable[[str], Path],
    trouble: Trouble,
) -> None:
    assert not trouble(held(filter_of("hooks")), hold)


@pytest.mark.parametrize("trouble", TROUBLES)
def test_and_would_not_without_the_gate(
    held: Callable[[Path], PoolRig],
    hold: Hold,
    filter_of: Callable[[str], Path],
    trouble: Trouble,
) -> None:
    assert trouble(held(filter_of("ungated")), hold)


def test_a_write_in_place_is_not_lost_to_a_copy_of_the_block_before(
    held: Callable[[Path], PoolRig], hold: Hold, filter_of: Callable[[str], Path]
) -> None:
    """The blocks are one run, of which the first counts as shared until a commit."""
    pool = held(filter_of("hooks"))
    pool.create("v", f"{4 * BLOCK}")
    with pool.connect("v") as origin:
        origin.write(0, OLD * 4)
        pool.snapshot("v", "s")
        with (
            pool.connect("s") as client,
            pool.connect("s") as other,
            pool.rpc() as rpc,
            ThreadPoolExecutor() as threads,
        ):
            origin.write(3 * BLOCK, NEW)
            rpc.call("commit")
            # The snapshot's alone, and known to be.
            client.write(3 * BLOCK, b"1" * 512)
            origin.write(2 * BLOCK, NEW)
            hold.arm(WRITE)
            writing = threads.submit(client.write, 3 * BLOCK + 4096, b"2" * 512)
            assert hold.next() == WRITE
            other.write(3 * BLOCK - 512, b"3" * 1024)
            hold.go()
            writing.result()
            assert other.read(3 * BLOCK - 512, 1024) == b"3" * 1024
            assert other.read(3 * BLOCK + 4096, 1024) == b"2" * 512 + b"o" * 512
