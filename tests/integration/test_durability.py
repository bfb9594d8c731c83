"""What is answered as durable is there after kill -9: FUA, flush, other connections, verbs."""

import time

import pytest

from tests.support.client import FUA, NO_HOLE, NbdError
from tests.support.pools import PoolRig
from tests.support.tools import PATIENCE

pytestmark = pytest.mark.both_ways

BLOCK = 65536


def reborn(pool: PoolRig) -> None:
    pool.kill()
    pool.start()


def test_fua_write_is_durable(pool: PoolRig) -> None:
    pool.create("vol", "4M")
    with pool.connect("vol") as client:
        client.write(700, b"durable", FUA)
        reborn(pool)
    with pool.connect("vol") as client:
        assert client.read(700, 7) == b"durable"


def test_fua_zero_and_trim_are_durable(pool: PoolRig) -> None:
    pool.create("vol", "4M")
    with pool.connect("vol") as client:
        client.write(0, b"x" * 4 * BLOCK, FUA)
        client.zero(0, BLOCK, FUA)
        client.zero(BLOCK, BLOCK, FUA | NO_HOLE)
        client.trim(2 * BLOCK, BLOCK, FUA)
        reborn(pool)
    with pool.connect("vol") as client:
        assert client.read(0, 3 * BLOCK) == bytes(3 * BLOCK)
        assert client.read(3 * BLOCK, BLOCK) == b"x" * BLOCK


def test_a_flush_covers_every_connection(pool: PoolRig) -> None:
    pool.create("vol", "4M")
    with pool.connect("vol") as one, pool.connect("vol") as two:
        for block in range(8):
            (one if block % 2 else two).write(block * BLOCK + 9, bytes([block + 1]) * 3)
        two.flush()
        reborn(pool)
    with pool.connect("vol") as client:
        for block in range(8):
            assert client.read(block * BLOCK + 9, 3) == bytes([block + 1]) * 3


def test_a_flush_of_overwritten_data_alone(pool: PoolRig) -> None:
    """No mapping changes: a flush of data, which is as durable."""
    pool.create("vol", "4M")
    with pool.connect("vol") as client:
        client.write(0, b"a" * BLOCK, FUA)
        client.write(100, b"b" * 100)
        client.flush()
        reborn(pool)
    with pool.connect("vol") as client:
        assert client.read(100, 100) == b"b" * 100


def test_one_connection_reads_what_another_wrote(pool: PoolRig) -> None:
    """What multi-conn promises."""
    pool.create("vol", "4M")
    with pool.connect("vol") as one, pool.connect("vol") as two:
        for turn in range(200):
            at = (turn * 7919) % (4 << 20 >> 9) * 512
            one.write(at, bytes([turn % 251 + 1]) * 512)
            assert two.read(at, 512) == bytes([turn % 251 + 1]) * 512
            two.trim(at // BLOCK * BLOCK, BLOCK)
            assert one.read(at, 512) == bytes(512)


def test_a_verb_commits_what_was_written_before(pool: PoolRig) -> None:
    pool.create("vol", "4M")
    with pool.connect("vol") as client:
        client.write(0, b"before the snapshot")
        pool.snapshot("vol", "snap")
        client.write(0, b"after the snapshot!")
        reborn(pool)
    assert set(pool.volumes()) == {"vol", "snap"}
    with pool.connect("snap") as snap:
        assert snap.read(0, 19) == b"before the snapshot"


def test_a_commit_comes_by_itself(pool: PoolRig) -> None:
    """Within a second or so and without a flush the last commit, which an export shows, has it."""
    pool.create("vol", "4M")
    (dev,) = (entry["id"] for entry in pool.volumes().values())
    with pool.connect("vol") as client:
        client.write(0, b"eventually")
        deadline = time.monotonic() + PATIENCE
        while not pool.dump().devices[dev].mappings:
            assert time.monotonic() < deadline, "no commit came"
        reborn(pool)
    with pool.connect("vol") as client:
        assert client.read(0, 10) == b"eventually"


def test_a_clean_stop_keeps_everything(pool: PoolRig) -> None:
    pool.create("vol", "4M")
    with pool.connect("vol") as client:
        client.write(123, b"unflushed")
    pool.stop()
    pool.start()
    with pool.connect("vol") as client:
        assert client.read(123, 9) == b"unflushed"


def test_clients_of_a_killed_daemon_get_errors(pool: PoolRig) -> None:
    pool.create("vol", "4M")
    with pool.connect("vol") as client:
        pool.kill()
        with pytest.raises(NbdError):
            client.read(0, 512)
    pool.start()
