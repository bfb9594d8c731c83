"""A client's flush that syncs notes in place of a commit: what that makes durable, and when.

A power cut is a death after which the machine's boot has another id: then only what was flushed may
count. That what was not synced is lost as well is the matter of tests/powerloss.
"""

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.data.rigs import PATIENCE, finish, spin, threads
from tests.unit.data.test_recent import BLOCK, UUID, block, blocks, die, opened, pool_generation
from thinmeta.check import check
from thinmeta.errors import Corrupt, NoMetadataSpace, StoreError
from thinmeta.store.lmdb import LmdbStore
from thinmeta.thin import ThinMetadata
from thinpoold import admin, boot, discard, poolfiles, recent
from thinpoold.device import DataDevice
from thinpoold.errors import (
    DeviceError,
    LossNotAccepted,
    NotRecovered,
    PoolStopped,
    ThinPoolError,
)
from thinpoold.ledger import Guest
from thinpoold.modes import Mode
from thinpoold.notes import Change, Leftover, read
from thinpoold.pool import Pool, create_pool
from thinpoold.recent import RecentChanges

FULL = NoMetadataSpace("the disk is full")


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A pool of 64 blocks with the volume v of 16; sound in the end."""
    create_pool(tmp_path / "pool", size=64 * BLOCK)
    pool = Pool.open(tmp_path / "pool")
    admin.create(pool, "v", 16 * BLOCK)
    pool.close()
    yield tmp_path / "pool"
    store = LmdbStore(tmp_path / "pool/metadata.lmdb", read_only=True)
    result = check(store)
    store.close()
    assert result.ok, [str(problem) for problem in result.errors]


@pytest.fixture
def paths(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "recent-0", tmp_path / "recent-1"


@pytest.fixture
def reboot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """The machine comes up anew: its boot gets another id."""
    boots = iter(range(100))

    def again() -> None:
        path = tmp_path / "boot_id"
        path.write_text(f"{next(boots):032x}\n")
        monkeypatch.setattr(boot, "BOOT_ID", path)

    return again


def fail_commits(
    monkeypatch: pytest.MonkeyPatch, error: Exception, fails: Callable[[], bool] = lambda: True
) -> None:
    real: Callable[..., None] = LmdbStore.commit

    def commit(self: LmdbStore, *arguments: object) -> None:
        if fails():
            raise error
        real(self, *arguments)

    monkeypatch.setattr(LmdbStore, "commit", commit)


# --- the files --------------------------------------------------------------------------------


def flush(changes: RecentChanges) -> None:
    assert changes.prepare()
    assert changes.mark()
    assert changes.sync()


def test_after_another_boot_what_was_marked_counts_and_no_more(
    paths: tuple[Path, Path], reboot: Callable[[], None]
) -> None:
    changes = RecentChanges(paths, UUID)
    changes.begin(1)
    changes.inserted(1, 1, 11, 1)
    flush(changes)
    assert not changes.prepare()
    # Follows on, but what is marked is left alone.
    changes.inserted(1, 2, 12, 1)
    changes.prepare()
    changes.inserted(1, 3, 13, 1)  # while the data is flushed
    assert changes.mark()
    assert changes.sync()
    changes.removed(1, 0, 1)
    changes.close()
    all_of_them = [
        Change(1, 1, 1, 11),
        Change(1, 2, 1, 12),
        Change(1, 3, 1, 13),
        Change(1, 0, 1, None),
    ]
    assert RecentChanges(paths, UUID).leftovers() == [Leftover(1, all_of_them, 2)]
    reboot()
    assert RecentChanges(paths, UUID).leftovers() == [Leftover(1, all_of_them[:2], 2)]


def test_what_an_earlier_use_left_is_no_record(paths: tuple[Path, Path]) -> None:
    """Each use of a file writes fewer records than the one before, at the same places."""
    changes = RecentChanges(paths, UUID)
    changes.begin(1)
    for use in range(6):
        for number in range(12 - 2 * use):
            changes.inserted(1, 2 * number, 100 * use + number, 1)
        flush(changes)
        changes.freeze()
    changes.inserted(1, 7, 7, 1)
    changes.close()
    kept = RecentChanges(paths, UUID).leftovers()
    assert [(left.generation, len(left.changes)) for left in kept] == [(6, 2), (7, 1)]


def test_a_new_beginning_leaves_nothing_of_the_last(
    paths: tuple[Path, Path], reboot: Callable[[], None]
) -> None:
    changes = RecentChanges(paths, UUID)
    changes.begin(1)
    changes.inserted(1, 1, 1, 1)
    flush(changes)
    changes.freeze()
    changes.inserted(1, 2, 2, 1)
    flush(changes)
    changes.close()
    again = RecentChanges(paths, UUID)
    again.begin(1)
    again.close()
    assert [left.changes for left in again.leftovers()] == [[]]
    reboot()
    assert RecentChanges(paths, UUID).leftovers() == []


@pytest.mark.parametrize("begun_again", [False, True])
def test_an_end_leaves_what_was_flushed(paths: tuple[Path, Path], begun_again: bool) -> None:
    changes = RecentChanges(paths, UUID)
    changes.begin(1)
    changes.inserted(1, 1, 11, 1)
    flush(changes)
    changes.inserted(1, 5, 15, 1)
    changes.prepare()
    changes.inserted(1, 7, 17, 1)
    assert changes.mark()  # and then its sync failed
    if begun_again:
        changes.freeze()
        changes.inserted(1, 9, 19, 1)
    assert changes.flushed(1) == [Change(1, 1, 1, 11)]
    assert changes.flushed(2) == []
    changes.abandon()
    assert changes.flushed(1) == [Change(1, 1, 1, 11)]
    changes.erase()
    found = RecentChanges(paths, UUID).leftovers()
    assert found[0] == Leftover(1, [Change(1, 1, 1, 11)], 1)
    assert all(left.changes == [] for left in found[1:])


def test_no_mark_is_made_past_the_room_made_for_it(
    paths: tuple[Path, Path], reboot: Callable[[], None]
) -> None:
    changes = RecentChanges(paths, UUID)
    changes.begin(1)
    size = paths[0].stat().st_size
    marked = 0
    while changes.room():
        changes.inserted(1, 3 * marked, marked, 1)
        changes.prepare()
        if not changes.mark():
            break
        assert changes.sync()
        marked += 1
    assert marked > 1000
    assert paths[0].stat().st_size == size
    for number in range(5):
        changes.removed(1, number, number + 1)
    assert paths[0].stat().st_size > size
    changes.freeze()
    changes.freeze()
    assert paths[0].stat().st_size == size
    assert changes.room()
    changes.close()


# --- the pool ---------------------------------------------------------------------------------


def test_a_flush_is_no_commit_and_outlives_a_power_cut(
    directory: Path, reboot: Callable[[], None]
) -> None:
    pool, volume = opened(directory)
    generation = pool.metadata.generation
    volume.pwrite(b"a" * 3 * BLOCK, 0)
    pool.core.sync()
    discard.trim(volume, BLOCK, BLOCK)
    volume.pwrite(b"b" * BLOCK, 5 * BLOCK)
    pool.core.sync()
    volume.pwrite(b"c" * BLOCK, 7 * BLOCK)
    assert pool.metadata.generation == generation
    die(pool)
    reboot()
    pool, volume = opened(directory)
    assert blocks(volume) == b"a\0a\0\0b" + bytes(10)
    pool.close()
    # The files stay, for a disk that is full by then, and hold nothing.
    for path in directory.glob("recent-*"):
        assert read(path, boot.current().id, pool.record.uuid) is None


def test_what_was_flushed_is_committed_by_the_timer(directory: Path) -> None:
    pool, volume = opened(directory)
    volume.pwrite(b"a" * BLOCK, 0)
    pool.core.sync()
    generation = pool.metadata.generation
    pool.start()
    pool.core.timer.kick()
    spin(lambda: pool.metadata.generation > generation)
    assert pool.metadata.generation == generation + 1
    pool.close()


def test_flushes_between_commits_outlive_power_cuts_again_and_again(
    directory: Path, reboot: Callable[[], None]
) -> None:
    expected = bytearray(16)
    for number in range(12):
        pool, volume = opened(directory)
        for step in range(4):
            at, letter = (5 * number + 3 * step) % 16, b"abcdefghijkl"[number : number + 1]
            volume.pwrite(letter * BLOCK, at * BLOCK)
            expected[at : at + 1] = letter
            if step == number % 4:
                pool.core.flush()
            else:
                pool.core.sync()
        discard.trim(volume, (number * 7 % 16) * BLOCK, BLOCK)
        expected[number * 7 % 16] = 0
        pool.core.sync()
        die(pool)
        if number % 3:
            reboot()
        pool, volume = opened(directory)
        assert blocks(volume) == bytes(expected)
        if number % 2:
            pool.close()
        else:
            die(pool)


def test_a_snapshot_keeps_what_the_volume_had_when_a_broken_sharing_was_flushed(
    directory: Path, reboot: Callable[[], None]
) -> None:
    pool, volume = opened(directory)
    volume.pwrite(b"a" * 4 * BLOCK, 0)
    admin.snapshot(pool, [("v", "s")])
    volume.pwrite(b"b" * BLOCK, BLOCK)
    discard.trim(volume, 2 * BLOCK, BLOCK)
    pool.core.sync()
    # Not its alone before a commit.
    pool.open_volume("s").pwrite(b"s" * BLOCK, 2 * BLOCK)
    die(pool)
    reboot()
    pool, volume = opened(directory)
    assert blocks(volume)[:4] == b"ab\0a"
    assert blocks(pool.open_volume("s"))[:4] == b"aaaa"
    pool.close()


def unnoted(pool: Pool, patch: pytest.MonkeyPatch) -> None:
    with pool.core.changing():
        pool.core.begin_change()
        pool.metadata.set_transaction_id(77)


def little_room(pool: Pool, patch: pytest.MonkeyPatch) -> None:
    facts = os.statvfs(pool.device.path)
    little = os.statvfs_result((facts.f_bsize, 512, 9, 9, 9, *facts[5:]))
    patch.setattr(os, "fstatvfs", lambda fd: little)


def room_unknown(pool: Pool, patch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "no")

    patch.setattr(os, "fstatvfs", fail)


def no_place(pool: Pool, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(recent, "_ROOM", 512)


def not_noted(pool: Pool, patch: pytest.MonkeyPatch) -> None:
    pool.core.recent._failed(OSError(errno.ENOSPC, "full"))


def not_synced(pool: Pool, patch: pytest.MonkeyPatch) -> None:
    real, notes = os.fdatasync, pool.core.recent._fd

    def fail(fd: int) -> None:
        if fd == notes:
            raise OSError(errno.EIO, "no")
        real(fd)

    patch.setattr(os, "fdatasync", fail)


def pressed(pool: Pool, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(type(pool.metadata), "pressure", 1)


@pytest.mark.parametrize(
    "why",
    [unnoted, little_room, room_unknown, no_place, not_noted, not_synced, pressed],
    ids=lambda why: why.__name__,
)
def test_a_flush_is_a_commit_where_notes_are_not_enough(
    directory: Path,
    reboot: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    why: Callable[[Pool, pytest.MonkeyPatch], None],
) -> None:
    pool, volume = opened(directory)
    volume.pwrite(b"a" * BLOCK, 0)
    generation = pool.metadata.generation
    with monkeypatch.context() as patch:
        why(pool, patch)
        pool.core.sync()
        assert pool.metadata.generation == generation + 1
    volume.pwrite(b"b" * BLOCK, BLOCK)
    pool.core.sync()
    # After a sync that failed none is tried any more.
    assert pool.metadata.generation == generation + (2 if why is not_synced else 1)
    die(pool)
    reboot()
    pool, volume = opened(directory)
    assert blocks(volume)[:2] == b"ab"
    pool.close()


def test_a_round_is_a_commit_when_one_of_those_who_wait_wants_that(directory: Path) -> None:
    pool, volume = opened(directory)
    volume.pwrite(b"a" * BLOCK, 0)
    core = pool.core
    generation = pool.metadata.generation
    with threads() as workers, core.lock:
        first = workers.submit(core.sync)
        spin(lambda: core.committer._leading)
        rest = [workers.submit(one) for one in (core.sync, core.flush, core.sync)]
        spin(lambda: len(vars(core.committer._changed)["_waiters"]) == 3)
        core.lock.release()
        try:
            finish(first, *rest)
        finally:
            assert core.lock.acquire(timeout=PATIENCE)
    assert pool.metadata.generation == generation + 1
    pool.close()


# --- failures ---------------------------------------------------------------------------------


def prepared(directory: Path) -> tuple[Pool, Any]:
    """Block 0 is committed, 1 was flushed, 2 was not."""
    pool, volume = opened(directory)
    volume.pwrite(b"a" * BLOCK, 0)
    pool.commit()
    volume.pwrite(b"b" * BLOCK, BLOCK)
    discard.trim(volume, 0, BLOCK)
    pool.core.sync()
    volume.pwrite(b"c" * BLOCK, 2 * BLOCK)
    return pool, volume


@pytest.mark.parametrize("boots", [False, True], ids=["killed", "power"])
@pytest.mark.parametrize("closed", [False, True], ids=["died", "closed"])
@pytest.mark.parametrize("error", [FULL, StoreError(errno.EIO), Corrupt("node", "7", "bad")])
def test_going_back_keeps_what_was_answered_or_says_that_it_is_lost(
    directory: Path,
    reboot: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    closed: bool,
    boots: bool,
) -> None:
    pool, volume = prepared(directory)
    lost = isinstance(error, Corrupt)
    expected = b"\0b\0" if lost else b"\0bc"
    with monkeypatch.context() as patch:
        fail_commits(patch, error)
        with pytest.raises(type(error)):
            pool.core.flush()
        assert pool.core.modes.mode is Mode.READ_ONLY
        assert blocks(volume)[:3] == expected
        if lost:
            with pytest.raises(PoolStopped):
                pool.core.sync()
        else:
            pool.core.sync()
            with pytest.raises(type(error)):
                pool.core.flush()
        if closed and not lost:
            with pytest.raises(type(error)):
                pool.close()
        else:
            pool.close() if closed else die(pool)
    if boots:
        reboot()
    reader = Pool.open(directory, looking=True)
    assert block(reader.open_volume("v"), 0) == b"a", "a reader shows the last commit"
    reader.close()
    pool, volume = opened(directory)
    assert blocks(volume)[:3] == expected
    assert pool.core.modes.mode is Mode.WRITE
    assert pool.core.ledger.lost(volume.uuid) is lost
    pool.close()


def test_damage_is_marked_in_one_commit_with_what_was_flushed(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, volume = prepared(directory)
    calls = iter([True, False, False])
    with monkeypatch.context() as patch:
        fail_commits(patch, Corrupt("node", "7", "bad"), lambda: next(calls))
        with pytest.raises(Corrupt):
            pool.core.flush()
    pool.close()
    pool, volume = opened(directory)
    assert pool.metadata.needs_check
    assert blocks(volume)[:3] == b"\0bc"
    pool.close()


@pytest.mark.parametrize("closed", [False, True])
def test_a_data_device_that_fails_a_flush_loses_nothing_of_an_earlier_one(
    directory: Path, monkeypatch: pytest.MonkeyPatch, reboot: Callable[[], None], closed: bool
) -> None:
    pool, volume = prepared(directory)

    def fail(self: DataDevice) -> None:
        raise DeviceError("no", errno.EIO)

    with monkeypatch.context() as patch:
        patch.setattr(DataDevice, "flush", fail)
        with pytest.raises(DeviceError):
            pool.core.sync()
    assert blocks(volume)[:3] == b"\0b\0"
    pool.close() if closed else die(pool)
    reboot()
    pool, volume = opened(directory)
    assert blocks(volume)[:3] == b"\0b\0"
    pool.close()


def test_a_pool_whose_notes_cannot_be_read_back_has_failed_and_keeps_them(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, _ = prepared(directory)
    notes = next(file.path for file in pool.core.recent._files if file.flushed)
    kept = notes.rename(notes.with_name("kept"))
    with monkeypatch.context() as patch:
        fail_commits(patch, FULL)
        with pytest.raises(NoMetadataSpace):
            pool.core.flush()
    assert pool.core.modes.mode is Mode.FAILED
    pool.close()
    kept.rename(notes)
    pool, volume = opened(directory)
    assert blocks(volume)[:3] == b"\0bc"
    pool.close()


@pytest.mark.parametrize("what", ["commit", "read"])
def test_a_pool_does_not_open_without_what_was_flushed(
    directory: Path, monkeypatch: pytest.MonkeyPatch, reboot: Callable[[], None], what: str
) -> None:
    pool, volume = prepared(directory)
    die(pool)
    reboot()

    real = poolfiles.read

    def fail(path: Path) -> bytes:
        if "recent" in path.name:
            raise OSError(errno.EIO, "no")
        return real(path)

    with monkeypatch.context() as patch:
        if what == "commit":
            fail_commits(patch, FULL)
        else:
            patch.setattr(poolfiles, "read", fail)
        for _ in range(2):
            with pytest.raises(NotRecovered, match="flushed"):
                Pool.open(directory)
    reader = Pool.open(directory, looking=True)
    assert block(reader.open_volume("v"), 0) == b"a"
    reader.close()
    pool, volume = opened(directory)
    assert blocks(volume)[:3] == b"\0b\0"
    pool.close()


def put_mark(directory: Path, pool: Pool) -> None:
    """Mark the metadata as in need of a check, below what was flushed: no daemon leaves that."""
    changes = RecentChanges(pool.core.recent._paths, pool.record.uuid)
    left = changes.leftovers()[-1]
    store = LmdbStore(directory / "metadata.lmdb")
    metadata = ThinMetadata.open(store)
    metadata.set_needs_check(True)
    metadata.commit()
    metadata.close()
    changes.begin(store.generation)
    store.close()
    for change in left.changes[: left.flushed]:
        if change.data_block is None:
            changes.removed(change.dev_id, change.block, change.block + change.count)
        else:
            changes.inserted(change.dev_id, change.block, change.data_block, change.count)
    flush(changes)
    changes.close()


def test_a_pool_that_needs_a_check_keeps_what_was_flushed(
    directory: Path, reboot: Callable[[], None]
) -> None:
    pool, volume = prepared(directory)
    die(pool)
    put_mark(directory, pool)
    reboot()
    for _ in range(2):
        with pytest.raises(NotRecovered, match=r"2 changes that were flushed .* needs a check"):
            Pool.open(directory)
    reader = Pool.open(directory, looking=True)
    assert block(reader.open_volume("v"), 0) == b"a"
    reader.close()
    # One commit takes the mark away and has them.
    pool = Pool.open(directory, checked=True)
    die(pool)
    pool, volume = opened(directory)
    assert pool.core.modes.mode is Mode.WRITE
    assert blocks(volume)[:3] == b"\0b\0"
    pool.close()


def test_a_mark_stays_when_what_was_flushed_cannot_be_committed(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, _ = prepared(directory)
    die(pool)
    put_mark(directory, pool)
    with monkeypatch.context() as patch:
        fail_commits(patch, FULL)
        with pytest.raises(NotRecovered):
            Pool.open(directory, checked=True)
    with pytest.raises(NotRecovered, match="needs a check"):
        Pool.open(directory)
    pool = Pool.open(directory, checked=True)
    assert blocks(pool.open_volume("v"))[:3] == b"\0b\0"
    pool.close()


@pytest.mark.parametrize("boots", [False, True], ids=["killed", "power"])
def test_a_copy_of_the_directory_has_what_was_flushed(
    directory: Path, reboot: Callable[[], None], boots: bool
) -> None:
    pool, volume = prepared(directory)
    die(pool)
    copy = directory.with_name("copy")
    subprocess.run(["cp", "-a", directory, copy], check=True)
    if boots:
        reboot()
    for place in (copy, directory):
        pool, volume = opened(place)
        assert blocks(volume)[:3] == (b"\0b\0" if boots else b"\0bc")
        volume.pwrite(b"x" * BLOCK, 0)
        pool.core.sync()
        # Of its own from here on.
        die(pool)
        pool, volume = opened(place)
        assert blocks(volume)[:2] == b"xb"
        pool.close()


@pytest.mark.parametrize("error", [FULL, StoreError(errno.EIO)])
def test_what_was_answered_waits_until_it_can_be_committed(
    directory: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    pool, volume = opened(directory)
    volume.pwrite(b"a" * BLOCK, 0)
    die(pool)
    with monkeypatch.context() as patch:
        fail_commits(patch, error)
        for _ in range(2):
            with pytest.raises(NotRecovered, match="1 changes that were answered"):
                Pool.open(directory)
    pool, volume = opened(directory)
    assert block(volume, 0) == b"a"
    pool.close()


@pytest.mark.parametrize("commits", [True, False])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_data_device_that_fails_a_flush_at_opening_has_what_was_flushed_alone(
    directory: Path, monkeypatch: pytest.MonkeyPatch, frozen: bool, commits: bool
) -> None:
    """At later openings, too: the kernel tells once that it has dropped data."""
    pool, volume = prepared(directory)
    if frozen:
        with pool.core.lock:
            pool.metadata.freeze()
            pool.core.recent.freeze()
    volume.pwrite(b"d" * BLOCK, 3 * BLOCK)
    die(pool)

    real = DataDevice.flush
    told: list[bool] = []

    def fail(self: DataDevice) -> None:
        if told:
            real(self)
            return
        told.append(True)
        raise DeviceError("no", errno.EIO)

    with monkeypatch.context() as patch:
        patch.setattr(DataDevice, "flush", fail)
        if commits:
            pool, volume = opened(directory)
            assert blocks(volume)[:4] == b"\0b\0\0"
            with pytest.raises(LossNotAccepted):
                pool.open_volume("v", guest=Guest("a client"))
            die(pool)
        else:
            fail_commits(patch, FULL)
            with pytest.raises(NotRecovered, match="2 changes that were flushed"):
                Pool.open(directory)
    pool, volume = opened(directory)
    assert blocks(volume)[:4] == b"\0b\0\0"
    with pytest.raises(LossNotAccepted):
        pool.open_volume("v", guest=Guest("a client"))
    pool.core.sync()
    pool.close()


def test_a_data_device_that_still_fails_keeps_the_pool_shut(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written over pages that the kernel could not write."""
    pool, volume = prepared(directory)
    volume.pwrite(b"d" * BLOCK, 3 * BLOCK)
    die(pool)

    def fail(self: DataDevice) -> None:
        raise DeviceError("no", errno.EIO)

    with monkeypatch.context() as patch:
        patch.setattr(DataDevice, "flush", fail)
        for _ in range(2):
            with pytest.raises(DeviceError, match="no"):
                Pool.open(directory)
    pool, volume = opened(directory)
    assert blocks(volume)[:4] == b"\0b\0\0"
    with pytest.raises(LossNotAccepted):
        pool.open_volume("v", guest=Guest("a client"))
    pool.close()


def test_a_pool_whose_notes_cannot_be_ended_does_not_open(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, _ = prepared(directory)
    die(pool)

    def fail(self: DataDevice) -> None:
        raise DeviceError("no", errno.EIO)

    def fail_to_write(*arguments: object) -> None:
        raise OSError(errno.EROFS, "no")

    with monkeypatch.context() as patch:
        patch.setattr(DataDevice, "flush", fail)
        patch.setattr(recent, "_put_end", fail_to_write)
        with pytest.raises(NotRecovered, match="stays noted"):
            Pool.open(directory)


@pytest.mark.parametrize("what", ["contradiction", "no such commit"])
def test_what_was_flushed_and_cannot_be_right_is_not_passed_over(
    directory: Path, what: str
) -> None:
    pool, volume = opened(directory)
    volume.pwrite(b"a" * BLOCK, 0)
    pool.close()
    changes = RecentChanges(pool.core.recent._paths, pool.record.uuid)
    changes.begin(pool_generation(directory) + (what != "contradiction"))
    changes.inserted(volume.dev_id, 4, 9, 1)
    changes.inserted(volume.dev_id, 5, 0, 8)
    flush(changes)
    changes.close()
    with pytest.raises(NotRecovered, match="2 changes that were flushed"):
        Pool.open(directory)
    for path in changes._paths:
        path.unlink()
    Pool.open(directory).close()


class FaultyCalls:
    """The module `os` for `recent`: its `fail_at`-th call, and all after it if `stays`, fails."""

    def __init__(self, fail_at: int, stays: bool) -> None:
        self.fail_at, self.stays, self.calls = fail_at, stays, 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in ("pwrite", "fdatasync", "fsync", "ftruncate", "fstatvfs", "fstat"):
            return real

        def call(*arguments: Any) -> Any:
            number, self.calls = self.calls, self.calls + 1
            if number == self.fail_at or (self.stays and number > self.fail_at):
                raise OSError(errno.EIO, "told to fail")
            return real(*arguments)

        return call


@pytest.mark.parametrize("stays", [False, True], ids=["once", "from-then-on"])
@pytest.mark.parametrize("commits", [True, False], ids=["commits", "none"])
def test_whatever_call_fails_nothing_that_was_flushed_is_lost(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    reboot: Callable[[], None],
    stays: bool,
    commits: bool,
) -> None:
    """With the notes' calls failing in turn, and the store's commits taking place or not."""
    fail_at, reached = 0, True
    while reached:
        pool, volume = opened(directory)
        discard.trim(volume, 0, volume.size)
        pool.close()
        faulty = FaultyCalls(fail_at, stays)
        flushed: list[int] = []
        done = 0
        with monkeypatch.context() as patch:
            patch.setattr(recent, "os", faulty)
            pool, volume = opened(directory)
            if not commits:
                fail_commits(patch, FULL)
            try:
                for number in range(6):
                    volume.pwrite(bytes([number + 1]) * BLOCK, 2 * number * BLOCK)
                    done = number + 1
                    pool.core.flush() if number == 3 else pool.core.sync()
                    flushed.append(number)
            except (ThinPoolError, NoMetadataSpace):
                assert not commits
            die(pool)
        reboot()
        pool, volume = opened(directory)
        found = blocks(volume)[: 2 * 6 : 2]
        pool.close()
        for number in range(6):
            if number in flushed:
                assert found[number] == number + 1, (fail_at, number)
            elif number >= done:
                assert found[number] == 0
        fail_at, reached = fail_at + 1, faulty.calls > fail_at
    assert fail_at > 20
