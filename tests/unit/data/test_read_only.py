"""A pool that is opened read-only: what it shows after each kind of death, and that it writes
nothing."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.readonly import contents
from tests.unit.data.test_losses import AWAY, HERE, directory, fails, guests, reboot
from tests.unit.data.test_recent import BLOCK, blocks, die
from thinmeta.thin import ThinMetadata
from thinpoold import admin, discard, pagecache
from thinpoold.errors import LossNotAccepted, PoolLocked, PoolStopped
from thinpoold.ledger import Guest, State
from thinpoold.modes import Mode
from thinpoold.pool import Pool

__all__ = ["directory", "reboot"]

Rebooting = Callable[..., None]


def worked_on(directory: Path, guest: Guest = HERE) -> Pool:
    """A pool whose volume v has blocks that are committed, flushed and neither, and holes."""
    pool, volume = guests(directory, guest)
    for number in range(4):
        volume.pwrite(b"c" * BLOCK, number * BLOCK)
    pool.commit()
    volume.pwrite(b"f" * BLOCK, BLOCK)
    volume.pwrite(b"f" * BLOCK, 5 * BLOCK)
    discard.trim(volume, 2 * BLOCK, BLOCK)
    pool.core.sync()
    volume.pwrite(b"u" * BLOCK, 6 * BLOCK)
    discard.trim(volume, 3 * BLOCK, BLOCK)
    return pool


def shown(pool: Pool) -> bytes | None:
    """What a client reads of v, a letter a block; None if it is not served."""
    try:
        volume = pool.open_volume("v", guest=HERE)
    except LossNotAccepted:
        return None
    try:
        return blocks(volume)
    finally:
        pool.close_volume(volume)


def shown_read_only(directory: Path) -> bytes | None:
    """As `shown`, of the pool opened read-only, which changes nothing."""
    before = contents(directory)
    pool = Pool.open(directory, read_only=True, serving=True)
    pool.start()
    try:
        assert pool.core.modes.mode is Mode.READ_ONLY
        found = shown(pool)
        pool.commit()
    finally:
        pool.close()
    assert contents(directory) == before
    return found


def shown_writing(directory: Path) -> bytes | None:
    pool = Pool.open(directory, serving=True)
    try:
        return shown(pool)
    finally:
        pool.close()


ALL = b"cf\0\0\0fu" + bytes(9)
FLUSHED = b"cf\0c\0f\0" + bytes(9)


def test_after_an_end_in_good_order(directory: Path) -> None:
    worked_on(directory).close()
    assert shown_read_only(directory) == ALL


def test_after_a_death_what_was_answered_is_shown(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    die(worked_on(directory))
    assert shown_read_only(directory) == ALL
    # Nobody has tried to give back what the trims have freed.
    assert "allocated" not in caplog.text
    # Again, for the first has left all to the next.
    assert shown_read_only(directory) == ALL
    assert shown_writing(directory) == ALL
    assert shown_read_only(directory) == ALL


def test_after_a_death_amid_a_commit(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = worked_on(directory)
    with pool.core.lock:
        # The two files follow one another.
        pool.metadata.freeze()
        pool.core.recent.freeze()
    pool.core.recent.inserted(0, 7, 20, 1)
    pool.device.write(b"l" * BLOCK, 20 * BLOCK)
    die(pool)
    expected = ALL[:7] + b"l" + ALL[8:]
    assert shown_read_only(directory) == expected
    assert shown_writing(directory) == expected


def test_after_another_boot_what_was_flushed_is_shown(directory: Path, reboot: Rebooting) -> None:
    reboot()
    die(worked_on(directory))
    reboot()
    assert shown_read_only(directory) == FLUSHED
    assert shown_writing(directory) == FLUSHED


def test_after_an_unknown_boot_what_was_answered_and_is_dropped_is_lost(
    directory: Path, reboot: Rebooting
) -> None:
    reboot(contained=True)
    die(worked_on(directory))
    reboot(contained=True)
    assert shown_read_only(directory) is None
    assert shown_writing(directory) is None


def test_what_a_client_elsewhere_was_answered_is_lost_after_another_boot(
    directory: Path, reboot: Rebooting
) -> None:
    reboot()
    die(worked_on(directory, AWAY))
    reboot()
    assert shown_read_only(directory) is None
    assert shown_writing(directory) is None


@pytest.mark.parametrize("state", [State.FAILED, State.UNNOTED])
def test_after_a_failure_that_was_noted(directory: Path, state: State) -> None:
    pool = worked_on(directory)
    pool.core.ledger.note(state, on=True, durable=True)
    die(pool)
    assert shown_read_only(directory) is None
    assert shown_writing(directory) is None


def test_after_a_death_amid_a_flush_only_a_start_that_may_write_can_ask(directory: Path) -> None:
    pool = worked_on(directory)
    with pool.core.ledger.syncing():
        die(pool)
    assert shown_read_only(directory) is None
    reader = Pool.open(directory, read_only=True)
    with pytest.raises(LossNotAccepted, match="start without --read-only can find out"):
        reader.open_volume("v", guest=HERE)
    (told,) = admin.accept_loss(reader, ["v"], dry_run=True)["volumes"]
    assert "only a start that may write can ask" in told["losses"][0]["why"]
    with pytest.raises(PoolStopped):
        admin.accept_loss(reader, ["v"])
    reader.close()
    assert shown_writing(directory) == ALL


@pytest.mark.parametrize("name", ["data", "ledger", "recent-0", "recent-1"])
def test_a_write_out_that_failed_after_the_death_is_asked_for(
    directory: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    die(worked_on(directory))
    with monkeypatch.context() as patch:
        _fail_sync_of(patch, name)
        assert shown_read_only(directory) is None
    # The file system's error is still there for whoever can note it.
    with monkeypatch.context() as patch:
        patch.setattr(pagecache, "sync_file_system", fails)
        assert shown_writing(directory) is None


def _fail_sync_of(patch: pytest.MonkeyPatch, name: str) -> None:
    real = os.fdatasync

    def sync(fd: int) -> None:
        if os.path.basename(os.readlink(f"/proc/self/fd/{fd}")) == name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    patch.setattr(os, "fdatasync", sync)


def test_the_file_system_is_not_asked_by_who_cannot_note_the_answer(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    die(worked_on(directory))
    asked: list[int] = []
    monkeypatch.setattr(pagecache, "sync_file_system", asked.append)
    assert shown_read_only(directory) == ALL
    assert not asked
    assert shown_writing(directory) == ALL
    assert asked


def test_a_store_that_opens_at_another_commit_is_shown_as_it_is(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = worked_on(directory)
    pool.commit()
    ledger, generation = pool.core.ledger, pool.metadata.generation
    pool.close()
    ledger = type(ledger)(directory / "ledger", pool.record.uuid)
    ledger.open()
    ledger.committed(generation + 1)
    ledger.end(clean=True)
    before = contents(directory)
    pool = Pool.open(directory, read_only=True, serving=True)
    assert "newest page is damaged" in pool.core.modes.reason
    assert shown(pool) == ALL
    with pytest.raises(PoolStopped):
        pool.core.sync()
    pool.close()
    assert contents(directory) == before


CHANGES: dict[str, Callable[[Pool], Any]] = {
    "create": lambda pool: admin.create(pool, "n", BLOCK),
    "snapshot": lambda pool: admin.snapshot(pool, [["v", "n"]]),
    "resize": lambda pool: admin.resize(pool, "v", 32 * BLOCK),
    "rename": lambda pool: admin.rename(pool, "v", "n"),
    "delete": lambda pool: admin.delete(pool, ["w"]),
    "rollback": lambda pool: admin.rollback(pool, "v", "w"),
    "set": lambda pool: admin.set_settings(pool, {"low_water": 5}),
    "set --volume": lambda pool: admin.set_settings(pool, {"iops": 5}, "v"),
    "grow": lambda pool: admin.grow(pool, 128 * BLOCK),
    "write": lambda pool: pool.open_volume("v").pwrite(b"x", 0),
    "zero": lambda pool: discard.zero(pool.open_volume("v"), 0, BLOCK, may_trim=True, fast=False),
    "trim": lambda pool: discard.trim(pool.open_volume("v"), 0, BLOCK),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_refused(directory: Path, change: str) -> None:
    die(worked_on(directory))
    before = contents(directory)
    pool = Pool.open(directory, read_only=True, serving=True)
    with pytest.raises(PoolStopped, match="read-only: it was started with --read-only"):
        CHANGES[change](pool)
    pool.close()
    assert contents(directory) == before


def test_many_may_read_and_nobody_writes_meanwhile(directory: Path) -> None:
    worked_on(directory).close()
    one = Pool.open(directory, read_only=True)
    lock_fd = os.open(directory / "lock", os.O_RDONLY)
    with pytest.raises(PoolLocked, match="is being read"):
        Pool.open(directory)
    os.close(lock_fd)
    one.close()
    Pool.open(directory).close()


def test_what_is_deleted_stays_half_deleted(directory: Path) -> None:
    pool = worked_on(directory)
    pool.core.modes.end()
    pool.deletion.stop()
    pool.close_volume(pool.core.volumes[next(iter(pool.core.volumes))])
    admin.delete(pool, ["v"], force=True)
    die(pool)
    before = contents(directory)
    pool = Pool.open(directory, read_only=True)
    pool.start()
    assert admin.status(pool)["deleting"] == 1
    pool.deletion.timer.kick()
    pool.close()
    assert contents(directory) == before


def test_an_export_holds_what_was_answered(directory: Path) -> None:
    die(worked_on(directory))
    pool = Pool.open(directory, read_only=True)
    with pool.store.snapshot() as store:
        metadata = ThinMetadata.open(store)
        mapped = metadata.details(0).mapped_blocks
        metadata.close()
    pool.close()
    # Of the letters, those that are no hole.
    assert mapped == 4
