"""Ways by which something answered can go without a word; each test fails while its way is open."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.data.test_flushed_notes import fail_commits
from tests.unit.data.test_losses import (
    AWAY,
    FULL,
    HERE,
    directory,
    fails_as_device,
    guests,
    noted_state,
    reboot,
    refused,
)
from tests.unit.data.test_recent import BLOCK, blocks, die
from thinmeta.errors import NoMetadataSpace
from thinmeta.store.lmdb import LmdbStore
from thinpoold import admin, discard, pagecache
from thinpoold.deletion import noted
from thinpoold.device import DataDevice
from thinpoold.errors import (
    ContentJumped,
    DeviceError,
    LossNotAccepted,
    PoolStopped,
    ThinPoolError,
    VolumeInUse,
)
from thinpoold.ledger import Guest, Ledger, Mark, State
from thinpoold.pool import Pool, create_pool
from thinpoold.volume import Volume

__all__ = ["directory", "reboot"]


def in_place(volume: Volume, octet: bytes) -> None:
    """Write the first block, which no note tells of when it was mapped before."""
    volume.pwrite(octet * BLOCK, 0)


def path_of(fd: int) -> str:
    return os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))


class FailOnce:
    """One call of a function of `os` on files of these names fails; the disk is well before and
    after. What a failed sync was to write stays unwritten, and no later sync writes it: so does a
    kernel, which marks the pages clean."""

    def __init__(self, patch: pytest.MonkeyPatch, call: str, *names: str, number: int = 0) -> None:
        self.failed: list[str] = []
        self._left = number
        real: Callable[..., Any] = getattr(os, call)

        def once(fd: int, *more: Any) -> Any:
            if not self.failed and path_of(fd) in names:
                if not self._left:
                    self.failed.append(path_of(fd))
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                self._left -= 1
            return real(fd, *more)

        patch.setattr(os, call, once)


def marks_on_disk(directory: Path, pool: Pool, uuid: bytes) -> Mark:
    """What the next process would find of a volume."""
    found = Ledger(directory / "ledger", pool.record.uuid).found
    return next((one.marks for one in found.entries.values() if one.uuid == uuid), Mark(0))


def death_with_a_write_error(directory: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> Pool:
    """The daemon dies; the next that flushes is told that a write-back has failed."""
    die(pool)
    with monkeypatch.context() as patch:
        patch.setattr(DataDevice, "flush", lambda self: fails_as_device())
        with pytest.raises(DeviceError):
            Pool.open(directory)
    return Pool.open(directory)


# --- 1: a mark of the ledger that was never written -----------------------------------------------


def test_a_client_is_not_let_in_by_a_mark_that_could_not_be_written(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pwrite of the ledger fails. The client tries again, as all do."""
    pool = Pool.open(directory)
    with monkeypatch.context() as patch:
        FailOnce(patch, "pwrite", "ledger")
        with pytest.raises(DeviceError):
            pool.open_volume("v", guest=HERE)
    volume = pool.open_volume("v", guest=HERE)
    in_place(volume, b"a")
    pool.commit()
    in_place(volume, b"b")
    assert marks_on_disk(directory, pool, volume.uuid) & Mark.WRITTEN
    pool = death_with_a_write_error(directory, pool, monkeypatch)
    # What it wrote last is lost.
    refused(pool)
    die(pool)


def test_who_comes_back_is_not_forgotten_for_a_mark_that_could_not_be_written(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = Pool.open(directory)
    with monkeypatch.context() as patch:
        FailOnce(patch, "pwrite", "ledger")
        with pytest.raises(DeviceError):
            pool.open_volume("v", guest=HERE)
    pool.open_volume("v", guest=HERE)
    die(pool)
    pool = Pool.open(directory)
    with pytest.raises(VolumeInUse):
        admin.delete(pool, ["v"])
    die(pool)


def test_a_client_elsewhere_is_not_let_in_by_a_mark_that_was_not_synced(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One fdatasync of the ledger fails, the client tries again, and a power cut forgets it."""
    pool = Pool.open(directory)
    synced: list[bytes] = []
    with monkeypatch.context() as patch:
        FailOnce(patch, "fdatasync", "ledger")
        with pytest.raises(DeviceError):
            pool.open_volume("v", guest=AWAY)
    real = os.fdatasync

    def fdatasync(fd: int) -> None:
        real(fd)
        if path_of(fd) == "ledger":
            synced.append((directory / "ledger").read_bytes())

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    try:
        pool.open_volume("v", guest=AWAY)
    except DeviceError:
        pass
    else:
        assert synced, "it was let in, and its mark was never synced"
    die(pool)


# --- 2: WRITTEN, taken back by a flush that began before ------------------------------------------


def all_flushed_but_anothers(directory: Path) -> tuple[Pool, Volume]:
    """A volume that is written, flushed and closed, and beside it a change to be made durable."""
    pool, volume = guests(directory)
    in_place(volume, b"a")
    pool.commit()
    pool.close_volume(volume)
    other = pool.open_volume("w", guest=HERE)
    other.pwrite(b"w" * BLOCK, 0)
    return pool, volume


def come_write_and_go(pool: Pool) -> None:
    again = pool.open_volume("v", guest=HERE)
    in_place(again, b"b")
    pool.close_volume(again)


def test_what_is_written_while_a_commit_is_written_stays_marked(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client comes, writes in place and goes while a round is past its flush of the data."""
    pool, volume = all_flushed_but_anothers(directory)
    real: Callable[..., None] = LmdbStore.commit

    def commit(self: LmdbStore, *arguments: Any) -> None:
        come_write_and_go(pool)
        real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(LmdbStore, "commit", commit)
        pool.core.flush()
    assert volume.uuid in pool.core.ledger.unwritten()
    # The write-back of those bytes fails, and the daemon dies, or is told; the client comes back.
    pool = death_with_a_write_error(directory, pool, monkeypatch)
    refused(pool)
    die(pool)


def test_what_is_written_while_notes_are_synced_stays_marked(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same, in a round of notes."""
    pool, volume = all_flushed_but_anothers(directory)
    real = pool.core.recent.sync

    def sync() -> bool:
        come_write_and_go(pool)
        return real()

    with monkeypatch.context() as patch:
        patch.setattr(pool.core.recent, "sync", sync)
        pool.core.sync()
    assert volume.uuid in pool.core.ledger.unwritten()
    die(pool)


# --- 3: notes vouched for after a sync of them has failed -----------------------------------------


class Disk:
    """What a power cut would leave of the notes: the pages that syncs have brought there.

    One sync fails, and the kernel marks the pages clean that it was to write, as all do: a later
    sync writes those that were written to since.
    """

    PAGE = 4096

    def __init__(self, patch: pytest.MonkeyPatch, directory: Path) -> None:
        self.paths = {name: directory / name for name in ("recent-0", "recent-1")}
        self.octets = {name: bytearray(path.read_bytes()) for name, path in self.paths.items()}
        self.dirty: dict[str, set[int]] = {name: set() for name in self.paths}
        self.fail_next = False
        self.failed = 0
        write = os.pwrite

        def pwrite(fd: int, octets: bytes, at: int) -> int:
            name = path_of(fd)
            if name in self.dirty:
                last = at + len(octets) - 1
                self.dirty[name] |= set(range(at // self.PAGE, last // self.PAGE + 1))
            return write(fd, octets, at)

        patch.setattr(os, "pwrite", pwrite)
        for call in ("fsync", "fdatasync"):
            patch.setattr(os, call, self._synced(getattr(os, call)))

    def _synced(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def sync(fd: int) -> None:
            name = path_of(fd)
            if name in self.dirty and (pages := self.dirty[name]):
                self.dirty[name] = set()
                if self.fail_next:
                    self.fail_next = False
                    self.failed += 1
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                for page in pages:
                    part = slice(page * self.PAGE, (page + 1) * self.PAGE)
                    self.octets[name][part] = self.paths[name].read_bytes()[part]
            real(fd)

        return sync

    def cut_power(self) -> None:
        for name, path in self.paths.items():
            path.write_bytes(self.octets[name])


def many(volume: Volume) -> None:
    """So many changes that their notes are more than a page."""
    for number in range(2):
        for at in range(0, 16, 2):
            volume.pwrite(bytes([1 + number]) * BLOCK, at * BLOCK)
        for at in range(0, 16, 2):
            discard.trim(volume, at * BLOCK, BLOCK)
    for at in range(1, 16, 2):
        for _ in range(7):
            discard.trim(volume, at * BLOCK, BLOCK)
            volume.pwrite(b"x" * BLOCK, at * BLOCK)


def test_no_client_is_told_that_all_is_well_after_the_timers_sync_of_notes_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reboot: Callable[..., None]
) -> None:
    """The store is full; the timer's round has the notes synced, which fails once, and logs it.

    No client was told of that. A client flushes, is told that all is well, and power is cut.
    """
    reboot()
    create_pool(tmp_path / "pool", size=512 * BLOCK)
    pool = Pool.open(tmp_path / "pool")
    admin.create(pool, "v", 16 * BLOCK)
    volume = pool.open_volume("v", guest=HERE)
    with monkeypatch.context() as patch:
        disk = Disk(patch, tmp_path / "pool")
        many(volume)
        fail_commits(patch, FULL)
        disk.fail_next = True
        with pytest.raises((ThinPoolError, NoMetadataSpace)):
            pool.core.commit_if_dirty()
        assert disk.failed
        before = blocks(volume)
        assert before == b"\0x" * 8
        try:
            pool.core.sync()
        except (ThinPoolError, NoMetadataSpace):
            die(pool)
            return
        die(pool)
        disk.cut_power()
    reboot()
    pool = Pool.open(tmp_path / "pool")
    try:
        volume = pool.open_volume("v", guest=HERE)
    except LossNotAccepted:
        die(pool)
        return
    assert blocks(volume) == before, (
        "a flush said that all is well, and nothing said that it is not"
    )
    die(pool)


def test_no_second_client_is_told_that_all_is_well_after_the_firsts_flush_has_failed(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit finds no room, and the sync of the notes fails: the first client is told."""
    pool, volume = guests(directory)
    other = pool.open_volume("w", guest=HERE)
    pool.commit()
    fail_commits(monkeypatch, FULL)
    volume.pwrite(b"a" * BLOCK, 0)
    other.pwrite(b"b" * BLOCK, 0)
    failing = FailOnce(monkeypatch, "fsync", "recent-0", "recent-1")
    outcomes = []
    pool.core.unnoted = True  # an administrator's change is on its way
    for _ in range(3):
        try:
            pool.core.sync()
            outcomes.append("well")
        except (ThinPoolError, NoMetadataSpace):
            outcomes.append("told")
    assert failing.failed
    assert outcomes == ["told"] * 3
    die(pool)


def test_a_flush_without_a_commit_that_could_not_sync_its_notes_is_not_vouched_for_by_them(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sync of the notes fails, and the commit instead finds no room."""
    pool, volume = guests(directory)
    pool.commit()
    fail_commits(monkeypatch, FULL)
    volume.pwrite(b"a" * BLOCK, 0)
    failing = FailOnce(monkeypatch, "fdatasync", "recent-0", "recent-1")
    with pytest.raises((ThinPoolError, NoMetadataSpace)):
        pool.core.sync()
    assert failing.failed
    die(pool)


# --- 4: clients elsewhere, and power cuts ---------------------------------------------------------


def test_an_orderly_restart_of_the_machine_does_not_forget_who_comes_back(
    directory: Path, reboot: Callable[..., None]
) -> None:
    """A client elsewhere was hung up on at the daemon's end, and connects to the next one."""
    reboot()
    pool, volume = guests(directory, AWAY)
    volume.pwrite(b"a" * BLOCK, 0)
    pool.close_volume(volume, comes_back=True)
    pool.close()
    reboot()
    pool = Pool.open(directory)
    with pytest.raises(VolumeInUse):
        admin.delete(pool, ["v"])
    die(pool)


@pytest.mark.parametrize("verb", ["rollback", "shrink"])
def test_an_orderly_restart_of_the_machine_lets_no_content_change_under_who_comes_back(
    directory: Path, reboot: Callable[..., None], verb: str
) -> None:
    reboot()
    pool, volume = guests(directory, AWAY)
    volume.pwrite(b"a" * BLOCK, 0)
    admin.snapshot(pool, [("v", "s")])
    pool.close_volume(volume, comes_back=True)
    pool.close()
    reboot()
    pool = Pool.open(directory)
    acts: dict[str, Callable[[], Any]] = {
        "rollback": lambda: admin.rollback(pool, "v", "s"),
        "shrink": lambda: admin.resize(pool, "v", BLOCK, shrink=True),
    }
    with pytest.raises(VolumeInUse):
        acts[verb]()
    die(pool)


def test_a_client_elsewhere_that_was_cut_off_before_a_power_cut_is_told(
    directory: Path, reboot: Callable[..., None]
) -> None:
    """The switch dies first, then the machine; the client connects again, and flushes."""
    reboot()
    pool, volume = guests(directory, AWAY)
    in_place(volume, b"a")
    pool.core.sync()
    in_place(volume, b"b")
    pool.close_volume(volume)
    # Nothing was flushed since.
    assert volume.uuid in pool.core.ledger.unwritten()
    die(pool)
    reboot()
    pool = Pool.open(directory)
    refused(pool)
    die(pool)


# --- 5: what was flushed, and is not shown --------------------------------------------------------


def test_all_that_was_flushed_is_shown_after_a_loss(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both files of notes were made durable by a suspended pool, then the data device fails."""
    pool, volume = guests(directory)
    volume.pwrite(b"a" * BLOCK, 0)
    first = True

    def commit(self: LmdbStore, *arguments: Any) -> None:
        nonlocal first
        if first:
            # On top of the commit that fails.
            volume.pwrite(b"b" * BLOCK, 5 * BLOCK)
        first = False
        raise FULL

    monkeypatch.setattr(LmdbStore, "commit", commit)
    with pytest.raises(NoMetadataSpace):
        pool.core.flush()
    pool.core.sync()
    assert blocks(volume)[:6] == b"a\0\0\0\0b"
    pool.device.fail(DeviceError("the disk is gone", errno.EIO))
    with pytest.raises((DeviceError, PoolStopped)):
        pool.core.sync()
    assert blocks(volume)[:6] == b"a\0\0\0\0b"
    die(pool)


# --- 6: a data device that was accepted -----------------------------------------------------------


def test_who_comes_back_to_an_older_data_device_is_told(directory: Path, tmp_path: Path) -> None:
    """An administrator put back an older copy, and accepted it: flushed bytes are gone."""
    pool = Pool.open(directory, serving=True)
    volume = pool.open_volume("v")
    in_place(volume, b"a")
    pool.close_volume(volume)
    pool.close()
    data = pool.record.data_file(directory)
    copy = tmp_path / "copy"
    shutil.copyfile(data, copy)
    life = os.getxattr(data, "user.thinpoold.life")
    pool = Pool.open(directory, serving=True)
    stable = pool.registry.get("v").stable_name
    volume = pool.open_volume(stable, guest=Guest("qemu"))
    in_place(volume, b"b")
    pool.core.sync()
    die(pool)
    data.unlink()
    shutil.copyfile(copy, data)
    os.setxattr(data, "user.thinpoold.pool", str(uuid.UUID(bytes=pool.record.uuid)).encode())
    os.setxattr(data, "user.thinpoold.life", life)
    with pytest.raises(DeviceError, match="older copy"):
        Pool.open(directory, serving=True)
    Pool.open(directory, accepting=True).close()
    pool = Pool.open(directory, serving=True)
    with pytest.raises((ContentJumped, LossNotAccepted)):
        pool.open_volume(stable, guest=Guest("qemu"))
    die(pool)


# --- 7: deleting what an administrator was told is not deleted ------------------------------------


def test_a_deletion_that_was_dropped_deletes_nothing(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the thread's look at the notes and its commit a round fails, and there is room again.

    It takes no more than a thread that waits for the round that fails, and the timer's tick.
    """
    pool, volume = guests(directory)
    in_place(volume, b"a")
    pool.commit()
    pool.close_volume(volume)
    real = pool.deletion._pending
    told: list[Exception] = []

    def look() -> list[int]:
        found: list[int] = []
        with monkeypatch.context() as patch:
            # An administrator's `delete v` is at its commit.
            fail_commits(patch, FULL)
            try:
                with pool.changing() as begin:
                    begin()
                    pool.remove_volume(pool.registry.get("v"))
                    found = noted(pool.metadata)
            except NoMetadataSpace as error:
                told.append(error)
        while pool.core.suspended is not None:
            pool.core._tick()
        monkeypatch.setattr(pool.deletion, "_pending", real)
        return found

    monkeypatch.setattr(pool.deletion, "_pending", look)
    pool.deletion.go_on()
    assert told
    # The administrator was told that nothing was deleted.
    volume = pool.open_volume("v", guest=HERE)
    assert blocks(volume)[:1] == b"a"
    die(pool)


# --- 8: a write error that nobody was told, of a file that the kernel has forgotten ---------------


def test_a_write_error_that_only_the_file_system_remembers(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the death and the start the file's inode was evicted, and with it what fdatasync
    would tell; syncfs knows."""
    pool, volume = guests(directory)
    in_place(volume, b"a")
    pool.commit()
    in_place(volume, b"b")
    die(pool)

    def told(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(pagecache, "sync_file_system", told)
        pool = Pool.open(directory)
    refused(pool)
    die(pool)


# --- 9: space ------------------------------------------------------------------------------------


def test_what_could_not_be_reclaimed_at_once_is_reclaimed_later(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, volume = guests(directory)
    free = pool.metadata.data_free
    volume.pwrite(b"a" * BLOCK, 0)
    pool.commit()
    discard.trim(volume, 0, BLOCK)
    with monkeypatch.context() as patch:
        patch.setattr(
            pool.core.reclaimer,
            "_synchronize",
            lambda: (_ for _ in ()).throw(MemoryError("not now")),
        )
        with pytest.raises(MemoryError):
            pool.commit()
    pool.commit()
    with pool.core.lock:
        pool.core.give_back_ahead()
        assert pool.metadata.data_free == free
    die(pool)


# --- 10: SYNCING that stays ---------------------------------------------------------------------


def test_a_state_that_could_not_be_written_once_does_not_stay(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, _ = guests(directory)
    with monkeypatch.context() as patch:
        FailOnce(patch, "pwrite", "ledger")
        with pytest.raises(DeviceError), pool.core.ledger.syncing():
            pass
    with pool.core.ledger.syncing():
        pass
    assert State.SYNCING not in noted_state(directory, pool)
    with pool.core.ledger.syncing():
        assert State.SYNCING in noted_state(directory, pool)
    die(pool)


# --- 11: who is forgotten for a mistake that was not his ------------------------------------------


def test_who_comes_back_and_could_not_be_served_is_not_forgotten(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon died under a client; its first attempt to come back finds no memory."""
    pool, _ = guests(directory)
    die(pool)
    pool = Pool.open(directory)

    def full(*arguments: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("thinpoold.pool.Volume", full)
        with pytest.raises(MemoryError):
            pool.open_volume("v", guest=HERE)
    with pytest.raises(VolumeInUse):
        admin.delete(pool, ["v"])
    die(pool)
