"""Allocation ahead: runs stay in sequence, and no space is lost or held back by it."""

from collections.abc import Callable

import pytest

from tests.unit.data.rigs import BLOCK, Rig, read
from thinpoold import ahead as module
from thinpoold.ahead import MOST_BLOCKS, SHARE, Ahead
from thinpoold.errors import NoSpace
from thinpoold.settings import Settings

ROOMY = 2 * SHARE * MOST_BLOCKS


def test_volumes_that_write_by_turns_lie_in_runs(new_rig: Callable[..., Rig]) -> None:
    rig = new_rig(blocks=ROOMY)
    volumes = [rig.create(name, size=256 * BLOCK) for name in ("one", "two")]
    for block in range(256):
        for volume in volumes:
            volume.pwrite(b"x" * BLOCK, block * BLOCK)
    for volume in volumes:
        runs = list(rig.pool.metadata.runs(volume.dev_id, 0, 256))
        # 2, 4, 8, 16, 32, and 64 from then on; one volume's may follow the other's.
        assert len(runs) <= 9
        assert max(run.length for run in runs) >= MOST_BLOCKS


def test_whether_a_run_is_zero_is_asked_once(new_rig: Callable[..., Rig]) -> None:
    rig = new_rig(blocks=ROOMY)
    volume = rig.create(size=256 * BLOCK)
    rig.device.log, rig.device.fail_only = True, frozenset({"is_zero"})
    for block in range(2 + 4 + 8 + 16 + 32 + 64):
        volume.pwrite(b"x" * 512, block * BLOCK + 512)
    assert rig.device.calls == ["is_zero"] * 6
    rig.device.log = False
    assert read(volume, 0, BLOCK) == bytes(512) + b"x" * 512 + bytes(BLOCK - 1024)


def test_old_bytes_do_not_show_through_a_run(new_rig: Callable[..., Rig]) -> None:
    rig = new_rig(blocks=ROOMY)
    size = 200 * BLOCK
    with open(rig.path, "r+b") as file:
        file.seek(40 * BLOCK)
        file.write(b"\xa5" * (100 * BLOCK))
    volume = rig.create(size=size)
    for block in range(200):
        volume.pwrite(b"x" * 512, block * BLOCK)
    assert read(volume) == (b"x" * 512 + bytes(BLOCK - 512)) * 200


def test_a_full_pool_takes_it_back(
    new_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARE", 1)
    rig = new_rig(blocks=32, settings=Settings(on_full="error"))
    one, two = rig.create("one", size=32 * BLOCK), rig.create("two", size=32 * BLOCK)
    for block in range(3):
        one.pwrite(b"1" * BLOCK, block * BLOCK)
    assert rig.pool.metadata.data_free < 29
    for block in range(29):
        two.pwrite(b"2" * BLOCK, block * BLOCK)
    assert rig.pool.metadata.data_used == 32
    with pytest.raises(NoSpace):
        one.pwrite(b"1", 10 * BLOCK)
    assert read(two, 0, 29 * BLOCK) == b"2" * (29 * BLOCK)


def test_a_closed_volume_holds_nothing(new_rig: Callable[..., Rig]) -> None:
    rig = new_rig(blocks=ROOMY)
    volume = rig.create(size=64 * BLOCK)
    for block in range(8):
        volume.pwrite(b"x", block * BLOCK)
    assert rig.pool.metadata.data_free < ROOMY - 8
    rig.pool.close_volume(volume)
    assert rig.pool.metadata.data_free == ROOMY - 8


def test_it_is_no_more_than_a_share_of_what_is_free() -> None:
    ahead = Ahead()
    wanted = [ahead.wanted(1, 10 * SHARE) for _ in range(8)]
    assert wanted == [2, 4, 8, 10, 10, 10, 10, 10]
    assert ahead.wanted(1, SHARE - 1) == 1
    assert ahead.wanted(1000, SHARE) == 1000
    assert ahead.wanted(1, 10**9) == MOST_BLOCKS


def test_what_is_taken_is_taken_in_order() -> None:
    ahead = Ahead()
    assert ahead.take(1) is None
    ahead.fill(100, 5)
    assert [ahead.take(2), ahead.take(2), ahead.take(2), ahead.take(2)] == [
        (100, 2, ahead._run),
        (102, 2, ahead._run),
        (104, 1, ahead._run),
        None,
    ]
