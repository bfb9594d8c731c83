"""What the daemon answered and did not commit: noted, and made good at the next opening."""

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from thinmeta.check import check
from thinmeta.store.lmdb import LmdbStore
from thinpoold import admin, boot, discard
from thinpoold.errors import DeviceError, LossNotAccepted, NoSpace
from thinpoold.ledger import Guest
from thinpoold.notes import Change, Leftover
from thinpoold.paths import pool_paths
from thinpoold.pool import Pool, create_pool
from thinpoold.recent import RecentChanges
from thinpoold.settings import Settings
from thinpoold.volume import Volume

BLOCK = 64 << 10
UUID = bytes(range(16))


@pytest.fixture
def paths(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "recent-0", tmp_path / "recent-1"


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A pool of 64 blocks with the volume v of 16; sound in the end."""
    create_pool(tmp_path / "pool", size=64 * BLOCK)
    pool = Pool.open(tmp_path / "pool")
    admin.create(pool, "v", 16 * BLOCK)
    pool.close()
    yield tmp_path / "pool"
    Pool.open(tmp_path / "pool").close()
    store = LmdbStore(tmp_path / "pool/metadata.lmdb", read_only=True)
    result = check(store)
    store.close()
    assert result.ok, [str(problem) for problem in result.errors]


def die(pool: Pool) -> None:
    """Leave all as a killed process does."""
    pool.core.stop()
    pool.core.recent.close()
    pool.core.ledger.end(clean=False)
    pool.device.close()
    pool.store.close()
    assert pool._own_lock is not None
    os.close(pool._own_lock)


def opened(directory: Path) -> tuple[Pool, Volume]:
    pool = Pool.open(directory)
    return pool, pool.open_volume("v")


def block(volume: Volume, number: int) -> bytes:
    buffer = bytearray(BLOCK)
    volume.pread(buffer, number * BLOCK)
    assert buffer.count(buffer[0]) == BLOCK
    return bytes(buffer[:1])


def blocks(volume: Volume) -> bytes:
    return b"".join(block(volume, number) for number in range(volume.size // BLOCK))


# --- the files --------------------------------------------------------------------------------


def test_changes_are_read_back_with_the_commit_they_came_upon(paths: tuple[Path, Path]) -> None:
    changes = RecentChanges(paths, UUID)
    changes.begin(7)
    changes.inserted(3, 10, 100, 2)
    changes.removed(3, 10, 11)
    changes.freeze()
    changes.inserted((1 << 24) - 1, (1 << 40), (1 << 40) - 1, 1)
    changes.close()
    assert RecentChanges(paths, UUID).leftovers() == [
        Leftover(7, [Change(3, 10, 2, 100), Change(3, 10, 1, None)]),
        Leftover(8, [Change((1 << 24) - 1, 1 << 40, 1, (1 << 40) - 1)]),
    ]


def test_what_follows_on_is_one_record(paths: tuple[Path, Path]) -> None:
    changes = RecentChanges(paths, UUID)
    changes.begin(0)
    for number in range(1000):
        changes.inserted(1, number, 50 + number, 1)
    changes.inserted(1, 1000, 2000, 1)  # not the next data block
    changes.inserted(2, 1001, 2001, 1)  # not the same device
    changes.removed(2, 1002, 1003)
    changes.inserted(2, 1003, 2003, 1)  # something between
    changes.close()
    (left,) = RecentChanges(paths, UUID).leftovers()
    assert left.changes == [
        Change(1, 0, 1000, 50),
        Change(1, 1000, 1, 2000),
        Change(2, 1001, 1, 2001),
        Change(2, 1002, 1, None),
        Change(2, 1003, 1, 2003),
    ]


def test_a_commit_makes_room_for_the_one_after_the_next(paths: tuple[Path, Path]) -> None:
    changes = RecentChanges(paths, UUID)
    changes.begin(1)
    for number in range(5):
        changes.inserted(1, number, 10 * number, 1)
        changes.freeze()
    changes.close()
    assert RecentChanges(paths, UUID).leftovers() == [
        Leftover(5, [Change(1, 4, 1, 40)]),
        Leftover(6, []),
    ]


@pytest.mark.parametrize("which", ["boot", "uuid"])
def test_another_boot_or_pool_has_no_leftovers(
    paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, which: str
) -> None:
    changes = RecentChanges(paths, UUID)
    changes.begin(1)
    changes.inserted(1, 1, 1, 1)
    changes.close()
    if which == "boot":
        other = tmp_path / "boot_id"
        other.write_text("01234567-89ab-cdef-0123-456789abcdef\n")
        monkeypatch.setattr(boot, "BOOT_ID", other)
        # That they were there is known: in a container the machine may live.
        (left,) = RecentChanges(paths, UUID).leftovers()
        assert (left.changes, left.dropped) == ([], [Change(1, 1, 1, 1)])
    else:
        assert RecentChanges(paths, bytes(16)).leftovers() == []


def test_nothing_is_noted_where_boots_cannot_be_told_apart(
    paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(boot, "BOOT_ID", tmp_path / "missing")
    changes = RecentChanges(paths, UUID)
    changes.begin(1)
    changes.inserted(1, 1, 1, 1)
    changes.freeze()
    assert not changes.complete
    changes.erase()
    assert not any(path.exists() for path in paths)


def test_damage_ends_a_file_where_it_is(paths: tuple[Path, Path], seed: int) -> None:
    changes = RecentChanges(paths, UUID)
    changes.begin(1)
    for number in range(0, 20, 2):
        changes.inserted(1, number, number, 1)
    changes.close()
    whole = paths[0].read_bytes()
    (left,) = RecentChanges(paths, UUID).leftovers()
    rng = random.Random(seed)
    for _ in range(300):
        octets = bytearray(whole)
        # Nothing is in the rest of the header's sector.
        at = rng.choice([rng.randrange(52), rng.randrange(512, 512 + 10 * 32)])
        if rng.random() < 0.5:
            octets[at] ^= 1 << rng.randrange(8)
        else:
            del octets[at:]
        paths[0].write_bytes(octets)
        found = RecentChanges(paths, UUID).leftovers()
        assert not found or found[0].changes == left.changes[: len(found[0].changes)]
        assert not found or found[0].generation == 1
        assert sum(len(one.changes) for one in found) < len(left.changes)


def test_a_full_disk_costs_the_protection_and_nothing_else(
    paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    changes = RecentChanges(paths, UUID)
    changes.begin(1)
    changes.inserted(1, 1, 1, 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda fd, octets, at: 3)
        changes.inserted(1, 5, 5, 1)
    changes.inserted(1, 9, 9, 1)
    assert "No space left" in caplog.text
    assert len(caplog.records) == 1
    changes.freeze()
    changes.inserted(1, 11, 11, 1)
    changes.close()
    assert RecentChanges(paths, UUID).leftovers() == [
        Leftover(1, [Change(1, 1, 1, 1)]),
        Leftover(2, [Change(1, 11, 1, 11)]),
    ]


# --- the pool ---------------------------------------------------------------------------------


def test_answered_writes_and_discards_outlive_the_process(directory: Path) -> None:
    pool, volume = opened(directory)
    volume.pwrite(b"a" * 3 * BLOCK, 0)
    pool.commit()
    volume.pwrite(b"b" * BLOCK, 5 * BLOCK)
    discard.trim(volume, BLOCK, BLOCK)
    volume.pwrite(b"c" * 2 * BLOCK, 8 * BLOCK)
    discard.trim(volume, 8 * BLOCK, BLOCK)
    die(pool)
    pool, volume = opened(directory)
    assert blocks(volume) == b"a\0a\0\0b\0\0\0c" + bytes(6)
    assert not pool.metadata.dirty
    pool.close()
    left = RecentChanges(pool_paths(directory).recent, pool.record.uuid).leftovers()
    assert left == []


def test_a_broken_sharing_outlives_the_process_and_the_snapshot_is_untouched(
    directory: Path,
) -> None:
    pool, volume = opened(directory)
    volume.pwrite(b"a" * 4 * BLOCK, 0)
    admin.snapshot(pool, [("v", "s")])
    volume.pwrite(b"b" * BLOCK, BLOCK)
    die(pool)
    pool, volume = opened(directory)
    assert blocks(volume)[:4] == b"abaa"
    assert blocks(pool.open_volume("s"))[:4] == b"aaaa"
    pool.close()


def test_both_the_frozen_and_the_open_transaction_are_made_good(directory: Path) -> None:
    pool, volume = opened(directory)
    volume.pwrite(b"a" * BLOCK, 0)
    with pool.core.lock:
        pool.metadata.freeze()
        pool.core.recent.freeze()
    volume.pwrite(b"b" * BLOCK, BLOCK)
    discard.trim(volume, 0, BLOCK)
    die(pool)
    pool, volume = opened(directory)
    assert blocks(volume)[:2] == b"\0b"
    pool.close()


def test_what_was_committed_is_not_done_again(directory: Path) -> None:
    pool, volume = opened(directory)
    volume.pwrite(b"a" * BLOCK, 0)
    noted = directory.joinpath("recent-0").read_bytes()
    pool.commit()
    discard.trim(volume, 0, BLOCK)
    pool.close()
    directory.joinpath("recent-0").write_bytes(noted)
    pool, volume = opened(directory)
    assert blocks(volume) == bytes(16)
    pool.close()


def test_a_death_in_the_midst_of_recovery_is_recovered_from(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, volume = opened(directory)
    volume.pwrite(b"a" * BLOCK, 0)
    with pool.core.lock:
        pool.metadata.freeze()
        pool.core.recent.freeze()
    volume.pwrite(b"b" * BLOCK, BLOCK)
    die(pool)

    class Death(BaseException):
        pass

    commits = fatal = 0
    real: Callable[..., None] = LmdbStore.commit

    def commit(self: LmdbStore, *args: object) -> None:
        nonlocal commits
        commits += 1
        if commits == fatal:
            raise Death
        real(self, *args)

    monkeypatch.setattr(LmdbStore, "commit", commit)
    for number in (1, 2):
        commits, fatal = 0, number
        with pytest.raises(Death):
            Pool.open(directory)
    fatal = 0
    pool, volume = opened(directory)
    assert blocks(volume)[:3] == b"ab\0"
    pool.close()


def test_an_administrators_change_that_was_not_committed_is_not_half_made(directory: Path) -> None:
    pool, volume = opened(directory)
    volume.pwrite(b"a" * 16 * BLOCK, 0)
    pool.commit()
    with pool.core.settled(), pool._quiet(["v"]):
        pool.core.begin_change()
        # As `resize --shrink` does, up to its commit.
        discard.remove(volume, 4, 16)
    die(pool)
    pool, volume = opened(directory)
    assert blocks(volume) == b"a" * 16
    pool.close()


def test_writes_beyond_a_size_that_was_not_committed_leave_nothing(directory: Path) -> None:
    pool, volume = opened(directory)
    die(pool)
    changes = RecentChanges(pool.core.recent._paths, pool.record.uuid)
    changes.begin(pool_generation(directory))
    changes.inserted(volume.dev_id, 14, 20, 10)
    changes.inserted(volume.dev_id + 1, 0, 30, 1)
    changes.removed(volume.dev_id, 40, 50)
    changes.close()
    pool, volume = opened(directory)
    assert admin.info(pool, "v")["mapped"] == 2 * BLOCK
    pool.close()


def test_a_death_while_the_pool_grows_loses_nothing_that_was_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before that commit nobody may have a block that only the larger pool has."""
    directory = tmp_path / "pool"
    create_pool(directory, size=8 * BLOCK, settings=Settings(on_full="error"))
    pool = Pool.open(directory)
    admin.create(pool, "v", 16 * BLOCK)
    volume = pool.open_volume("v")
    volume.pwrite(b"a" * 8 * BLOCK, 0)
    answered: list[int] = []

    class Death(BaseException):
        pass

    def die_before_the_commit() -> None:
        for number in (8, 9):
            try:
                volume.pwrite(b"b" * BLOCK, number * BLOCK)
                answered.append(number)
            except NoSpace:
                pass
        raise Death

    with monkeypatch.context() as patch:
        patch.setattr(pool.core, "flush", die_before_the_commit)
        with pytest.raises(Death):
            admin.grow(pool, 16 * BLOCK)
    die(pool)
    pool, volume = opened(directory)
    found = blocks(volume)
    assert found[:8] == b"a" * 8
    assert all(found[number : number + 1] == b"b" for number in answered)
    admin.grow(pool, 16 * BLOCK)
    volume.pwrite(b"c" * 8 * BLOCK, 8 * BLOCK)
    assert blocks(volume) == b"a" * 8 + b"c" * 8
    pool.close()


def pool_generation(directory: Path) -> int:
    store = LmdbStore(directory / "metadata.lmdb", read_only=True)
    try:
        return store.generation
    finally:
        store.close()


@pytest.mark.parametrize("begin", [0, 60, 1 << 40])
def test_a_contradiction_ends_it_and_the_pool_opens(
    directory: Path, begin: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The data block is taken, or the range reaches past the end of the device."""
    pool, volume = opened(directory)
    volume.pwrite(b"a" * BLOCK, 0)
    pool.close()
    changes = RecentChanges(pool.core.recent._paths, pool.record.uuid)
    changes.begin(pool_generation(directory))
    changes.inserted(volume.dev_id, 4, 9, 1)
    changes.inserted(volume.dev_id, 5, begin, 8)
    changes.inserted(volume.dev_id, 14, 11, 1)
    changes.close()
    pool, volume = opened(directory)
    assert "volume 'v': something that was answered is lost: change 1 is at odds" in caplog.text
    assert admin.info(pool, "v")["mapped"] == 2 * BLOCK
    uuid = volume.uuid
    assert pool.core.ledger.lost(uuid)
    ranges = pool.core.losses.of(uuid)[0]["ranges"]
    assert ranges == [[5 * BLOCK, 8 * BLOCK], [14 * BLOCK, BLOCK]]
    pool.close()


def test_after_a_failure_of_the_data_device_nothing_comes_back(directory: Path) -> None:
    """The client was told that its flush failed, or will be when it opens the volume."""
    pool, volume = opened(directory)
    volume.pwrite(b"a" * BLOCK, 0)
    pool.device.fail(DeviceError("the disk is gone", 5))
    with pytest.raises(DeviceError):
        pool.core.sync()
    die(pool)
    pool, volume = opened(directory)
    assert blocks(volume) == bytes(16)
    with pytest.raises(LossNotAccepted, match="is lost"):
        pool.open_volume("v", guest=Guest("a client"))
    pool.close()


def test_a_reader_leaves_the_leftovers_alone(directory: Path) -> None:
    pool, volume = opened(directory)
    volume.pwrite(b"a" * BLOCK, 0)
    die(pool)
    reader = Pool.open(directory, read_only=True)
    reader.close()
    pool, volume = opened(directory)
    assert blocks(volume)[:1] == b"a"
    pool.close()
