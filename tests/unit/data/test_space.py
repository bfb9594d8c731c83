"""A full pool: who waits, who fails, and what brings it back."""

import errno
import logging
import threading
from collections.abc import Callable

import pytest

from tests.unit.data.rigs import BLOCK, PATIENCE, Rig, finish, read, spin, threads
from thinmeta.errors import StoreError
from thinmeta.thin import ThinMetadata
from thinpoold import admin, discard
from thinpoold.errnos import errno_of
from thinpoold.errors import NoSpace
from thinpoold.modes import Mode
from thinpoold.reservations import Reservations
from thinpoold.settings import Settings
from thinpoold.space import Waiters
from thinpoold.volume import Volume


def fill(rig: Rig, blocks: int = 64) -> Volume:
    volume = rig.create("filler", size=blocks * BLOCK)
    volume.pwrite(b"f" * volume.size, 0)
    return volume


def mode(rig: Rig) -> Mode:
    return rig.pool.core.modes.mode


def waits_for_space(rig: Rig) -> bool:
    return bool(vars(rig.pool.core.modes._changed)["_waiters"])


def test_with_error_a_write_fails_at_once_and_reads_and_flushes_go_on(
    new_rig: Callable[..., Rig],
) -> None:
    rig = new_rig(settings=Settings(on_full="error"))
    filler = fill(rig)
    volume = rig.create()
    with pytest.raises(NoSpace) as caught:
        volume.pwrite(b"x", 0)
    assert errno_of(caught.value) == errno.ENOSPC
    assert mode(rig) is Mode.OUT_OF_DATA_SPACE
    assert admin.status(rig.pool)["mode"] == "out-of-data-space"
    assert read(filler, 0, 10) == b"f" * 10
    # What is mapped can be written, and what is unmapped reads as zero.
    filler.pwrite(b"g", 5)
    rig.pool.core.flush()
    assert read(volume, 0, 10) == bytes(10)
    assert read(filler, 4, 3) == b"fgf"


@pytest.mark.parametrize("way", ["trim", "delete", "grow", "error"])
def test_with_queue_a_write_waits_until_there_is_room(rig: Rig, way: str) -> None:
    filler = fill(rig)
    volume = rig.create()
    rig.pool.start()
    with threads() as pool:
        writing = pool.submit(volume.pwrite, b"x" * (2 * BLOCK), 100)
        spin(lambda: waits_for_space(rig))
        assert mode(rig) is Mode.OUT_OF_DATA_SPACE
        # It waits outside the gate, so nobody waits for it.
        with volume.gate.closed():
            pass
        if way == "trim":
            discard.trim(filler, 0, 10 * BLOCK)
        elif way == "delete":
            rig.pool.close_volume(filler)
            admin.delete(rig.pool, ["filler"])
        elif way == "grow":
            admin.grow(rig.pool, 80 * BLOCK)
        else:
            admin.set_settings(rig.pool, {"on_full": "error"})
            with pytest.raises(NoSpace):
                writing.result(PATIENCE)
            return
        finish(writing)
    assert mode(rig) is Mode.WRITE
    assert read(volume, 0, 3 * BLOCK) == bytes(100) + b"x" * (2 * BLOCK) + bytes(BLOCK - 100)


class Clock:
    """The monotonic clock of the modes: it stands still until a test says otherwise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("thinpoold.modes.monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_all_who_wait_give_up_when_the_pool_has_been_full_for_the_timeout(
    new_rig: Callable[..., Rig], clock: Clock
) -> None:
    """One clock, the pool's: who comes late waits for what is left of it, and then for nothing."""
    rig = new_rig(settings=Settings(full_timeout=60))
    filler = fill(rig)
    volume = rig.create()
    with threads() as pool:
        early = pool.submit(volume.pwrite, b"x", 0)
        spin(lambda: waits_for_space(rig))
        clock.now += 59
        late = pool.submit(volume.pwrite, b"x", BLOCK)
        zero = pool.submit(discard.zero, volume, 2 * BLOCK, 10, may_trim=False, fast=False)
        spin(lambda: len(vars(rig.pool.core.modes._changed)["_waiters"]) == 3)
        clock.now += 2
        rig.pool.core.modes.settings_changed()
        for writing in (early, late, zero):
            with pytest.raises(NoSpace):
                writing.result(PATIENCE)
    # Nobody waits any more, until there is space.
    for offset in range(0, 4 * BLOCK, BLOCK):
        with pytest.raises(NoSpace):
            volume.pwrite(b"x", offset)
    assert not waits_for_space(rig)
    discard.trim(filler, 0, BLOCK)
    volume.pwrite(b"x", 0)
    with threads() as pool:
        writing = pool.submit(volume.pwrite, b"x", BLOCK)
        spin(lambda: waits_for_space(rig))
        clock.now += 61
        rig.pool.core.modes.settings_changed()
        with pytest.raises(NoSpace):
            writing.result(PATIENCE)


@pytest.mark.parametrize("served_by", [1, 2, 3])
def test_one_thread_of_a_connection_never_waits_for_space(rig: Rig, served_by: int) -> None:
    fill(rig)
    volume, other = rig.create(), Waiters(2)
    waiters = Waiters(served_by)
    with threads() as pool:
        waiting = [
            pool.submit(volume.pwrite, b"x", number * BLOCK, waiters)
            for number in range(served_by - 1)
        ]
        # Another connection's are its own.
        waiting.append(pool.submit(volume.pwrite, b"x", 8 * BLOCK, other))
        spin(lambda: len(vars(rig.pool.core.modes._changed)["_waiters"]) == served_by)
        for _ in range(2):
            with pytest.raises(NoSpace, match="no other thread"):
                volume.pwrite(b"x", 9 * BLOCK, waiters)
            with pytest.raises(NoSpace, match="no other thread"):
                discard.zero(volume, 0, 10, may_trim=False, fast=False, waiters=waiters)
        admin.grow(rig.pool, 80 * BLOCK)
        finish(*waiting)
        # Those that waited wait no more.
        volume.pwrite(b"x" * (10 * BLOCK), 0, waiters)


def test_without_room_for_metadata_what_is_there_can_be_used_and_deleted(
    new_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = new_rig(settings=Settings(on_full="error"))
    volume = rig.create("v")
    rig.create("other").pwrite(b"o" * BLOCK, 0)
    volume.pwrite(b"a" * (2 * BLOCK), 0)
    monkeypatch.setattr(ThinMetadata, "make_room", lambda self: False)
    rig.pool.commit()
    assert mode(rig) is Mode.OUT_OF_METADATA_SPACE
    for refused in (
        lambda: volume.pwrite(b"x", 5 * BLOCK),
        lambda: admin.create(rig.pool, "new", BLOCK),
        lambda: admin.snapshot(rig.pool, [["v", "s"]]),
    ):
        with pytest.raises(NoSpace, match="metadata"):
            refused()
    volume.pwrite(b"b", 0)
    discard.trim(volume, BLOCK, BLOCK)
    rig.pool.close_volume(rig.pool.core.volumes[rig.pool.registry.get("other").uuid])
    admin.delete(rig.pool, ["other"])
    rig.pool.commit()
    assert read(volume, 0, 2 * BLOCK) == b"b" + b"a" * (BLOCK - 1) + bytes(BLOCK)
    assert {record.name for record in rig.pool.registry} == {"v"}
    assert mode(rig) is Mode.OUT_OF_METADATA_SPACE


def test_who_waits_for_metadata_room_goes_on_by_itself(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = rig.create("v")
    volume.pwrite(b"x", BLOCK)
    with monkeypatch.context() as patch, threads() as pool:
        patch.setattr(ThinMetadata, "make_room", lambda self: False)
        rig.pool.commit()
        writing = pool.submit(volume.pwrite, b"x", 0)
        spin(lambda: waits_for_space(rig))
        # Data blocks are not what is missing.
        rig.pool.core.modes.space_found()
        assert mode(rig) is Mode.OUT_OF_METADATA_SPACE
        patch.undo()
        rig.pool.core._tick()
        finish(writing)
    assert mode(rig) is Mode.WRITE


def test_a_store_that_cannot_make_room_says_why(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: ThinMetadata) -> bool:
        raise StoreError(errno.EIO, "metadata.lmdb: Input/output error")

    rig.create("v").pwrite(b"x", 0)
    monkeypatch.setattr(ThinMetadata, "make_room", fail)
    rig.pool.commit()
    assert mode(rig) is Mode.OUT_OF_METADATA_SPACE
    assert "metadata.lmdb: Input/output error" in rig.pool.core.modes.reason


def test_space_that_a_commit_frees_is_found_without_waiting(
    new_rig: Callable[..., Rig],
) -> None:
    rig = new_rig(settings=Settings(on_full="error"))
    filler = fill(rig)
    rig.pool.commit()
    volume = rig.create()
    discard.trim(filler, 0, BLOCK)
    volume.pwrite(b"x", 0)
    assert mode(rig) is Mode.WRITE
    with pytest.raises(NoSpace):
        volume.pwrite(b"x", BLOCK)


def test_what_was_provisioned_before_the_room_ended_is_written_again(
    rig: Rig,
) -> None:
    filler = fill(rig, 62)
    volume = rig.create()
    rig.pool.start()
    with threads() as pool:
        writing = pool.submit(volume.pwrite, b"x" * (4 * BLOCK), 0)
        spin(lambda: waits_for_space(rig))
        discard.trim(filler, 0, 10 * BLOCK)
        finish(writing)
    assert read(volume, 0, 5 * BLOCK) == b"x" * (4 * BLOCK) + bytes(BLOCK)


def test_a_full_file_system_under_the_device_is_waited_for(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thinpoold.modes.RETRY_SECONDS", 0.001)
    volume = rig.create()
    used = rig.pool.metadata.data_free
    rig.device.number = errno.ENOSPC
    rig.device.log, rig.device.fail_at, rig.device.stays = True, 0, True
    rig.device.fail_only = frozenset({"write_all"})
    with threads() as pool:
        writing = pool.submit(volume.pwrite, b"x" * 512, 0)
        spin(lambda: len(rig.device.calls) > 3)
        assert mode(rig) is Mode.OUT_OF_DATA_SPACE
        rig.device.fail_at = None
        finish(writing)
    assert mode(rig) is Mode.WRITE
    assert read(volume, 0, 512) == b"x" * 512
    assert rig.pool.metadata.data_free == used - 1


def test_or_fails_at_once_with_error(new_rig: Callable[..., Rig]) -> None:
    rig = new_rig(settings=Settings(on_full="error"))
    volume = rig.create()
    volume.pwrite(b"x", 0)
    rig.device.number = errno.ENOSPC
    rig.device.log, rig.device.fail_at, rig.device.stays = True, 0, True
    rig.device.fail_only = frozenset({"write_all", "write"})
    for offset in (0, BLOCK):
        with pytest.raises(NoSpace):
            volume.pwrite(b"y" * 512, offset)


def test_low_water_is_said_once_and_again_after_it_was_left(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    filler = fill(rig, 58)

    def said() -> int:
        return sum("data space is low" in record.message for record in caplog.records)

    assert said() == 1
    volume = rig.create()
    volume.pwrite(b"x", 0)
    volume.pwrite(b"x", BLOCK)
    assert said() == 1
    discard.trim(filler, 0, 20 * BLOCK)
    rig.pool.commit()
    volume.pwrite(b"x" * (16 * BLOCK), 0)
    filler.pwrite(b"f" * (4 * BLOCK), 0)
    assert said() == 2


def test_a_reservation_is_kept_from_others_and_can_be_used(
    new_rig: Callable[..., Rig],
) -> None:
    rig = new_rig(settings=Settings(on_full="error"))
    safe = rig.create("safe", size=20 * BLOCK, reserve=10 * BLOCK)
    greedy = rig.create("greedy", size=64 * BLOCK)
    with pytest.raises(NoSpace, match="reserved"):
        greedy.pwrite(b"g" * greedy.size, 0)
    assert rig.pool.metadata.data_free == 10
    safe.pwrite(b"s" * (10 * BLOCK), 0)
    with pytest.raises(NoSpace):
        safe.pwrite(b"s", 10 * BLOCK)
    assert read(safe, 0, 10 * BLOCK) == b"s" * (10 * BLOCK)


def test_a_reservation_is_counted_anew_after_a_restart_and_a_snapshot(
    new_rig: Callable[..., Rig],
) -> None:
    rig = new_rig(settings=Settings(on_full="error"))
    safe = rig.create("safe", size=20 * BLOCK, reserve=10 * BLOCK)
    safe.pwrite(b"s" * (4 * BLOCK), 0)
    assert admin.info(rig.pool, "safe")["reserve_free"] == 6 * BLOCK
    rig.pool.commit()
    rig.crash()
    assert admin.info(rig.pool, "safe")["reserve_free"] == 6 * BLOCK
    admin.snapshot(rig.pool, [["safe", "s"]])
    assert admin.info(rig.pool, "safe")["reserve_free"] == 10 * BLOCK
    greedy = rig.create("greedy", size=64 * BLOCK)
    with pytest.raises(NoSpace):
        greedy.pwrite(b"g" * greedy.size, 0)
    # What it shares with the snapshot can still be overwritten.
    safe = rig.pool.open_volume("safe")
    safe.pwrite(b"t" * (4 * BLOCK), 0)
    assert read(rig.pool.open_volume("s"), 0, 4 * BLOCK) == b"s" * (4 * BLOCK)


def test_a_promise_that_cannot_be_kept_is_not_made(rig: Rig) -> None:
    rig.create("one", size=BLOCK, reserve=40 * BLOCK)
    with pytest.raises(NoSpace):
        rig.create("two", size=BLOCK, reserve=30 * BLOCK)
    one = rig.pool.open_volume("one")
    admin.resize(rig.pool, "one", 40 * BLOCK)
    one.pwrite(b"x" * (40 * BLOCK), 0)
    with pytest.raises(NoSpace):
        admin.snapshot(rig.pool, [["one", "s"]])
    assert [entry["name"] for entry in admin.list_volumes(rig.pool)["volumes"]] == ["one"]


def test_accounting_of_promises() -> None:
    book = Reservations()
    assert not book
    book.promise("a", 10)
    book.promise("b", 5, own=5)
    assert book
    assert (book.owed(), book.owed(but_for="a"), book.of("a"), book.of("c")) == (10, 0, 10, 0)
    book.provisioned("a", 12)
    book.provisioned("c", 1)
    assert book.owed() == 0
    book.discarded("a", 5)
    assert book.of("a") == 3
    assert book.wanted("a") == 7
    book.shared("a")
    assert (book.of("a"), book.wanted("a"), book.wanted("c")) == (10, 0, 0)
    book.promise("a", 0)
    assert book.owed() == 0


def test_a_deadlock_free_crowd_at_the_brim(new_rig: Callable[..., Rig]) -> None:
    """Writers and trimmers on a pool that is always nearly full: all come through."""
    rig = new_rig(blocks=16)
    rig.pool.start()
    stop = threading.Event()

    def run(number: int) -> None:
        volume = rig.pool.open_volume(f"v{number}")
        for turn in range(40):
            at = (turn * 5 % 8) * BLOCK
            volume.pwrite(bytes([number + 1]) * (2 * BLOCK), at)
            assert read(volume, at, 2 * BLOCK) == bytes([number + 1]) * (2 * BLOCK)
            discard.trim(volume, 0, volume.size)
        stop.set()

    for number in range(4):
        admin.create(rig.pool, f"v{number}", 10 * BLOCK)
    with threads() as pool:
        finish(*[pool.submit(run, number) for number in range(4)])
