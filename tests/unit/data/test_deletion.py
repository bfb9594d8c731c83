"""Volumes deleted in portions: gone at once, whatever happens on the way to the last portion."""

import errno
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.data.rigs import BLOCK, PATIENCE, Rig, read, spin
from tests.unit.data.test_faults import Bad
from tests.unit.meta.rigs import complaints
from thinmeta.btree import portions
from thinmeta.errors import Corrupt, StoreError
from thinpoold import admin
from thinpoold.audit import audit
from thinpoold.errors import NoSuchVolume, PoolStopped
from thinpoold.modes import Mode
from thinpoold.volume import Volume

BLOCKS = 1500
SIZE = BLOCKS * BLOCK
PORTIONS = 6


class Dead(BaseException):
    """The process is no more."""


@pytest.fixture(autouse=True)
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portions, "PORTION", 20)
    monkeypatch.setattr(portions, "LEFT", 1)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path, blocks=4 * BLOCKS)


def full(rig: Rig, name: str) -> Volume:
    """A volume with all its blocks mapped; what is in them does not matter."""
    volume = rig.create(name, size=SIZE)
    at = 0
    with rig.pool.core.changing():
        rig.pool.core.begin_change()
        while at < BLOCKS:
            begin, got = rig.pool.metadata.reserve(BLOCKS - at)
            rig.pool.metadata.insert(volume.dev_id, at, begin, got)
            at += got
    rig.pool.commit()
    return volume


def between(rig: Rig, do: Callable[[int], None]) -> None:
    """Call `do` with the number of each portion, after it."""
    count = 0
    throttle = rig.pool.core.throttle

    def counted() -> None:
        nonlocal count
        count += 1
        throttle()
        do(count)

    rig.pool.core.throttle = counted  # type: ignore[method-assign]


def go_on(rig: Rig) -> None:
    """What a daemon does when it starts."""
    rig.pool.deletion.start()
    spin(lambda: admin.status(rig.pool)["deleting"] == 0)
    rig.pool.deletion.stop()
    rig.pool.commit()


@pytest.mark.parametrize("portion", range(1, PORTIONS + 1))
@pytest.mark.parametrize("committed", [True, False])
def test_a_crash_after_any_portion_leaves_a_sound_pool_without_the_volume(
    rig: Rig, tmp_path: Path, portion: int, committed: bool
) -> None:
    rig.pool.close_volume(full(rig, "v"))
    keeper = full(rig, "keeper")
    keeper.pwrite(b"kept" * 128, 0)
    rig.pool.commit()

    def die(number: int) -> None:
        if committed:
            rig.pool.core.flush()
        if number == portion:
            raise Dead

    between(rig, die)
    with pytest.raises(Dead):
        admin.delete(rig.pool, ["v"])
    rig.crash()
    assert [one["name"] for one in admin.list_volumes(rig.pool)["volumes"]] == ["keeper"]
    assert admin.status(rig.pool)["deleting"] == 1
    left = admin.status(rig.pool)["data"]["used"] - SIZE
    assert left == SIZE if not committed else 0 <= left < SIZE
    assert complaints(rig.store, tmp_path / "image") == []
    assert audit(rig.store) == []
    # The name is free before the space is.
    admin.create(rig.pool, "v", SIZE)
    go_on(rig)
    assert admin.status(rig.pool)["data"]["used"] == SIZE
    assert rig.pool.metadata.data_free == 3 * BLOCKS
    assert read(rig.pool.open_volume("keeper"), 0, 512) == b"kept" * 128
    assert audit(rig.store) == []
    rig.close()


def test_there_are_as_many_portions(rig: Rig) -> None:
    """The test above crashes after each but the last."""
    rig.pool.close_volume(full(rig, "v"))
    numbers: list[int] = []
    between(rig, numbers.append)
    assert admin.delete(rig.pool, ["v"])["freed"] == SIZE
    assert numbers[-1] > PORTIONS
    rig.close()


def test_between_portions_the_pool_is_everybodys(rig: Rig, tmp_path: Path) -> None:
    volume = full(rig, "v")
    admin.snapshot(rig.pool, [["v", "s"]])
    # The leaves become the snapshot's own, their data blocks stay shared.
    snapshot = rig.pool.open_volume("s")
    for block in range(0, BLOCKS, 50):
        snapshot.pwrite(b"s" * 512, block * BLOCK)
    rig.pool.close_volume(snapshot)
    written = {}

    def others(number: int) -> None:
        with rig.pool.core.lock:
            volume.forget()
        offset = number * 90 * BLOCK
        written[offset] = bytes([number]) * 512
        volume.pwrite(written[offset], offset)
        name = f"s{number}"
        admin.snapshot(rig.pool, [["v", name]])
        if number % 2:
            admin.delete(rig.pool, [name])

    throttle = rig.pool.core.throttle
    working = False

    def once() -> None:
        nonlocal working
        throttle()
        if not working:
            working = True
            rig.pool.deletion._working.release()
            others(len(written) + 1)
            assert rig.pool.deletion._working.acquire(timeout=PATIENCE)
            working = False

    rig.pool.core.throttle = once  # type: ignore[method-assign]
    admin.delete(rig.pool, ["s"])
    del rig.pool.core.throttle
    assert len(written) > 4
    for offset, octets in written.items():
        assert read(volume, offset, 512) == octets
    rig.pool.commit()
    assert complaints(rig.store, tmp_path / "image") == []
    assert audit(rig.store) == []
    rig.close()


def test_several_go_together(rig: Rig) -> None:
    for name in ("a", "b"):
        rig.pool.close_volume(full(rig, name))

    def die(number: int) -> None:
        raise Dead

    between(rig, die)
    with pytest.raises(Dead):
        admin.delete(rig.pool, ["a", "b"])
    rig.crash()
    assert admin.status(rig.pool)["volumes"] == 0
    assert admin.status(rig.pool)["deleting"] == 2
    go_on(rig)
    assert admin.status(rig.pool)["data"]["used"] == 0
    rig.close()


def test_what_a_rollback_discards_goes_the_same_way(rig: Rig) -> None:
    rig.pool.close_volume(full(rig, "v"))
    admin.create(rig.pool, "empty", SIZE)

    def die(number: int) -> None:
        raise Dead

    between(rig, die)
    with pytest.raises(Dead):
        admin.rollback(rig.pool, "v", "empty", discard_current=True)
    rig.crash()
    assert admin.info(rig.pool, "v")["mapped"] == 0
    assert admin.status(rig.pool)["deleting"] == 1
    go_on(rig)
    assert admin.status(rig.pool)["data"]["used"] == 0
    rig.close()


def test_a_portion_that_fails_stops_the_pool_and_the_next_start_goes_on(rig: Rig) -> None:
    rig.pool.close_volume(full(rig, "v"))
    Bad(rig, "delete_some", StoreError(errno.EIO))
    with pytest.raises(StoreError):
        admin.delete(rig.pool, ["v"])
    assert rig.pool.core.modes.mode is Mode.READ_ONLY
    with pytest.raises(NoSuchVolume):
        admin.info(rig.pool, "v")
    rig.crash()
    go_on(rig)
    assert admin.status(rig.pool)["data"]["used"] == 0
    rig.close()


def test_a_pool_that_takes_no_writes_leaves_it(rig: Rig) -> None:
    rig.pool.close_volume(full(rig, "v"))
    Bad(rig, "delete_some", Corrupt("checksum", "block 7", "bad"))
    with pytest.raises(Corrupt):
        admin.delete(rig.pool, ["v"])
    rig.crash()
    rig.pool.deletion.start()
    rig.pool.deletion.stop()
    assert admin.status(rig.pool)["deleting"] == 1
    with pytest.raises(PoolStopped):
        admin.create(rig.pool, "w", SIZE)
    rig.close()


def go_on_from(rig: Rig) -> None:
    """As a daemon that finds a deletion begun."""
    with rig.pool.changing() as begin:
        begin()
        record = rig.pool.registry.get("v")
        rig.pool.registry.remove(record)
        rig.pool.deletion.add(record.dev_id)
    rig.pool.deletion.start()


def asked_for(rig: Rig) -> None:
    """As a daemon that was told to delete."""
    rig.pool.deletion.start()
    threading.Thread(target=admin.delete, args=(rig.pool, ["v"])).start()


@pytest.mark.parametrize("begin", [go_on_from, asked_for])
def test_the_end_of_the_daemon_does_not_wait_for_it(rig: Rig, begin: Callable[[Rig], None]) -> None:
    rig.pool.close_volume(full(rig, "v"))
    reached, go = threading.Event(), threading.Event()

    def hold(number: int) -> None:
        reached.set()
        assert go.wait(PATIENCE)

    between(rig, hold)
    begin(rig)
    assert reached.wait(PATIENCE)
    stopping = threading.Thread(target=rig.pool.deletion.stop)
    stopping.start()
    spin(lambda: rig.pool.deletion._stopping)
    go.set()
    stopping.join(PATIENCE)
    assert not stopping.is_alive()
    assert admin.status(rig.pool)["deleting"] == 1
    assert 0 < admin.status(rig.pool)["data"]["used"] < SIZE
    rig.pool.commit()
    rig.crash()
    go_on(rig)
    assert admin.status(rig.pool)["data"]["used"] == 0
    rig.close()
