"""Trim and zero: what is unmapped, what is zeroed, what stays provisioned, what is fast."""

import os
from collections.abc import Callable

import pytest

from tests.unit.data.rigs import BLOCK, Rig, finish, read, threads
from thinpoold import admin, discard
from thinpoold.errnos import NotFast
from thinpoold.extents import Extent, extents, prefetch
from thinpoold.settings import Settings
from thinpoold.shares import Share
from thinpoold.volume import Volume


def mapped(volume: Volume) -> list[int]:
    """The virtual blocks that are mapped."""
    with volume.core.lock:
        runs = list(volume.core.metadata.runs(volume.dev_id, 0, volume.blocks))
    return [block for run in runs for block in range(run.begin, run.begin + run.length)]


@pytest.fixture
def full(rig: Rig) -> Volume:
    """A volume of four and a half blocks, full of x."""
    volume = rig.create(size=4 * BLOCK + BLOCK // 2)
    volume.pwrite(b"x" * volume.size, 0)
    return volume


def test_trim_unmaps_whole_blocks_and_leaves_the_rest(full: Volume) -> None:
    discard.trim(full, 512, 3 * BLOCK)
    assert mapped(full) == [0, 3, 4]
    assert read(full, 0, BLOCK) == b"x" * BLOCK
    assert read(full, BLOCK, 2 * BLOCK) == bytes(2 * BLOCK)
    assert read(full, 3 * BLOCK) == b"x" * (BLOCK + BLOCK // 2)


def test_trim_up_to_the_end_takes_the_last_block_that_is_cut_short(full: Volume) -> None:
    discard.trim(full, 4 * BLOCK, BLOCK // 2)
    assert mapped(full) == [0, 1, 2, 3]


def test_trim_of_nothing_mapped_does_nothing(rig: Rig) -> None:
    volume = rig.create()
    rig.pool.commit()
    discard.trim(volume, 0, volume.size)
    assert not rig.pool.metadata.dirty


def test_trimmed_blocks_are_punched_after_the_commit(rig: Rig, full: Volume) -> None:
    rig.pool.commit()
    discard.trim(full, 0, 4 * BLOCK)
    assert not rig.device.is_zero(0, 4 * BLOCK)
    rig.pool.commit()
    assert rig.device.is_zero(0, 4 * BLOCK)
    assert os.stat(rig.path).st_blocks * 512 <= BLOCK


def test_zero_that_may_trim_unmaps_and_zeroes_the_edges(full: Volume) -> None:
    discard.zero(full, 512, 3 * BLOCK, may_trim=True, fast=False)
    assert mapped(full) == [0, 3, 4]
    assert read(full) == b"x" * 512 + bytes(3 * BLOCK) + b"x" * (full.size - 3 * BLOCK - 512)


def test_zero_that_may_trim_leaves_holes_alone(rig: Rig) -> None:
    volume = rig.create()
    volume.pwrite(b"x", 3 * BLOCK)
    discard.zero(volume, 512, volume.size - 1024, may_trim=True, fast=False)
    assert mapped(volume) == []
    assert read(volume) == bytes(volume.size)


def test_zero_that_may_not_trim_stays_provisioned(rig: Rig, full: Volume) -> None:
    discard.zero(full, 512, 4 * BLOCK, may_trim=False, fast=False)
    assert mapped(full) == [0, 1, 2, 3, 4]
    assert read(full) == b"x" * 512 + bytes(4 * BLOCK) + b"x" * (full.size - 4 * BLOCK - 512)
    volume = rig.create("empty")
    discard.zero(volume, 512, 3 * BLOCK, may_trim=False, fast=False)
    assert mapped(volume) == [0, 1, 2, 3]
    assert read(volume) == bytes(volume.size)


def test_zero_over_recycled_blocks(new_rig: Callable[..., Rig]) -> None:
    rig = new_rig(settings=Settings(discard="nopassdown"))
    other = rig.create("other", size=64 * BLOCK)
    other.pwrite(b"\xa5" * other.size, 0)
    discard.trim(other, 0, other.size)
    rig.pool.commit()
    volume = rig.create(size=40 * BLOCK)
    discard.zero(volume, 512, 30 * BLOCK, may_trim=False, fast=False)
    assert len(mapped(volume)) == 31
    assert read(volume) == bytes(volume.size)


@pytest.mark.parametrize("may_trim", [True, False])
def test_zero_breaks_sharing(rig: Rig, full: Volume, may_trim: bool) -> None:
    admin.snapshot(rig.pool, [["v", "s"]])
    discard.zero(full, 512, 2 * BLOCK, may_trim=may_trim, fast=False)
    assert read(full) == b"x" * 512 + bytes(2 * BLOCK) + b"x" * (full.size - 2 * BLOCK - 512)
    assert read(rig.pool.open_volume("s")) == b"x" * full.size


def test_with_discard_ignored_nothing_is_unmapped(new_rig: Callable[..., Rig]) -> None:
    rig = new_rig(settings=Settings(discard="ignore"))
    volume = rig.create()
    volume.pwrite(b"x" * (2 * BLOCK), 0)
    discard.trim(volume, 0, volume.size)
    assert mapped(volume) == [0, 1]
    assert read(volume, 0, 2 * BLOCK) == b"x" * (2 * BLOCK)
    discard.zero(volume, 0, volume.size, may_trim=True, fast=False)
    assert mapped(volume) == [0, 1]
    assert read(volume) == bytes(volume.size)


def test_a_fast_zero_is_refused_where_it_would_not_be_fast(rig: Rig, full: Volume) -> None:
    admin.snapshot(rig.pool, [["v", "s"]])
    before = read(full)
    with pytest.raises(NotFast):
        discard.zero(full, 512, BLOCK, may_trim=True, fast=True)
    with pytest.raises(NotFast):
        discard.zero(full, 0, BLOCK, may_trim=False, fast=True)
    with pytest.raises(NotFast):
        discard.zero(rig.create("empty"), 0, BLOCK, may_trim=False, fast=True)
    assert read(full) == before
    assert not mapped(rig.pool.open_volume("empty"))


def test_a_fast_zero_is_done_where_it_is_fast(rig: Rig, full: Volume) -> None:
    discard.zero(full, 0, BLOCK, may_trim=False, fast=True)
    discard.zero(full, BLOCK, BLOCK, may_trim=True, fast=True)
    discard.zero(full, 2 * BLOCK + 512, BLOCK, may_trim=True, fast=True)
    assert mapped(full) == [0, 2, 3, 4]
    assert read(full, 0, 2 * BLOCK) == bytes(2 * BLOCK)
    assert read(full, 2 * BLOCK + 512, BLOCK) == bytes(BLOCK)
    discard.zero(rig.create("empty"), 100, 3 * BLOCK, may_trim=True, fast=True)


def test_a_trim_waits_for_a_read_of_what_it_unmaps(rig: Rig, full: Volume) -> None:
    reached, go = rig.device.hold("read")
    with threads() as pool:
        reading = pool.submit(read, full, 0, BLOCK)
        assert reached.wait(60)
        trimming = pool.submit(discard.trim, full, 0, full.size)
        while not full.gate._closed:
            assert not trimming.done()
        go.set()
        assert finish(reading) == [b"x" * BLOCK]
        finish(trimming)
    assert mapped(full) == []


def test_portions(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discard, "PORTION_BLOCKS", 3)
    volume = rig.create(size=40 * BLOCK)
    for block in (0, 1, 2, 3, 9, 10, 20, 21, 22, 23, 24, 39):
        volume.pwrite(b"x", block * BLOCK)
    discard.trim(volume, BLOCK, 38 * BLOCK)
    assert mapped(volume) == [0, 39]


def test_extents_are_holes_and_data_coalesced(rig: Rig) -> None:
    volume = rig.create(size=10 * BLOCK + 512)
    volume.pwrite(b"x", 5 * BLOCK)
    volume.pwrite(b"x", 3 * BLOCK)
    volume.pwrite(b"x", 4 * BLOCK)
    volume.pwrite(b"x", 10 * BLOCK)
    assert extents(volume, 0, volume.size) == [
        Extent(0, 3 * BLOCK, mapped=False),
        Extent(3 * BLOCK, 3 * BLOCK, mapped=True),
        Extent(6 * BLOCK, 4 * BLOCK, mapped=False),
        Extent(10 * BLOCK, 512, mapped=True),
    ]
    assert extents(volume, 100, 4 * BLOCK) == [
        Extent(100, 3 * BLOCK - 100, mapped=False),
        Extent(3 * BLOCK, BLOCK + 100, mapped=True),
    ]
    assert extents(volume, 100, 4 * BLOCK, one=True) == [Extent(100, 3 * BLOCK - 100, mapped=False)]
    assert extents(volume, 4 * BLOCK, 6 * BLOCK, one=True) == [
        Extent(4 * BLOCK, 2 * BLOCK, mapped=True)
    ]
    assert extents(volume, 7 * BLOCK, BLOCK) == [Extent(7 * BLOCK, BLOCK, mapped=False)]


def test_prefetch_ends_where_one_request_has_had_enough(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = rig.create(size=40 * BLOCK)
    # No two in one run.
    for block in range(0, 40, 2):
        volume.pwrite(b"x", block * BLOCK)
    calls: list[int] = []
    device = rig.pool.device
    monkeypatch.setattr(device, "prefetch", lambda offset, count: calls.append(count))
    prefetch(volume, 0, volume.size)
    assert calls == [BLOCK] * 20
    calls.clear()
    monkeypatch.setattr(device, "prefetch_bytes", 3 * BLOCK + 512)
    prefetch(volume, 0, volume.size)
    assert calls == [BLOCK, BLOCK, BLOCK, 512]


def test_an_answer_may_be_cut_short_but_goes_on_where_it_ended(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thinpoold.extents.MAX_EXTENTS", 3)
    volume = rig.create(size=16 * BLOCK)
    for block in range(0, 16, 2):
        volume.pwrite(b"x", block * BLOCK)
    found: list[Extent] = []
    while not found or found[-1].offset + found[-1].length < volume.size:
        at = found[-1].offset + found[-1].length if found else 0
        found += extents(volume, at, volume.size - at)
    assert found == [Extent(n * BLOCK, BLOCK, mapped=n % 2 == 0) for n in range(16)]


def test_long_looks_and_discards_take_their_turn_for_each_portion(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thinpoold.extents._PREFETCH_BLOCKS", 4)
    monkeypatch.setattr(discard, "PORTION_BLOCKS", 3)
    volume = rig.create(size=16 * BLOCK)
    volume.pwrite(b"x" * (16 * BLOCK), 0)
    turns = 0
    real = Share.begin

    def begin(share: Share) -> tuple[float, float]:
        nonlocal turns
        # Nobody waits for this one meanwhile.
        assert not volume.gate.occupied()
        assert not rig.pool.core.lock.locked()
        turns += 1
        return real(share)

    monkeypatch.setattr(Share, "begin", begin)
    prefetch(volume, 0, volume.size)
    assert turns == 4
    turns = 0
    discard.trim(volume, 0, volume.size)
    assert turns == 6


def test_one_look_sees_no_more_than_so_many_runs(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thinpoold.extents._MAX_RUNS", 2)
    volume = rig.create(size=8 * BLOCK)
    # Adjacent blocks, each a run of its own: together they are one extent.
    for block in (6, 4, 2, 0, 1, 3, 5, 7):
        volume.pwrite(b"x", block * BLOCK)
    first = extents(volume, 0, volume.size)
    assert first
    assert first[0].mapped
    assert first[-1].offset + first[-1].length < volume.size
