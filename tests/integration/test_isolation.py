"""A volume never shows another's bytes, nor its own of another time.

Data blocks are used again and again; what a new block's first write leaves out must read as zero,
over the whole block, on every path by which a block comes into a volume.
"""

import random

import pytest

from tests.conftest import PoolMaker
from tests.support.client import FUA, NO_HOLE
from tests.support.pools import PoolRig

BLOCK = 65536
SECRET = b"\xee\xddsecret!\xcc" * 6000


def soil(pool: PoolRig, blocks: int, name: str = "secret") -> None:
    """Fills many data blocks with what nobody else may see, durably, and lets go of them."""
    pool.create(name, blocks * BLOCK)
    with pool.connect(name) as client:
        for block in range(blocks):
            client.write(block * BLOCK, SECRET[:BLOCK])
        client.flush()
    pool.delete(name)


@pytest.fixture(params=["passdown", "nopassdown", "ignore"])
def soiled(request: pytest.FixtureRequest, new_pool: PoolMaker) -> PoolRig:
    """A pool of 128 blocks, all of which held secrets, for each way to treat discards."""
    pool = new_pool("8M", discard=request.param)
    soil(pool, 120)
    return pool


def test_512_bytes_into_a_recycled_block(soiled: PoolRig) -> None:
    soiled.create("vol", 100 * BLOCK)
    rng = random.Random(1)
    expected = bytearray(100 * BLOCK)
    with soiled.connect("vol") as client:
        for block in range(100):
            at = block * BLOCK + rng.choice((0, 512, 32768, BLOCK - 512, rng.randrange(127) * 512))
            data = rng.randbytes(512)
            client.write(at, data)
            expected[at : at + 512] = data
        assert client.read_all() == expected
        client.flush()
    # And once more from the data device, after a crash.
    soiled.kill()
    soiled.start()
    with soiled.connect("vol") as client:
        assert client.read_all() == expected


@pytest.mark.both_ways
def test_every_other_way_a_block_comes_in(soiled: PoolRig) -> None:
    soiled.create("vol", 100 * BLOCK)
    expected = bytearray(100 * BLOCK)
    with soiled.connect("vol") as client:

        def write(at: int, count: int) -> None:
            client.write(at, b"w" * count)
            expected[at : at + count] = b"w" * count

        write(10, 1)
        write(3 * BLOCK - 700, 1400)  # The tail of one block and the head of the next.
        write(5 * BLOCK + 100, 3 * BLOCK)  # Head, whole blocks, tail.
        client.zero(20 * BLOCK + 512, 3 * BLOCK, NO_HOLE)
        client.zero(30 * BLOCK + 512, 1024, NO_HOLE)
        client.zero(40 * BLOCK + 512, 1024)
        write(40 * BLOCK + 4096, 512)
        assert client.read_all() == expected
        # Mapped, trimmed, mapped again.
        for _ in range(3):
            write(50 * BLOCK, 5 * BLOCK)
            client.zero(50 * BLOCK, 5 * BLOCK, FUA)
            expected[50 * BLOCK : 55 * BLOCK] = bytes(5 * BLOCK)
            write(52 * BLOCK + 1000, 24)
            assert client.read(50 * BLOCK, 5 * BLOCK) == expected[50 * BLOCK : 55 * BLOCK]
    soiled.snapshot("vol", "snap")
    with soiled.connect("snap") as snap, soiled.connect("vol") as client:
        # Break-sharing copies the rest of the block; over an unmapped one there is none.
        snap.write(50 * BLOCK + 7, b"s")
        snap.write(70 * BLOCK + 7, b"s")
        assert client.read_all() == expected
        changed = bytearray(expected)
        changed[50 * BLOCK + 7] = changed[70 * BLOCK + 7] = ord("s")
        assert snap.read_all() == changed


def test_a_grown_volume_does_not_show_what_was_cut_off(pool: PoolRig) -> None:
    pool.create("vol", 10 * BLOCK)
    with pool.connect("vol") as client:
        client.write(0, SECRET[:BLOCK] * 10)
        client.flush()
    pool.await_released("vol")
    pool.cli("resize", "vol", str(3 * BLOCK + 512), "--shrink")
    pool.cli("resize", "vol", str(10 * BLOCK))
    with pool.connect("vol") as client:
        kept = 3 * BLOCK + 512
        assert client.read(0, kept) == (SECRET[:BLOCK] * 10)[:kept]
        assert client.read(kept, 10 * BLOCK - kept) == bytes(10 * BLOCK - kept)


def test_a_block_is_zero_again_after_a_crash_before_the_punch(pool: PoolRig) -> None:
    """Freed and committed, but perhaps not punched: the next owner must not rely on zeroes."""
    pool.create("first", 60 * BLOCK)
    with pool.connect("first") as client:
        client.write(0, SECRET[:BLOCK] * 60)
        client.flush()
    for _ in range(5):
        pool.create("second", 60 * BLOCK)
        with pool.connect("first") as client:
            client.trim(0, 60 * BLOCK, FUA)
        pool.kill()
        pool.start()
        with pool.connect("second") as client:
            for block in range(60):
                client.write(block * BLOCK + 512 * block, b"m" * 512)
            data = client.read_all()
        assert data.count(b"m" * 512) == 60
        assert len(data.replace(b"m" * 512, b"").strip(b"\0")) == 0
        pool.delete("second")
        with pool.connect("first") as client:
            client.write(0, SECRET[:BLOCK] * 60)
            client.flush()


def test_two_volumes_do_not_see_each_other(pool: PoolRig) -> None:
    rng = random.Random(2)
    models = {}
    for name in ("a", "b"):
        pool.create(name, 40 * BLOCK)
        models[name] = bytearray(40 * BLOCK)
    with pool.connect("a") as a, pool.connect("b") as b:
        clients = {"a": a, "b": b}
        for _ in range(300):
            name = rng.choice("ab")
            at = rng.randrange(40 * BLOCK - 3000)
            data = name.encode() * rng.randrange(1, 3000)
            clients[name].write(at, data)
            models[name][at : at + len(data)] = data
        for name, client in clients.items():
            assert client.read_all() == models[name]
            assert (b"b" if name == "a" else b"a") not in models[name]
