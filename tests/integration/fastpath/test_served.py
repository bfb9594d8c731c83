"""What the C filter serves, and what it leaves to Python."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import PoolMaker
from tests.support.client import FUA, NbdClient, NbdError
from tests.support.fastpath import FILTER, READ, WRITE, Hold
from tests.support.pools import PoolRig, Refused

BLOCK = 65536


@pytest.fixture
def pool(new_pool: PoolMaker, hold: Hold, filter_of: Callable[[str], Path]) -> PoolRig:
    """A pool with a filter that tells what comes to it, and a volume `v` of 16 blocks."""
    pool = new_pool(start=False)
    hold.take(pool, filter_of("hooks"))
    pool.start()
    pool.create("v", f"{16 * BLOCK}")
    return pool


def reads(hold: Hold, client: NbdClient, offset: int = 0, count: int = 512) -> bool:
    """Whether the filter serves a read."""
    return hold.is_reached(READ, lambda: client.read(offset, count))


def writes(
    hold: Hold, client: NbdClient, offset: int = 0, count: int = 512, flags: int = 0
) -> bool:
    """Whether the filter serves a write."""
    return hold.is_reached(WRITE, lambda: client.write(offset, b"x" * count, flags))


def both(hold: Hold, client: NbdClient) -> tuple[bool, bool]:
    """Whether it serves a read and a write of the first block, which is mapped."""
    # Credit for what is written comes from Python, now and then.
    client.write(0, b"y" * 512)
    return reads(hold, client), writes(hold, client)


def test_a_block_is_python_s_until_it_is_mapped(pool: PoolRig, hold: Hold) -> None:
    with pool.connect("v") as client:
        assert not reads(hold, client)
        assert not writes(hold, client)
        assert both(hold, client) == (True, True)
        # The one beside it is not mapped.
        assert not reads(hold, client, BLOCK - 512, 1024)
        assert not writes(hold, client, BLOCK - 512, 1024)
        assert writes(hold, client, BLOCK - 512, 1024)
        assert writes(hold, client, 512, 512, FUA)
        assert client.read(0, 1024) == b"x" * 1024


def test_a_shared_block_is_written_by_python_once(pool: PoolRig, hold: Hold) -> None:
    with pool.connect("v") as client:
        client.write(0, b"o" * (2 * BLOCK))
        pool.snapshot("v", "s")
        # Everything is looked up anew.
        assert not reads(hold, client)
        assert reads(hold, client)
        assert not writes(hold, client)
        assert writes(hold, client)
        assert reads(hold, client, BLOCK)
        with pool.connect("s") as snapshot:
            assert snapshot.read(0, BLOCK) == b"o" * BLOCK


def test_a_discarded_block_is_python_s_again(pool: PoolRig, hold: Hold) -> None:
    with pool.connect("v") as client:
        client.write(0, b"o" * (2 * BLOCK))
        client.trim(0, BLOCK)
        assert not reads(hold, client)
        assert client.read(0, 512) == bytes(512)
        assert reads(hold, client, BLOCK)
        client.zero(BLOCK, BLOCK)
        assert not reads(hold, client, BLOCK)


def test_a_paced_volume_is_python_s(pool: PoolRig, hold: Hold) -> None:
    """From the moment the limit is set, and for as long as it is."""
    with pool.connect("v") as client:
        assert both(hold, client) == (True, True)
        pool.cli("set", "--volume", "v", "iops=100000")
        assert both(hold, client) == (False, False)
        pool.cli("set", "--volume", "v", "iops=0")
        client.read(0, 512)
        assert both(hold, client) == (True, True)


def test_a_volume_that_becomes_read_only_is_read(pool: PoolRig, hold: Hold) -> None:
    with pool.connect("v") as client:
        assert both(hold, client) == (True, True)
        pool.cli("set", "--volume", "v", "read-only=yes")
        client.read(0, 512)
        assert reads(hold, client)
        with pytest.raises(NbdError, match=r"EPERM|EROFS"):
            client.write(0, b"z" * 512)
        assert client.read(0, 512) == b"x" * 512


def test_a_volume_that_grows_is_served_in_full(pool: PoolRig, hold: Hold) -> None:
    """Its table moves, while a client has it open."""
    with pool.connect("v") as client:
        assert both(hold, client) == (True, True)
        pool.cli("resize", "v", "256M")
        client.read(0, 512)
        assert both(hold, client) == (True, True)
    with pool.connect("v") as client:
        client.write((256 << 20) - BLOCK, b"e" * BLOCK)
        assert reads(hold, client, (256 << 20) - 512)


def test_all_connections_are_served_and_come_and_go(pool: PoolRig, hold: Hold) -> None:
    with pool.connect("v") as first:
        first.write(0, b"o" * BLOCK)
        for _ in range(5):
            with pool.connect("v") as other:
                assert both(hold, other) == (True, True)
        assert both(hold, first) == (True, True)
    # All are gone, and with them the table.
    with pool.connect("v") as again:
        assert not reads(hold, again)
        assert reads(hold, again)


def test_a_cache_of_our_own_is_not_passed_by(
    new_pool: PoolMaker, hold: Hold, filter_of: Callable[[str], Path]
) -> None:
    pool = new_pool(start=False, cache="bufio")
    hold.take(pool, filter_of("hooks"))
    pool.start()
    pool.create("v", f"{16 * BLOCK}")
    with pool.connect("v") as client:
        client.write(0, b"o" * BLOCK)
        assert both(hold, client) == (False, False)


def test_status_says_whether_it_is_there(new_pool: PoolMaker) -> None:
    pool = new_pool(start=False)
    pool.start("--fastpath", "on")
    assert (pool.status()["fastpath"], pool.status()["fastpath_reason"]) == (True, "")
    assert "fast path       yes" in pool.cli("status")
    pool.stop()
    assert pool.status()["fastpath_reason"] is None
    pool.start("--fastpath", "off")
    assert (pool.status()["fastpath"], pool.status()["fastpath_reason"]) == (False, "switched off")
    assert "fast path       no: switched off" in pool.cli("status")
    assert len(pool.logged("no fast path: switched off")) == 1


def test_a_filter_for_another_nbdkit_is_not_loaded(new_pool: PoolMaker, tmp_path: Path) -> None:
    """Whoever asks for it is told so; nbdkit, which would not start with it, is not."""
    content = FILTER.read_bytes()
    start = content.index(b"nbdkit=", content.index(b"thinpoold-fastpath interface=")) + 7
    other = tmp_path / "other.so"
    other.write_bytes(content[:start] + b"0" + content[start + 1 :])
    pool = new_pool(start=False)
    pool.env["THINPOOL_FASTPATH"] = str(other)
    with pytest.raises(Refused, match=r"was built for nbdkit 0\..*, and this is 1\..*: build it"):
        pool.start()
    assert "incompatible" not in pool.log_tail()
