"""Faults: the data device and the store fail at each call in turn.

After each: the client got the right error, the pool is in the mode that the invariants name, the
checker is silent, and what was committed is there, byte for byte, after a restart.
"""

import errno
import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.unit.data.rigs import BLOCK, PATIENCE, Rig, finish, read, spin, threads
from thinmeta.check import check
from thinmeta.errors import Corrupt, NoMetadataSpace, StoreError, ThinMetaError
from thinmeta.thin.devices import Devices
from thinpoold import admin, discard
from thinpoold.errnos import errno_of
from thinpoold.errors import DeviceError, NoSpace, PoolStopped, ThinPoolError
from thinpoold.extents import extents
from thinpoold.modes import Mode
from thinpoold.settings import CACHE, Settings
from thinpoold.volume import Volume


def prepare(directory: Path, *, notes: bool = False, **settings: Any) -> tuple[Rig, bytes]:
    """A committed volume, shared with a snapshot, over recycled blocks; and its bytes."""
    chosen = Settings(on_full="error", discard="nopassdown", **settings)
    rig = Rig(directory, settings=chosen, notes=notes)
    other = rig.create("other", size=64 * BLOCK)
    other.pwrite(b"\xa5" * other.size, 0)
    discard.trim(other, 0, other.size)
    rig.pool.commit()
    volume = rig.create()
    volume.pwrite(random.Random(3).randbytes(4 * BLOCK), 0)
    admin.snapshot(rig.pool, [["v", "s"]])
    volume.pwrite(b"own" * 1000, 5 * BLOCK)
    rig.pool.commit()
    return rig, read(volume)


# What a client changes one after the other: where, to what, and how unless by a write.
STEPS: list[tuple[int, bytes, Callable[[Volume, int, int], None] | None]] = [
    (5 * BLOCK, b"a" * 512, None),  # in place
    (512, b"b" * 512, None),  # breaks sharing
    (9 * BLOCK + 512, b"c" * 512, None),  # a new block, zeroed around
    (10 * BLOCK + 512, b"d" * (2 * BLOCK), None),  # a new run
    (2 * BLOCK + 512, bytes(BLOCK), partial(discard.zero, may_trim=False, fast=False)),
    (5 * BLOCK, bytes(BLOCK), discard.trim),
]


def scenario(rig: Rig, answered: list[int] | None = None) -> None:
    """Reads and writes of every kind, and a commit at the end.

    `answered` gets the number of each step that was answered.
    """
    volume = rig.pool.open_volume("v")
    read(volume, 0, 10)
    read(volume, BLOCK // 2, 2 * BLOCK)
    for number, (offset, data, function) in enumerate(STEPS):
        if function is None:
            volume.pwrite(data, offset)
        else:
            function(volume, offset, len(data))
        if answered is not None:
            answered.append(number)
    rig.pool.core.flush()
    rig.pool.core.reclaimer.drain()


def contents(before: bytes) -> list[bytes]:
    """What the volume holds before the first step, and after each."""
    found = [before]
    for offset, data, _ in STEPS:
        found.append(found[-1][:offset] + data + found[-1][offset + len(data) :])
    return found


def verify(rig: Rig, before: bytes, allowed: list[bytes]) -> None:
    """The checker is silent after a restart, the snapshot holds what it held.

    Each sector of the volume is as in one of `allowed`.
    """
    result = check(rig.store)
    assert result.ok, [str(problem) for problem in result.errors]
    rig.device.log = False
    rig.crash()
    old = before[: 4 * BLOCK] + bytes(len(before) - 4 * BLOCK)
    assert read(rig.pool.open_volume("s")) == old
    now = read(rig.pool.open_volume("v"))
    for begin in range(0, len(now) if now not in allowed else 0, 512):
        sector = slice(begin, begin + 512)
        assert now[sector] in [one[sector] for one in allowed], f"at {begin}"
    rig.close()


def failure_of(rig: Rig, answered: list[int]) -> Exception | None:
    try:
        scenario(rig, answered)
    except (DeviceError, NoSpace) as error:
        return error
    return None


def count_calls(directory: Path, cache: str, *, notes: bool) -> list[str]:
    rig, _ = prepare(directory, cache=cache, notes=notes)
    rig.device.log = True
    scenario(rig)
    calls = list(rig.device.calls)
    rig.close()
    return calls


@pytest.mark.parametrize("cache", CACHE)
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
@pytest.mark.parametrize("stays", [False, True], ids=["once", "from-then-on"])
@pytest.mark.parametrize("notes", [False, True], ids=["flushed", "noted"])
def test_the_data_device_fails_at_each_call(
    tmp_path: Path, number: int, stays: bool, cache: str, notes: bool
) -> None:
    """All that was answered is there after a restart: noted, or flushed without notes."""
    (tmp_path / "count").mkdir()
    calls = count_calls(tmp_path / "count", cache, notes=notes)
    assert {"read", "write", "write_all", "flush", "is_zero"} <= set(calls)
    for at, name in enumerate(calls):
        directory = tmp_path / f"{at}"
        directory.mkdir()
        rig, before = prepare(directory, cache=cache, notes=notes)
        rig.device.log, rig.device.fail_at = True, at
        rig.device.number, rig.device.stays = number, stays
        answered: list[int] = []
        failure = failure_of(rig, answered)
        if failure is not None:
            assert errno_of(failure) == number
        else:
            # There was room when a write within a block was tried once more.
            assert name in ("read", "write", "write_all", "is_zero")
            assert (number, stays) == (errno.ENOSPC, False)
        mode = rig.pool.core.modes.mode
        if name == "flush":
            # What was written may be lost: the transaction is dropped.
            assert mode is Mode.READ_ONLY
            with pytest.raises(PoolStopped):
                rig.pool.core.flush()
        elif number == errno.ENOSPC and name in ("write_all", "zero") and failure is not None:
            assert mode is Mode.OUT_OF_DATA_SPACE
        elif number == errno.ENOSPC and at >= calls.index("write"):
            assert mode in (Mode.OUT_OF_DATA_SPACE, Mode.WRITE)
        else:
            assert mode is Mode.WRITE
        # Of the step that failed each sector is old or new.
        done = contents(before)
        allowed = done[len(answered) : len(answered) + (1 if failure is None else 2)]
        if mode is Mode.READ_ONLY:
            allowed = done
        elif not notes:
            rig.device.log = False
            rig.pool.core.flush()
        verify(rig, before, allowed)


def test_a_failed_write_gives_its_blocks_back(rig: Rig) -> None:
    volume = rig.create()
    free = rig.pool.metadata.data_free
    rig.device.log, rig.device.fail_at = True, 0
    rig.device.fail_only = frozenset({"write_all"})
    with pytest.raises(DeviceError):
        volume.pwrite(b"x" * (3 * BLOCK), 0)
    assert rig.pool.metadata.data_free == free
    assert extents(volume, 0, volume.size)[0].mapped is False
    volume.pwrite(b"x" * (3 * BLOCK), 0)
    assert rig.pool.metadata.data_free == free - 3


@pytest.mark.parametrize(
    ("error", "number"),
    [(NoMetadataSpace("full"), errno.ENOSPC), (StoreError(errno.EIO), errno.EIO)],
    ids=["full", "EIO"],
)
def test_a_commit_that_fails_drops_the_transaction_and_never_the_last_commit(
    tmp_path: Path, error: ThinMetaError, number: int
) -> None:
    rig, before = prepare(tmp_path)
    volume = rig.pool.open_volume("v")
    volume.pwrite(b"b" * 512, 512)
    rig.store.fail_next_commit = error
    with pytest.raises(ThinMetaError) as caught:
        rig.pool.core.flush()
    assert errno_of(caught.value) == number
    assert rig.pool.core.modes.mode is Mode.READ_ONLY
    # Reads go on, of the last commit; nothing else does, and no flush pretends.
    assert read(volume) == before
    with pytest.raises(PoolStopped) as stopped:
        volume.pwrite(b"x", 5 * BLOCK)
    assert errno_of(stopped.value) == errno.EROFS
    with pytest.raises(PoolStopped) as stopped:
        rig.pool.core.flush()
    assert errno_of(stopped.value) == errno.EIO
    with pytest.raises(PoolStopped):
        admin.create(rig.pool, "new", BLOCK)
    with pytest.raises(PoolStopped):
        discard.trim(volume, 0, BLOCK)
    status = admin.status(rig.pool)
    assert (status["mode"], status["needs_check"]) == ("read-only", False)
    verify(rig, before, [before])


def test_all_who_waited_for_a_failed_commit_are_told(rig: Rig) -> None:
    volume = rig.create()
    volume.pwrite(b"x", 0)
    reached, go = rig.device.hold("flush")
    rig.store.fail_next_commit = StoreError(errno.EIO)
    committer = rig.pool.core.committer
    with threads() as pool:
        first = pool.submit(rig.pool.core.flush)
        assert reached.wait(PATIENCE)
        rest = [pool.submit(rig.pool.core.flush) for _ in range(3)]
        spin(lambda: len(vars(committer._changed)["_waiters"]) == 3)
        go.set()
        for flush in (first, *rest):
            with pytest.raises((StoreError, PoolStopped)):
                flush.result(PATIENCE)


class Bad:
    """Makes a method of the metadata fail half way, once."""

    def __init__(self, rig: Rig, name: str, error: Exception) -> None:
        self.real = getattr(rig.pool.metadata, name)
        self.error: Exception | None = error
        setattr(rig.pool.metadata, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self.real(*args, **kwargs)
        error, self.error = self.error, None
        if error is not None:
            raise error
        return result


CHANGES: dict[str, tuple[str, Callable[[Rig], Any]]] = {
    "insert": ("insert", lambda rig: rig.pool.open_volume("v").pwrite(b"b" * 512, 512)),
    "remove": ("remove", lambda rig: discard.trim(rig.pool.open_volume("v"), 0, 2 * BLOCK)),
    "create": ("create_thin", lambda rig: admin.create(rig.pool, "new", BLOCK)),
    "snapshot": ("create_snapshot", lambda rig: admin.snapshot(rig.pool, [["v", "new"]])),
    "delete": ("put_record", lambda rig: admin.delete(rig.pool, ["s"])),
    "freeze": ("freeze", lambda rig: admin.rename(rig.pool, "s", "t")),
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize(
    "error",
    [Corrupt("checksum", "block 7", "bad"), NoMetadataSpace("full"), StoreError(errno.EIO)],
    ids=["corrupt", "full", "EIO"],
)
def test_a_change_that_fails_half_way_is_dropped(
    tmp_path: Path, what: str, error: ThinMetaError
) -> None:
    rig, before = prepare(tmp_path)
    method, change = CHANGES[what]
    Bad(rig, method, error)
    with pytest.raises(type(error)):
        change(rig)
    assert rig.pool.core.modes.mode is Mode.READ_ONLY
    names = [entry["name"] for entry in admin.list_volumes(rig.pool)["volumes"]]
    assert names == ["other", "s", "v"]
    assert read(rig.pool.open_volume("v")) == before
    assert rig.pool.metadata.needs_check == isinstance(error, Corrupt)
    if isinstance(error, Corrupt):
        rig.crash()
        assert rig.pool.core.modes.mode is Mode.READ_ONLY
        assert read(rig.pool.open_volume("v")) == before
        rig.close()
    else:
        verify(rig, before, [before])


def test_a_command_that_is_interrupted_half_way_commits_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, before = prepare(tmp_path)

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Devices, "add", interrupt)
        with pytest.raises(KeyboardInterrupt):
            admin.snapshot(rig.pool, [["v", "new"]])
    rig.close()
    rig.crash()
    assert {record.name for record in rig.pool.registry} == {"other", "s", "v"}
    verify(rig, before, [before])


def test_a_look_up_that_meets_damage_fails_and_the_pool_stops_with_all_that_was_done(
    tmp_path: Path,
) -> None:
    rig, before = prepare(tmp_path)
    volume = rig.pool.open_volume("v")
    volume.pwrite(b"x" * 512, 5 * BLOCK)
    volume.pwrite(b"x" * 512, 7 * BLOCK)
    volume.table.drop()
    error = Corrupt("checksum", "block 7", "bad")
    Bad(rig, "runs", error)
    Bad(rig, "lookup", error)
    with pytest.raises(Corrupt) as caught:
        read(volume, 0, 10)
    assert errno_of(caught.value) == errno.EIO
    assert rig.pool.core.modes.mode is Mode.READ_ONLY
    rig.crash()
    assert rig.pool.metadata.needs_check
    expected = bytearray(before)
    for block in (5, 7):
        expected[block * BLOCK : block * BLOCK + 512] = b"x" * 512
    assert read(rig.pool.open_volume("v")) == bytes(expected)
    rig.close()


def test_no_write_is_answered_that_the_last_commit_of_a_stopping_pool_leaves_out(
    tmp_path: Path,
) -> None:
    rig, before = prepare(tmp_path)
    volume = rig.pool.open_volume("v")
    volume.pwrite(b"x" * 512, 5 * BLOCK)
    volume.table.drop()
    reached, go = rig.device.hold("flush")
    with threads() as pool:
        stopping = pool.submit(rig.pool.core.settle, Corrupt("checksum", "block 7", "bad"))
        assert reached.wait(PATIENCE)
        with pytest.raises(PoolStopped):
            volume.pwrite(b"late" * 128, 7 * BLOCK)
        go.set()
        finish(stopping)
    rig.pool.core.flush()
    rig.crash()
    assert rig.pool.metadata.needs_check
    expected = bytearray(before)
    expected[5 * BLOCK : 5 * BLOCK + 512] = b"x" * 512
    assert read(rig.pool.open_volume("v")) == bytes(expected)
    rig.close()


def test_a_change_that_no_commit_holds_yet_is_committed_by_a_pool_that_has_stopped(
    rig: Rig,
) -> None:
    """Reading was what failed: what was answered before is flushed all the same."""
    volume = rig.create()
    volume.pwrite(b"x" * BLOCK, 0)
    rig.pool.core.modes.degrade(Mode.READ_ONLY, "a look-up failed", lost_data=False)
    rig.pool.core.flush()
    rig.crash()
    assert read(rig.pool.open_volume("v"), 0, BLOCK) == b"x" * BLOCK


def test_damage_beside_what_is_read_does_not_fail_the_read(tmp_path: Path) -> None:
    rig, before = prepare(tmp_path)
    volume = rig.pool.open_volume("v")
    volume.table.drop()
    Bad(rig, "runs", Corrupt("checksum", "block 7", "bad"))
    assert read(volume, 0, 10) == before[:10]
    assert rig.pool.core.modes.mode is Mode.WRITE
    rig.close()


def test_when_even_the_last_commit_cannot_be_read_the_pool_has_failed(tmp_path: Path) -> None:
    rig, _ = prepare(tmp_path)
    volume = rig.pool.open_volume("v")
    volume.pwrite(b"x" * 512, 7 * BLOCK)
    rig.store.fail_next_commit = StoreError(errno.EIO)
    rig.store.fail_at = rig.store.reads
    with pytest.raises(StoreError):
        rig.pool.core.flush()
    assert rig.pool.core.modes.mode is Mode.FAILED
    with pytest.raises(PoolStopped) as stopped:
        read(volume, 0, 1)
    assert errno_of(stopped.value) == errno.EIO
    with pytest.raises(PoolStopped):
        rig.pool.open_volume("s")
    assert admin.status(rig.pool)["mode"] == "failed"
    rig.crash()
    read(rig.pool.open_volume("v"))
    rig.close()


def test_writers_in_flight_when_the_pool_stops_are_told(rig: Rig) -> None:
    volume = rig.create()
    reached, go = rig.device.hold("write_all")
    with threads() as pool:
        writing = pool.submit(volume.pwrite, b"x" * 512, 0)
        assert reached.wait(PATIENCE)
        rig.store.fail_next_commit = StoreError(errno.EIO)
        with rig.pool.core.lock:
            rig.pool.metadata.set_transaction_id(99)
        with pytest.raises(StoreError):
            rig.pool.core.flush()
        go.set()
        with pytest.raises(PoolStopped):
            writing.result(PATIENCE)
    assert not extents(volume, 0, volume.size)[0].mapped


def test_waiting_writers_are_told_when_the_pool_stops(rig: Rig) -> None:
    filler = rig.create("filler", size=64 * BLOCK)
    filler.pwrite(b"f" * filler.size, 0)
    volume = rig.create()
    modes = rig.pool.core.modes
    with threads() as pool:
        writing = pool.submit(volume.pwrite, b"x" * 512, 0)
        spin(lambda: bool(vars(modes._changed)["_waiters"]))
        rig.store.fail_next_commit = StoreError(errno.EIO)
        with rig.pool.core.lock:
            rig.pool.metadata.set_transaction_id(99)
        with pytest.raises(StoreError):
            rig.pool.core.flush()
        with pytest.raises(PoolStopped):
            writing.result(PATIENCE)


def test_the_timer_says_once_that_a_commit_failed(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    volume = rig.create()
    volume.pwrite(b"x", 0)
    rig.store.fail_next_commit = NoMetadataSpace("full")
    rig.pool.start()
    rig.pool.core.timer.kick()
    spin(lambda: not rig.pool.core.modes.takes_writes)
    rig.pool.core.stop()
    changes = [record for record in caplog.records if "pool mode" in record.message]
    assert len(changes) == 1
    assert "full" in changes[0].message


def test_punching_that_fails_costs_nothing_but_space(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    volume = rig.create()
    volume.pwrite(b"x" * (4 * BLOCK), 0)
    rig.pool.commit()
    discard.trim(volume, 0, 4 * BLOCK)
    rig.device.log, rig.device.fail_at = True, 0
    rig.device.fail_only = frozenset({"punch"})
    rig.pool.commit()
    assert rig.pool.metadata.data_free == 64
    assert rig.pool.core.modes.mode is Mode.WRITE
    assert "stays allocated" in caplog.text
    volume.pwrite(b"y" * 512, 0)
    assert read(volume, 0, BLOCK) == b"y" * 512 + bytes(BLOCK - 512)


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.ENOENT, "x"), errno.ENOENT),
        (OSError(errno.ENOTTY, "x"), errno.EIO),
        (DeviceError("x", errno.ENOSPC), errno.ENOSPC),
        (DeviceError("x", 0), errno.EIO),
        (MemoryError(), errno.ENOMEM),
        (ValueError("a bug"), errno.EIO),
        (ThinPoolError("x"), errno.EIO),
    ],
)
def test_errnos(error: Exception, number: int) -> None:
    assert errno_of(error) == number


def test_a_thousand_flushes_and_a_failure_leave_no_descriptors(rig: Rig) -> None:
    before = len(os.listdir("/proc/self/fd"))
    volume = rig.create()
    for number in range(50):
        volume.pwrite(b"x", number % 16 * BLOCK)
        rig.pool.core.flush()
    with threads() as pool:
        finish(*[pool.submit(rig.pool.core.flush) for _ in range(50)])
    assert len(os.listdir("/proc/self/fd")) == before
