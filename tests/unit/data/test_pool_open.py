"""Making and opening pools in directories: what is refused, and that nothing is touched then."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from thinmeta.errors import Corrupt, UnsupportedFormat
from thinmeta.store.lmdb import LmdbStore
from thinpoold import admin, lock, pool_record
from thinpoold.errors import (
    DeviceError,
    InvalidName,
    InvalidSize,
    NoSuchPool,
    PoolExists,
    PoolLocked,
    UserError,
)
from thinpoold.modes import Mode
from thinpoold.paths import pool_paths
from thinpoold.pool import Pool, create_pool
from thinpoold.pool_record import MarkState, PoolRecord
from thinpoold.settings import Settings

BLOCK = 64 << 10
SIZE = 64 * BLOCK


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A pool of 64 blocks."""
    create_pool(tmp_path / "pool", size=SIZE, settings=Settings(low_water=3))
    return tmp_path / "pool"


def digest(directory: Path) -> dict[str, str]:
    """What every file of a pool holds, but for the locks."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.iterdir()
        if path.is_file() and "lock" not in path.name
    }


def change_record(directory: Path, change: Callable[[dict[str, object]], None]) -> None:
    store = LmdbStore(directory / "metadata.lmdb")
    value = store.record(pool_record.TABLE, pool_record.KEY)
    assert value is not None
    stored = json.loads(value)
    change(stored)
    packed = json.dumps(stored).encode()
    store.commit({}, [], {(pool_record.TABLE, pool_record.KEY): packed})
    store.close()


def test_a_pool_is_made_and_opened_again(directory: Path) -> None:
    assert sorted(path.name for path in directory.iterdir()) == ["data", "lock", "metadata.lmdb"]
    assert (directory / "data").stat().st_size == SIZE
    assert (directory / "data").stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700
    pool = Pool.open(directory)
    admin.create(pool, "v", 10 * BLOCK)
    volume = pool.open_volume("v")
    volume.pwrite(b"x" * BLOCK, 0)
    pool.close()
    pool.close()
    pool = Pool.open(directory)
    status = admin.status(pool)
    assert (status["name"], status["volumes"]) == ("pool", 1)
    assert status["data"] == {"path": str(directory / "data"), "size": SIZE, "used": BLOCK}
    assert pool.core.settings.low_water == 3
    buffer = bytearray(BLOCK)
    pool.open_volume("v").pread(buffer, 0)
    assert buffer == b"x" * BLOCK
    pool.close()


def test_a_pool_moves_with_its_directory(directory: Path) -> None:
    moved = directory.rename(directory.with_name("moved"))
    Pool.open(moved).close()


def test_a_second_opening_is_refused_and_names_the_first(directory: Path) -> None:
    pool = Pool.open(directory)
    with pytest.raises(PoolLocked) as caught:
        Pool.open(directory)
    assert caught.value.pid == os.getpid()
    pool.close()
    Pool.open(directory).close()


def test_a_lock_that_is_held_already_is_not_given_up(directory: Path) -> None:
    fd = lock.acquire(pool_paths(directory), "test")
    Pool.open(directory, lock_fd=fd).close()
    with pytest.raises(PoolLocked):
        Pool.open(directory)
    os.close(fd)


def test_no_pool(tmp_path: Path) -> None:
    with pytest.raises(NoSuchPool):
        Pool.open(tmp_path)


@pytest.mark.parametrize("damage", ["missing", "short", "fifo", "another", "no mark", "in use"])
def test_a_data_device_that_is_not_right_is_refused_and_nothing_touched(
    directory: Path, damage: str
) -> None:
    data = directory / "data"
    keep = None
    if damage == "missing":
        data.rename(directory / "elsewhere")
    elif damage == "short":
        os.truncate(data, SIZE - BLOCK)
    elif damage == "fifo":
        data.unlink()
        os.mkfifo(data)
    elif damage == "another":
        create_pool(directory.with_name("other"), size=SIZE)
        directory.with_name("other").joinpath("data").replace(data)
    elif damage == "no mark":
        data.unlink()
        with data.open("wb") as new:
            new.truncate(SIZE)
    else:
        other = directory.with_name("other")
        create_pool(other, size=SIZE)
        change_record(other, lambda stored: stored.update(data_path=str(data), data_known_by={}))
        keep = Pool.open(directory)
        directory = other
    before = digest(directory)
    with pytest.raises(DeviceError):
        Pool.open(directory)
    assert digest(directory) == before
    if keep is not None:
        keep.close()
    # Nothing holds the pool.
    os.close(lock.acquire(pool_paths(directory), "test"))


def test_a_larger_data_file_is_fine(directory: Path) -> None:
    os.truncate(directory / "data", 2 * SIZE)
    pool = Pool.open(directory)
    assert admin.status(pool)["data"]["size"] == SIZE
    admin.grow(pool, 2 * SIZE)
    pool.close()


def test_a_newer_format_is_refused_and_nothing_touched(directory: Path) -> None:
    change_record(directory, lambda stored: stored.update(format=99))
    before = digest(directory)
    with pytest.raises(UnsupportedFormat):
        Pool.open(directory)
    assert digest(directory) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda stored: stored.pop("data_path"),
        lambda stored: stored.update(block_size=BLOCK * 2),
        lambda stored: stored.update(discard="sometimes"),
        lambda stored: stored.update(uuid="zz"),
    ],
)
def test_a_record_that_makes_no_sense(
    directory: Path, change: Callable[[dict[str, object]], None]
) -> None:
    change_record(directory, change)
    with pytest.raises(Corrupt):
        Pool.open(directory)


def test_read_only(directory: Path) -> None:
    pool = Pool.open(directory)
    admin.create(pool, "v", BLOCK)
    pool.close()
    before = digest(directory)
    pool = Pool.open(directory, read_only=True)
    assert pool.core.modes.mode is Mode.READ_ONLY
    volume = pool.open_volume("v")
    buffer = bytearray(10)
    volume.pread(buffer, 0)
    pool.core.flush()
    pool.close()
    assert digest(directory) == before


def test_making_a_pool_over_a_file_that_is_there(tmp_path: Path) -> None:
    data = tmp_path / "disk"
    data.write_bytes(b"\xa5" * (10 * BLOCK))
    create_pool(tmp_path / "pool", data=data, force=True)
    pool = Pool.open(tmp_path / "pool")
    assert admin.status(pool)["data"] == {"path": str(data), "size": 10 * BLOCK, "used": 0}
    admin.create(pool, "v", 2 * BLOCK)
    volume = pool.open_volume("v")
    volume.pwrite(b"n" * 512, 512)
    buffer = bytearray(2 * BLOCK)
    volume.pread(buffer, 0)
    assert buffer == bytes(512) + b"n" * 512 + bytes(2 * BLOCK - 1024)
    pool.close()
    with pytest.raises(DeviceError, match="belongs to the pool"):
        create_pool(tmp_path / "other", data=data, force=True)
    assert not (tmp_path / "other").exists()


def test_making_a_pool_makes_its_data_file_and_directories(tmp_path: Path) -> None:
    data = tmp_path / "disk"
    create_pool(tmp_path / "a/b/pool", size=SIZE, data=data, name="fine", block_size=2 * BLOCK)
    pool = Pool.open(tmp_path / "a/b/pool")
    assert admin.status(pool)["name"] == "fine"
    assert admin.status(pool)["block_size"] == 2 * BLOCK
    pool.close()
    assert data.stat().st_size == SIZE


def test_what_is_refused_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "fifo").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "old").mkdir()
    (tmp_path / "old/data").write_bytes(b"mine")
    before = sorted(tmp_path.rglob("*"))
    new = tmp_path / "new/pool"
    for error, arguments in (
        (DeviceError, {"directory": new, "data": tmp_path / "none"}),
        (DeviceError, {"directory": new, "data": tmp_path / "pipe"}),
        (DeviceError, {"directory": new, "data": tmp_path / "no/where", "size": SIZE}),
        (InvalidSize, {"directory": new, "size": BLOCK - 512}),
        (InvalidSize, {"directory": new, "size": SIZE, "block_size": 1000}),
        (InvalidSize, {"directory": new, "data": tmp_path / "fifo"}),
        (InvalidName, {"directory": new, "size": SIZE, "name": "a/b"}),
        (PoolExists, {"directory": tmp_path / "fifo", "size": SIZE}),
        (PoolExists, {"directory": tmp_path / "old", "size": SIZE}),
    ):
        with pytest.raises(error):
            create_pool(**arguments)
        assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "old/data").read_bytes() == b"mine"


def test_a_pool_is_not_made_over_another(directory: Path) -> None:
    before = digest(directory)
    with pytest.raises(UserError):
        create_pool(directory, size=SIZE)
    assert digest(directory) == before


def test_a_crash_while_making_leaves_no_half_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "no")

    monkeypatch.setattr("thinpoold.identity.claim", fail)
    with pytest.raises(OSError, match="no"):
        create_pool(tmp_path / "pool", size=SIZE)
    assert not (tmp_path / "pool").exists()
    # What a kill would have left is cleared away.
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool/metadata.lmdb.new").write_bytes(b"half")
    monkeypatch.undo()
    create_pool(tmp_path / "pool", size=SIZE)
    Pool.open(tmp_path / "pool").close()


def test_a_pool_that_needs_a_check_opens_read_only(directory: Path) -> None:
    pool = Pool.open(directory)
    with pool.core.lock:
        pool.metadata.set_needs_check(True)
    pool.close()
    pool = Pool.open(directory)
    assert pool.core.modes.mode is Mode.READ_ONLY
    assert admin.status(pool)["needs_check"] is True
    pool.close()


def test_records_round_trip() -> None:
    record = PoolRecord(
        *("näme", bytes(range(16)), "data", BLOCK, Settings(discard="ignore"), {"a": "b"}),
        MarkState(4, 1 << 20, 5, 1 << 21),
    )
    assert PoolRecord.unpack(record.pack()) == record
    assert record.data_file(Path("/p")) == Path("/p/data")
    assert PoolRecord("n", bytes(16), "/dev/sdb", BLOCK).data_file(Path("/p")) == Path("/dev/sdb")
