"""What is answered and lost: found at an opening or in a life, told, and not forgotten.

The table in `recovery` says which deaths lose what; each row has its tests here.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.data.rigs import spin, threads
from tests.unit.data.test_flushed_notes import fail_commits
from tests.unit.data.test_recent import BLOCK, blocks, die, opened
from thinmeta.errors import NoMetadataSpace, StoreError
from thinmeta.store.lmdb import LmdbStore
from thinpoold import admin, boot
from thinpoold.device import DataDevice
from thinpoold.errors import DeviceError, LossNotAccepted, PoolStopped, UserError
from thinpoold.ledger import Guest, Ledger, State, read
from thinpoold.modes import Mode
from thinpoold.pool import Pool, create_pool
from thinpoold.volume import Volume

HERE, AWAY = Guest("qemu (process 7)"), Guest("192.0.2.7", network=True)
FULL = NoMetadataSpace("the disk is full")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A pool with the volumes v and w, of 16 blocks each."""
    create_pool(tmp_path / "pool", size=64 * BLOCK)
    pool = Pool.open(tmp_path / "pool")
    for name in ("v", "w"):
        admin.create(pool, name, 16 * BLOCK)
    pool.close()
    return tmp_path / "pool"


@pytest.fixture
def reboot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    boots = iter(range(1, 100))

    def again(*, contained: bool = False) -> None:
        path = tmp_path / "boot_id"
        path.write_text(f"{next(boots):032x}\n")
        monkeypatch.setattr(boot, "BOOT_ID", path)
        monkeypatch.setattr(boot, "_is_mounted_over", lambda path: contained)

    return again


def guests(directory: Path, guest: Guest = HERE) -> tuple[Pool, Volume]:
    pool = Pool.open(directory)
    return pool, pool.open_volume("v", guest=guest)


def refused(pool: Pool, name: str = "v") -> None:
    with pytest.raises(LossNotAccepted, match=f"accept-loss {name}"):
        pool.open_volume(name, guest=HERE)


def served(pool: Pool, name: str = "v") -> None:
    pool.close_volume(pool.open_volume(name, guest=HERE))


def mode(pool: Pool) -> str:
    return pool.core.modes.mode.value


def noted_state(directory: Path, pool: Pool) -> State:
    """What the next process would find."""
    state = Ledger(directory / "ledger", pool.record.uuid).found.state
    assert state is not None
    return state


def fails(*arguments: object, **more: object) -> Any:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


# --- a write error, told once ---------------------------------------------------------------------


def test_an_error_that_the_write_out_was_told_is_known_after_a_death(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, volume = guests(directory)
    volume.pwrite(b"a" * BLOCK, 0)
    pool.commit()
    volume.pwrite(b"b" * BLOCK, 0)
    with monkeypatch.context() as patch:
        patch.setattr("thinpoold.writeout._write_file", fails)
        patch.setattr(pool.device.writeout, "_settle", lambda: None)
        account = volume.account
        account.pending = account.unwritten = pool.device.writeout.limit_bytes
        pool.device.writeout._pending = pool.device.writeout._unwritten = account.pending
        pool.device.writeout._accounts.add(account)
        pool.device.writeout._look()
    # The daemon knows; a flush of this life fails, though the kernel would not say so again.
    assert pool.device.failed is not None
    die(pool)
    pool = Pool.open(directory)
    refused(pool)
    served(pool, "w")
    assert "write" in pool.core.losses.of(volume.uuid)[0]["why"]
    # Others go on.
    assert pool.core.modes.mode is Mode.WRITE
    pool.open_volume("w").pwrite(b"w" * BLOCK, 0)
    pool.core.sync()
    pool.close()


def test_no_flush_succeeds_after_the_write_out_was_told(directory: Path) -> None:
    pool, volume = guests(directory)
    volume.pwrite(b"a" * BLOCK, 0)
    pool.device._not_out(OSError(errno.EIO, "no"))
    for _ in range(2):
        with pytest.raises((DeviceError, PoolStopped)):
            pool.core.sync()
    assert pool.core.ledger.lost(volume.uuid)
    die(pool)


@pytest.mark.parametrize("marked", [True, False], ids=["noted", "not-noted"])
def test_no_flush_succeeds_where_a_loss_cannot_be_noted(
    directory: Path, monkeypatch: pytest.MonkeyPatch, marked: bool
) -> None:
    pool, volume = guests(directory)
    volume.pwrite(b"a" * BLOCK, 0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fails)
        if not marked:
            patch.setattr(os, "pwrite", fails)
        with pytest.raises((DeviceError, PoolStopped)):
            pool.core.sync()
    for _ in range(2):
        with pytest.raises((DeviceError, PoolStopped)):
            pool.core.sync()
    die(pool)


def test_an_error_told_at_an_opening_is_known_to_the_next(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a command opens the pool between the daemon's death and its next start."""
    pool, volume = guests(directory)
    volume.pwrite(b"a" * BLOCK, 0)
    pool.commit()
    # In place: no note tells of it.
    volume.pwrite(b"b" * BLOCK, 0)
    die(pool)
    with monkeypatch.context() as patch:
        patch.setattr(DataDevice, "flush", lambda self: fails_as_device())
        with pytest.raises(DeviceError):
            Pool.open(directory)
    pool = Pool.open(directory)
    refused(pool)
    served(pool, "w")
    pool.close()


def fails_as_device() -> None:
    raise DeviceError("flush of the data device: Input/output error", errno.EIO)


def test_who_only_looks_leaves_the_data_device_alone(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, volume = guests(directory)
    volume.pwrite(b"a" * BLOCK, 0)
    die(pool)
    before = {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}
    with monkeypatch.context() as patch:
        for call in ("fdatasync", "fsync"):
            patch.setattr(os, call, fails)
        looked = Pool.open(directory, looking=True)
        assert admin.status(looked)["mode"] == "write"
        assert len(admin.list_volumes(looked)["volumes"]) == 2
        looked.close()
    after = {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}
    for name in before.keys() - {"metadata.lmdb-lock", "lock"}:
        assert after[name] == before[name], name


@pytest.mark.parametrize("regular", [True, False], ids=["file", "block-device"])
@pytest.mark.parametrize("well", [True, False], ids=["well", "failed"])
def test_a_death_while_an_error_may_have_been_told(
    directory: Path, monkeypatch: pytest.MonkeyPatch, regular: bool, well: bool
) -> None:
    """A file's errors its file system knows; of a block device nobody does."""
    pool, volume = guests(directory)
    volume.pwrite(b"a" * BLOCK, 0)
    pool.core.ledger.note(State.SYNCING, on=True)
    die(pool)
    with monkeypatch.context() as patch:
        if not well:
            patch.setattr("thinpoold.pagecache.sync_file_system", fails)
        if not regular:
            real = DataDevice._find_size

            def block_device(self: DataDevice) -> int:
                self.regular = False
                return real(self)

            patch.setattr(DataDevice, "_find_size", block_device)
            patch.setattr("thinpoold.identity.check_ours", lambda *arguments: None)
        pool = Pool.open(directory)
        if regular and well:
            served(pool)
        else:
            refused(pool)
        pool.close()


def test_the_file_system_under_a_file_is_asked_for_real(directory: Path) -> None:
    pool = Pool.open(directory)
    pool.device.check_untold()
    pool.close()


# --- notes that are missing -----------------------------------------------------------------------


def test_a_death_with_changes_that_were_not_noted_is_a_loss(directory: Path) -> None:
    pool, volume = guests(directory)
    volume.pwrite(b"a" * BLOCK, 0)
    pool.core.recent._failed(OSError(errno.ENOSPC, "full"))
    volume.pwrite(b"b" * BLOCK, BLOCK)
    die(pool)
    pool, volume = opened(directory)
    assert blocks(volume)[:2] == b"a\0"
    refused(pool)
    served(pool, "w")
    pool.close()


def test_a_commit_makes_good_what_was_not_noted(directory: Path) -> None:
    pool, volume = guests(directory)
    pool.core.recent._failed(OSError(errno.ENOSPC, "full"))
    assert State.UNNOTED in noted_state(directory, pool)
    volume.pwrite(b"b" * BLOCK, BLOCK)
    pool.commit()
    assert State.UNNOTED not in noted_state(directory, pool)
    volume.pwrite(b"c" * BLOCK, 2 * BLOCK)
    die(pool)
    pool, volume = opened(directory)
    assert blocks(volume)[:3] == b"\0bc"
    served(pool)
    pool.close()


def test_going_back_with_changes_that_were_not_noted_is_a_loss(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, volume = guests(directory)
    pool.core.recent._failed(OSError(errno.ENOSPC, "full"))
    volume.pwrite(b"b" * BLOCK, BLOCK)
    with monkeypatch.context() as patch:
        fail_commits(patch, FULL)
        with pytest.raises(NoMetadataSpace):
            pool.core.sync()
    with pytest.raises(PoolStopped):
        pool.core.sync()
    pool.close()
    pool = Pool.open(directory)
    refused(pool)
    pool.close()


# --- boots ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("guest", [HERE, AWAY], ids=["here", "away"])
def test_a_power_cut_is_a_loss_to_clients_that_outlive_it(
    directory: Path, reboot: Callable[..., None], guest: Guest
) -> None:
    reboot()
    pool, volume = guests(directory, guest)
    volume.pwrite(b"a" * BLOCK, 0)
    pool.core.sync()
    volume.pwrite(b"b" * BLOCK, BLOCK)
    die(pool)
    reboot()
    pool, volume = opened(directory)
    assert blocks(volume)[:2] == b"a\0"
    if guest is AWAY:
        refused(pool)
    else:
        served(pool)
        # It died with the machine, and is not expected back.
        assert pool.core.ledger.absent(volume.uuid) is None
    pool.close()


def test_a_client_elsewhere_that_has_gone_loses_nothing_at_a_power_cut(
    directory: Path, reboot: Callable[..., None]
) -> None:
    reboot()
    pool, volume = guests(directory, AWAY)
    volume.pwrite(b"a" * BLOCK, 0)
    pool.core.sync()
    pool.close_volume(volume)
    # What it may have written since then is on disk when the timer has come round.
    pool.core._tick()
    die(pool)
    reboot()
    pool, volume = opened(directory)
    assert blocks(volume)[:1] == b"a"
    served(pool)
    pool.close()


def test_a_new_boot_id_of_a_container_loses_what_was_not_flushed_and_says_so(
    directory: Path, reboot: Callable[..., None]
) -> None:
    reboot(contained=True)
    pool, volume = guests(directory)
    volume.pwrite(b"a" * BLOCK, 0)
    pool.core.sync()
    volume.pwrite(b"b" * 2 * BLOCK, BLOCK)
    volume.pwrite(b"b" * BLOCK, 5 * BLOCK)
    die(pool)
    reboot(contained=True)
    pool, volume = opened(directory)
    assert blocks(volume)[:6] == b"a\0\0\0\0\0"
    refused(pool)
    served(pool, "w")
    (loss,) = pool.core.losses.of(volume.uuid)
    assert loss["ranges"] == [[BLOCK, 2 * BLOCK], [5 * BLOCK, BLOCK]]
    pool.close()


def test_a_restart_under_a_boot_id_that_never_changes_is_told_by_the_clock(
    directory: Path, reboot: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    reboot()
    pool, volume = guests(directory)
    volume.pwrite(b"a" * BLOCK, 0)
    pool.core.sync()
    volume.pwrite(b"b" * BLOCK, BLOCK)
    die(pool)
    monkeypatch.setattr(boot, "uptime_ns", lambda: 1)
    pool, volume = opened(directory)
    assert blocks(volume)[:2] == b"a\0"
    refused(pool)
    (loss,) = pool.core.losses.of(volume.uuid)
    assert loss["ranges"] == [[BLOCK, BLOCK]]
    pool.close()


def test_the_age_of_a_boot_is_noted_anew_with_each_commit(directory: Path) -> None:
    pool, volume = guests(directory)
    begun = boot.uptime_ns()
    volume.pwrite(b"a" * BLOCK, 0)
    pool.core.flush()
    die(pool)
    noted = read(directory / "ledger", pool.record.uuid).boot.uptime_ns
    assert begun < noted < boot.uptime_ns()


def test_a_new_boot_id_of_a_container_loses_nothing_that_was_flushed(
    directory: Path, reboot: Callable[..., None]
) -> None:
    reboot(contained=True)
    pool, volume = guests(directory)
    volume.pwrite(b"a" * BLOCK, 0)
    pool.core.sync()
    # In place: its data is in the page cache of a machine that lives, or its client died too.
    volume.pwrite(b"b" * BLOCK, 0)
    die(pool)
    reboot(contained=True)
    pool, volume = opened(directory)
    served(pool)
    # Whoever had it open may be in another container.
    pool.close()


# --- a commit that finds no room ------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "die", "reboot"])
def test_a_commit_without_room_loses_nothing_and_no_restart_forgets_it(
    directory: Path, monkeypatch: pytest.MonkeyPatch, reboot: Callable[..., None], how: str
) -> None:
    reboot()
    pool, volume = guests(directory)
    pool.commit()
    with monkeypatch.context() as patch:
        fail_commits(patch, FULL)
        for number in range(8):
            volume.pwrite(bytes([number + 1]) * BLOCK, 2 * number * BLOCK)
        with pytest.raises(NoMetadataSpace):
            pool.core.flush()
        assert pool.core.modes.mode is Mode.READ_ONLY
        # A client's flush is a promise that is kept.
        pool.core.sync()
        with pytest.raises(PoolStopped):
            volume.pwrite(b"x", 0)
        if how == "close":
            with pytest.raises(NoMetadataSpace):
                pool.close()
        else:
            die(pool)
    if how == "reboot":
        reboot()
    pool, volume = opened(directory)
    assert blocks(volume)[::2] == bytes(range(1, 9))
    served(pool)
    pool.close()


def test_a_pool_takes_writes_again_when_there_is_room(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, volume = guests(directory)
    volume.pwrite(b"a" * BLOCK, 0)
    with monkeypatch.context() as patch:
        fail_commits(patch, FULL)
        with pytest.raises(NoMetadataSpace):
            admin.create(pool, "late", BLOCK)
        pool.core._tick()
        assert mode(pool) == "read-only"
    # The administrator was told; the name is free.
    assert [one.name for one in pool.registry] == ["v", "w"]
    pool.core._tick()
    pool.core._tick()
    assert mode(pool) == "write"
    volume.pwrite(b"b" * BLOCK, BLOCK)
    pool.core.sync()
    die(pool)
    pool, volume = opened(directory)
    assert blocks(volume)[:2] == b"ab"
    assert [one.name for one in pool.registry] == ["v", "w"]
    pool.close()


RESERVED: dict[str, Callable[[Pool], Any]] = {
    "create": lambda pool: admin.create(pool, "late", BLOCK, reserve=16 * BLOCK),
    "delete": lambda pool: admin.delete(pool, ["r"]),
}


@pytest.mark.parametrize("act", RESERVED.values(), ids=RESERVED.keys())
def test_what_is_reserved_after_a_change_was_taken_back_is_as_before_it(
    directory: Path, monkeypatch: pytest.MonkeyPatch, act: Callable[[Pool], Any]
) -> None:
    pool = Pool.open(directory)
    admin.create(pool, "r", 32 * BLOCK, reserve=32 * BLOCK)
    volume = pool.open_volume("r")
    volume.pwrite(b"r" * 4 * BLOCK, 0)
    pool.close_volume(volume)
    assert pool.core.reservations.owed() == 28
    with monkeypatch.context() as patch:
        fail_commits(patch, FULL)
        with pytest.raises(NoMetadataSpace):
            act(pool)
    pool.core._tick()
    pool.core._tick()
    assert pool.core.modes.mode is Mode.WRITE
    assert pool.core.reservations.owed() == 28
    pool.close()


def test_a_suspended_pool_is_listed_whatever_its_volumes_have_mapped(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thinpoold.admin.facts._FEW_MAPPINGS", 2)
    pool = Pool.open(directory)
    pool.open_volume("v").pwrite(b"v" * 4 * BLOCK, 0)
    with monkeypatch.context() as patch:
        fail_commits(patch, FULL)
        with pytest.raises(NoMetadataSpace):
            pool.core.flush()
        assert pool.core.suspended is not None
        assert [one["name"] for one in admin.list_volumes(pool)["volumes"]] == ["v", "w"]
        assert admin.delete(pool, ["w"], dry_run=True)["freed"] == 0
    pool.close()


def test_a_change_that_another_rounds_failure_dropped_is_not_answered(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was made while that commit was written, and waits for the next round."""
    pool, volume = guests(directory)
    volume.pwrite(b"a" * BLOCK, 0)
    reached, go = threading.Event(), threading.Event()

    def fail_once(*arguments: object) -> None:
        reached.set()
        assert go.wait(60)
        monkeypatch.undo()
        raise StoreError(errno.EIO)

    monkeypatch.setattr(LmdbStore, "commit", fail_once)
    with threads(2) as workers:
        first = workers.submit(pool.core.flush)
        assert reached.wait(60)
        second = workers.submit(admin.create, pool, "late", BLOCK)
        spin(lambda: len(pool.registry) == 3)
        go.set()
        with pytest.raises(StoreError):
            first.result(60)
        with pytest.raises(PoolStopped, match="the change was dropped"):
            second.result(60)
    assert [one.name for one in pool.registry] == ["v", "w"]
    assert blocks(volume)[:1] == b"a"
    pool.core.sync()
    die(pool)
    pool, volume = opened(directory)
    assert blocks(volume)[:1] == b"a"
    pool.close()


def test_data_is_on_disk_before_notes_that_point_at_it_are_committed(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what was written after the round that failed had flushed the data."""
    pool, volume = guests(directory)
    volume.pwrite(b"a" * BLOCK, 0)
    order: list[str] = []
    real_flush, real_commit = DataDevice.flush, LmdbStore.commit

    def flush(self: DataDevice) -> None:
        real_flush(self)
        order.append("flush")

    def commit(self: LmdbStore, *arguments: Any) -> None:
        if "failed" not in order:
            volume.pwrite(b"b" * BLOCK, 5 * BLOCK)
            order.append("failed")
            raise StoreError(errno.EIO)
        real_commit(self, *arguments)
        order.append("commit")

    monkeypatch.setattr(DataDevice, "flush", flush)
    monkeypatch.setattr(LmdbStore, "commit", commit)
    with pytest.raises(StoreError):
        pool.core.flush()
    assert order == ["flush", "failed", "flush", "commit", "commit"]
    assert blocks(volume)[:6] == b"a\0\0\0\0b"
    die(pool)


def test_a_data_device_that_fails_before_the_notes_are_committed(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, volume = guests(directory)
    volume.pwrite(b"a" * BLOCK, 0)

    def commit(self: LmdbStore, *arguments: Any) -> None:
        monkeypatch.setattr(DataDevice, "flush", lambda self: fails_as_device())
        raise StoreError(errno.EIO)

    monkeypatch.setattr(LmdbStore, "commit", commit)
    with pytest.raises((StoreError, DeviceError)):
        pool.core.flush()
    monkeypatch.undo()
    with pytest.raises(PoolStopped):
        pool.core.sync()
    assert pool.core.ledger.lost(volume.uuid)
    die(pool)
    refused(pool := Pool.open(directory))
    pool.close()


def test_a_pool_whose_store_is_ill_waits_for_its_next_start(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, volume = guests(directory)
    volume.pwrite(b"a" * BLOCK, 0)
    with monkeypatch.context() as patch:
        fail_commits(patch, StoreError(errno.EIO))
        with pytest.raises(StoreError):
            pool.core.flush()
    for _ in range(5):
        pool.core._tick()
    assert pool.core.modes.mode is Mode.READ_ONLY
    assert blocks(volume)[:1] == b"a"
    die(pool)
    pool, volume = opened(directory)
    assert blocks(volume)[:1] == b"a"
    pool.close()


# --- an older commit ------------------------------------------------------------------------------


def test_a_store_that_opens_one_commit_back_is_read_and_vouches_for_nothing(
    directory: Path,
) -> None:
    """A bit of the number in LMDB's newer meta page is flipped."""
    pool, volume = guests(directory)
    volume.pwrite(b"a" * BLOCK, 0)
    pool.commit()
    generation = pool.metadata.generation
    pool.close()
    path = directory / "metadata.lmdb"
    octets = bytearray(path.read_bytes())
    # MDB_page's header has 16 bytes, and mm_txnid lies behind 0x80 of MDB_meta.
    places = [page * 4096 + 16 + 0x80 for page in (0, 1)]
    numbers = [int.from_bytes(octets[at : at + 8], "little") for at in places]
    assert max(numbers) == generation
    at = places[numbers.index(generation)]
    bit = next(bit for bit in range(8) if generation ^ 1 << bit < min(numbers))
    octets[at] ^= 1 << bit
    path.write_bytes(octets)
    pool = Pool.open(directory)
    assert pool.core.modes.mode is Mode.READ_ONLY
    assert f"the pool made commit {generation}" in pool.core.modes.reason
    with pytest.raises(PoolStopped):
        pool.core.sync()
    pool.close()
    store = LmdbStore(path, read_only=True)
    store.close()


# --- accepting ------------------------------------------------------------------------------------


def test_a_loss_is_accepted_once(directory: Path) -> None:
    pool, volume = guests(directory)
    volume.pwrite(b"a" * BLOCK, 0)
    pool.device.fail(DeviceError("the disk is gone", errno.EIO))
    with pytest.raises(DeviceError):
        pool.core.sync()
    pool.close()
    pool = Pool.open(directory)
    assert admin.status(pool)["lost"] == ["v"]
    with pytest.raises(UserError, match="nothing of volume 'w' is lost"):
        admin.accept_loss(pool, ["v", "w"])
    refused(pool)
    (fact,) = admin.accept_loss(pool, ["v"], dry_run=True)["volumes"]
    assert fact["losses"]
    refused(pool)
    # To look at it first is what snapshots are for.
    admin.snapshot(pool, [("v", "look")])
    served(pool, "look")
    generation = admin.info(pool, "v").get("generation")
    (fact,) = admin.accept_loss(pool, ["v"])["volumes"]
    if generation is not None:
        assert fact["generation"] == generation + 1
    served(pool)
    with pytest.raises(UserError, match="nothing of volume 'v' is lost"):
        admin.accept_loss(pool, ["v"])
    pool.close()
    pool = Pool.open(directory)
    served(pool)
    assert admin.status(pool)["lost"] == []
    pool.close()


def test_a_deleted_volume_takes_its_loss_along(directory: Path) -> None:
    pool = Pool.open(directory)
    uuid = pool.registry.get("v").uuid
    pool.core.ledger.lose([uuid])
    admin.delete(pool, ["v"])
    assert not pool.core.ledger.lost(uuid)
    pool.close()
