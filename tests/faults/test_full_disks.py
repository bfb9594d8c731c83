"""No room below the pool: the metadata's file system, the data device's, and a file size limit.

In each case the pool must say so by its mode, clients must get an errno that fits, and the last
commit must be whole: found again after the next start, with what was durable in it.
"""

import errno
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PoolMaker
from tests.faults.mounts import SmallDisk, small_disk
from tests.support.client import NbdClient, NbdError
from tests.support.inflight import InflightClient, Pump
from tests.support.pools import Refused
from tests.support.tools import PATIENCE

BLOCK = 65536
MIB = 1 << 20


@pytest.fixture
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisk]:
    with small_disk(tmp_path_factory.mktemp("m") / "d", "3M") as disk:
        yield disk


@pytest.fixture
def metadata_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisk]:
    """One that has room for a small pool's directory."""
    with small_disk(tmp_path_factory.mktemp("m") / "d", "6M") as disk:
        yield disk


def filled(disk: SmallDisk) -> Path:
    """Fill the disk, with the file that is returned."""
    filler = disk.path / "filler"
    filler.write_bytes(bytes(disk.free()))
    return filler


def content(block: int) -> bytes:
    return bytes([block % 250 + 1]) * BLOCK


def write_until_refused(client: NbdClient, blocks: int, flush_each: int = 0) -> tuple[int, int]:
    """Writes block after block; the block that was refused, and the errno."""
    for block in range(blocks):
        try:
            client.write(block * BLOCK, content(block))
            if flush_each and block % flush_each == flush_each - 1:
                client.flush()
        except NbdError as error:
            return block, error.errno
    raise AssertionError(f"all {blocks} blocks were taken")


def scatter(
    client: NbdClient, rng: random.Random, most: int, answered: set[int] | None = None
) -> NbdError | None:
    """Maps single blocks all over a large volume, flushing now and then, until one is refused.

    Those that were answered are added to `answered`.
    """
    try:
        for number in range(most):
            block = rng.randrange(client.size // BLOCK)
            client.write(block * BLOCK, block.to_bytes(8, "little") * 64)
            if answered is not None:
                answered.add(block)
            if number % 500 == 499:
                client.flush()
        client.flush()
    except NbdError as error:
        return error
    return None


@pytest.mark.parametrize(
    "how", ["by-itself", *(pytest.param(how, marks=pytest.mark.slow) for how in ("stop", "kill"))]
)
def test_metadata_file_system_full(
    metadata_disk: SmallDisk, new_pool: PoolMaker, tmp_path: Path, how: str
) -> None:
    """The pool takes no new blocks and loses nothing; with more room it takes them again."""
    pool = new_pool(
        "16G",
        directory=metadata_disk.path / "p",
        data=str(tmp_path / "data"),
        skip_zeroing=True,
        on_full="error",
    )
    pool.create("vol", "1T")
    pool.create("early", "1M")
    with pool.connect("early") as client:
        client.write(0, b"durable", 1)
    answered: set[int] = set()
    filled(metadata_disk)
    with pool.connect("vol") as client:
        trouble = scatter(client, random.Random(1), 200_000, answered)
        assert trouble is not None, "the metadata never filled the file system"
        assert trouble.errno == errno.ENOSPC
        assert pool.status()["mode"] == "out-of-metadata-space"
        client.flush()
    with pool.connect("early") as client:
        assert client.read(0, 7) == b"durable"
    with pytest.raises(Refused):
        pool.create("more", "1M")
    assert pool.check() == []

    if how == "kill":
        pool.kill()
    elif how == "stop":
        pool.stop()
    metadata_disk.resize("64M")
    if how == "by-itself":
        deadline = time.monotonic() + PATIENCE
        while pool.status()["mode"] != "write":
            assert time.monotonic() < deadline, "it does not find out that there is room"
    else:
        pool.start()
    assert pool.status()["mode"] == "write"
    with pool.connect("early") as client:
        assert client.read(0, 7) == b"durable"
        client.write(0, b"again", 1)
    with pool.connect("vol") as client:
        for block in answered:
            assert client.read(block * BLOCK, 8) == block.to_bytes(8, "little")
        assert scatter(client, random.Random(2), 100) is None


@pytest.mark.parametrize(
    "restarted",
    [
        pytest.param(False, id="running", marks=pytest.mark.slow),
        pytest.param(True, id="restarted"),
    ],
)
def test_no_room_for_metadata_is_no_end(
    metadata_disk: SmallDisk, new_pool: PoolMaker, tmp_path: Path, restarted: bool
) -> None:
    """What is new is refused; what is there can be written, discarded and deleted, and that ends by
    itself when there is room."""
    pool = new_pool(
        "16G", directory=metadata_disk.path / "p", data=str(tmp_path / "data"), on_full="error"
    )
    for name in ("vol", "first", "second"):
        pool.create(name, "1G")
        with pool.connect(name) as client:
            for block in range(0, 400, 2):
                client.write(block * BLOCK, content(block))
            client.flush()
    pool.create("sparse", "1T")
    filler = filled(metadata_disk)
    with pool.connect("sparse") as client:
        trouble = scatter(client, random.Random(1), 200_000)
        assert trouble is not None
        assert trouble.errno == errno.ENOSPC
    used = pool.status()["data"]["used"]
    assert pool.status()["mode"] == "out-of-metadata-space"
    if restarted:
        pool.stop()
        pool.start()
        assert pool.status()["mode"] == "out-of-metadata-space"
    with pytest.raises(Refused, match="no room for more metadata"):
        pool.create("more", "1M")
    with pytest.raises(Refused, match="no room for more metadata"):
        pool.snapshot("vol", "s")
    pool.delete("first")
    with pool.connect("vol") as client:
        client.write(0, b"in place")
        client.trim(2 * BLOCK, BLOCK)
        client.flush()
        with pytest.raises(NbdError):
            client.write(15000 * BLOCK, b"new")
        assert client.read(0, 8) == b"in place"
        assert client.read(2 * BLOCK, BLOCK) == bytes(BLOCK)
    pool.delete("second")
    assert pool.status()["data"]["used"] < used
    assert pool.check() == []
    pool.kill()
    pool.start()
    with pool.connect("vol") as client:
        assert client.read(0, 8) == b"in place"
    assert set(pool.volumes()) == {"vol", "sparse"}
    filler.unlink()
    deadline = time.monotonic() + PATIENCE
    while pool.status()["mode"] != "write":
        assert time.monotonic() < deadline, "it does not find out that there is room"
    pool.create("after", "1M")
    with pool.connect("vol") as client:
        client.write(15000 * BLOCK, b"new")


def test_a_pool_that_shares_a_full_disk_with_its_data_is_emptied_by_deleting(
    tmp_path: Path, new_pool: PoolMaker
) -> None:
    """The trap was that freeing space needed space: data and metadata fill one file system."""
    with small_disk(tmp_path / "d", "16M") as disk:
        pool = new_pool("1G", directory=disk.path / "p", on_full="error")
        for name in ("keep", "drop"):
            pool.create(name, "1G")
        with pool.connect("keep") as client:
            for block in range(20):
                client.write(block * BLOCK, content(block))
            client.flush()
        with pool.connect("drop") as client:
            _, number = write_until_refused(client, 16000)
            assert number == errno.ENOSPC
        filled(disk)
        pool.delete("drop")
        deadline = time.monotonic() + PATIENCE
        while pool.status()["mode"] != "write":
            assert time.monotonic() < deadline, "deleting gave nothing back"
        with pool.connect("keep") as client:
            for block in range(20, 40):
                client.write(block * BLOCK, content(block))
            client.flush()
            for block in range(40):
                assert client.read(block * BLOCK, BLOCK) == content(block)
        pool.stop()
        assert pool.check() == []


def test_data_file_system_full(disk: SmallDisk, new_pool: PoolMaker) -> None:
    """A sparse data file that cannot be filled: out of data space, and back when there is room."""
    pool = new_pool("64M", data=str(disk.path / "data"), on_full="error")
    pool.create("vol", "32M")
    with pool.connect("vol") as client:
        written, number = write_until_refused(client, 200)
        assert number == errno.ENOSPC
        assert 20 < written < 60
        assert pool.status()["mode"] == "out-of-data-space"
        client.write(0, b"in place")
        client.flush()
        for each in range(1, written):
            assert client.read(each * BLOCK, BLOCK) == content(each)
        assert client.read(written * BLOCK, BLOCK) in (bytes(BLOCK), content(written))
        disk.resize("64M")
        for block in range(written, 200):
            client.write(block * BLOCK, b"r" * BLOCK)
        client.flush()
        assert pool.status()["mode"] == "write"
        assert client.read(199 * BLOCK, BLOCK) == b"r" * BLOCK
    pool.kill()
    pool.start()
    with pool.connect("vol") as client:
        assert client.read(0, 8) == b"in place"
        assert client.read(199 * BLOCK, BLOCK) == b"r" * BLOCK


def test_data_file_system_full_with_a_queue(disk: SmallDisk, new_pool: PoolMaker) -> None:
    """Nobody tells the pool when there is room: it tries again, and the write goes through."""
    pool = new_pool("64M", data=str(disk.path / "data"), on_full="queue", start=False)
    threads = 8
    pool.start("--threads", str(threads))
    pool.create("vol", "32M")
    pump = Pump()
    writer = InflightClient(pool.socket, "vol")
    pump.clients.append(writer)
    answers: list[int] = []
    (disk.path / "filler").write_bytes(bytes(disk.free() - 10 * BLOCK))
    sent = 0
    with pool.rpc() as rpc:
        while rpc.call("status")["mode"] != "out-of-data-space":
            # The last thread that is free never waits: one more would be refused.
            while writer.waiting < threads - 1:
                writer.write(sent * BLOCK, content(sent), 0, answers.append)
                sent += 1
            pump.turn(wait=False)
    assert writer.waiting
    (disk.path / "filler").unlink()
    disk.resize("64M")
    pump.drain()
    assert answers == [0] * sent
    writer.close()
    with pool.connect("vol") as client:
        for block in range(sent):
            assert client.read(block * BLOCK, BLOCK) == content(block)


def test_file_size_limit(new_pool: PoolMaker) -> None:
    """EFBIG from the data file is a failure of the device, and of the requests that met it."""
    pool = new_pool("64M", start=False)
    pool.start(prefix=["prlimit", f"--fsize={8 * MIB}"])
    pool.create("vol", "32M")
    with pool.connect("vol") as client:
        refused, number = write_until_refused(client, 400, flush_each=10)
        assert number in (errno.ENOSPC, errno.EIO, errno.EPERM)
        durable = refused // 10 * 10
        assert 50 < durable <= 128
    pool.kill()
    pool.start()
    with pool.connect("vol") as client:
        for block in range(durable):
            assert client.read(block * BLOCK, BLOCK) == content(block)
        client.write(300 * BLOCK, b"beyond the limit of before", 1)
