"""What a pool has beside devices and blocks moves both ways too: sizes, flags, numbers."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.uml import flat
from tests.uml.inside.replay import fill_up, replay
from tests.uml.ours import OurPool
from tests.uml.shuttle import Shuttle
from tests.uml.steps import (
    Create,
    Delete,
    Discard,
    Fill,
    Geometry,
    Snapshot,
    Step,
    Write,
    differences,
    digest,
)
from thinmeta.check import check
from thinmeta.export import export_metadata
from thinmeta.format.block import BLOCK_SIZE
from thinmeta.store.memory import MemoryStore
from thinmeta.thin import ThinMetadata

pytestmark = pytest.mark.slow

SMALL = Geometry(block_sectors=128, volume_blocks=40, data_blocks=500)
# Large devices, of which little is looked at.
WIDE = Geometry(128, volume_blocks=20_000, data_blocks=40_000, odd_sectors=0, used_bytes=512)
TINY = Geometry(block_sectors=128, volume_blocks=2, data_blocks=500)


def content(dev_id: int) -> list[Step]:
    """A device with something in it."""
    return [Create(dev_id), Write(dev_id, 0, 10 * 65536, dev_id)]


def test_the_users_transaction_number(tmp_path: Path) -> None:
    pool = Shuttle(tmp_path, SMALL)
    pool.start_here()
    pool.our_turn(content(1), lambda metadata: metadata.set_transaction_id(41))
    done = pool.kernel_turn([Create(2)], ["set_transaction_id 41 42"])
    assert done.status_before.transaction_id == 41
    seen: list[tuple[int, int]] = []
    pool.our_turn(
        [],
        lambda metadata: seen.append((metadata.transaction_id, metadata.details(2).transaction_id)),
    )
    assert seen == [(42, 41)]


def test_a_pool_that_needs_a_check_is_not_written(tmp_path: Path) -> None:
    pool = Shuttle(tmp_path, SMALL)
    pool.start_here()
    pool.our_turn(content(1), lambda metadata: metadata.set_needs_check(True))
    pool.machine.expected = ["unable to switch pool to write mode until repaired"]
    done = pool.machine.call(replay, SMALL, [1], [])
    assert (done.status_before.mode, done.status_before.needs_check) == ("ro", True)
    assert done.before == pool.model.expected()

    def clear(metadata: ThinMetadata) -> None:
        assert metadata.needs_check
        metadata.set_needs_check(False)

    pool.machine.expected = []
    pool.our_turn([], clear)
    assert not pool.kernel_turn([]).status_after.needs_check


def test_the_data_device_grows_on_either_side(tmp_path: Path) -> None:
    pool = Shuttle(tmp_path, SMALL)
    pool.start_here()
    pool.our_turn(content(1))
    # The kernel takes what the device has more than the metadata for its own.
    os.truncate(pool.data_image, 700 * SMALL.block_size)
    assert pool.kernel_turn(content(2)).status_after.data_blocks == 700
    sizes: list[int] = []

    def grow(metadata: ThinMetadata) -> None:
        sizes.append(metadata.data_blocks)
        metadata.resize_data(40_000)

    pool.our_turn(content(3), grow)
    assert sizes == [700]
    os.truncate(pool.data_image, 40_000 * SMALL.block_size)
    assert pool.kernel_turn(content(4)).status_before.data_blocks == 40_000
    pool.our_turn([Delete(1), *content(5)])


def test_blocks_that_the_kernel_added_are_used(tmp_path: Path) -> None:
    """An index entry says how many of its bitmap's entries are free; growing leaves it alone."""
    pool = Shuttle(tmp_path, replace(WIDE, data_blocks=100))
    pool.start_here()
    pool.our_turn([Create(1), Fill(1, list(range(90)), 1)])
    os.truncate(pool.data_image, 310 * WIDE.block_size)
    pool.kernel_turn([Fill(1, list(range(80, 240)), 2)])
    pool.our_turn([Fill(1, list(range(240, 290)), 3)])
    pool.kernel_turn([Fill(1, list(range(290, 300)), 4)])


def test_the_metadata_grows_on_either_side(tmp_path: Path) -> None:
    pool = Shuttle(tmp_path, WIDE)
    pool.start_there(metadata_size=48 * BLOCK_SIZE)
    first = pool.kernel_turn([Create(1), Fill(1, list(range(0, 2000, 2)), 1)])
    assert first.status_after.metadata_blocks == 48
    # More than 48 blocks of metadata.
    pool.our_turn([Fill(1, list(range(12_000)), 2), Snapshot(2, 1), Discard(1, 50, 70)])
    grown = pool.metadata_image.stat().st_size // BLOCK_SIZE
    assert grown > 48
    larger = 40_000
    os.truncate(pool.metadata_image, larger * BLOCK_SIZE)
    second = pool.kernel_turn([Fill(2, list(range(500)), 3)])
    assert second.status_before.metadata_blocks == larger
    pool.our_turn([Delete(1), Fill(2, list(range(0, 12_000, 7)), 4)])
    pool.kernel_turn([])


def test_a_pool_that_ran_out_of_metadata_goes_on_here(tmp_path: Path) -> None:
    """The kernel stops such a pool. Here the metadata has no size of its own, and grows."""
    pool = Shuttle(tmp_path, WIDE)
    pool.start_there(metadata_size=32 * BLOCK_SIZE)
    pool.machine.expected = ["reached low water mark for metadata"]
    pool.kernel_turn([Create(1), Fill(1, list(range(1000)), 1), Create(2)])
    much = Fill(2, list(range(WIDE.volume_blocks)), 2)
    pool.machine.expected = ["device-mapper:"]
    status, seen = pool.machine.call(fill_up, WIDE, much)
    pool.machine.expected = []
    assert (status.mode, status.needs_check) == ("ro", True)
    # The kernel went back to its last commit, which holds some of that. (How much of it is mapped
    # it does not know: its count in memory goes on from before.)
    mapped = seen.digests.index(digest(bytes(WIDE.used)))
    pool.model.apply(replace(much, blocks=much.blocks[:mapped]))

    store = MemoryStore()
    flat.load(pool.metadata_image, store)
    # At times it has also lost a data block on the way.
    assert {problem.kind for problem in check(store).errors} <= {"leak"}
    here = OurPool.open(WIDE, store, pool.data_image)
    assert here.metadata.needs_check
    assert differences(pool.model.expected(), here.see()) == []

    pool.model.apply(much)
    here.do([much])
    assert differences(pool.model.expected(), here.see()) == []
    here.metadata.set_needs_check(False)
    here.close()
    export_metadata(store, pool.metadata_image)
    back = pool.machine.call(replay, WIDE, [1, 2], [])
    assert back.status_before.mode == "rw"
    assert differences(pool.model.expected(), back.before) == []


def test_a_metadata_snapshot_is_kept(tmp_path: Path) -> None:
    pool = Shuttle(tmp_path, SMALL)
    pool.start_there()
    held = pool.kernel_turn([*content(1), *content(2)], ["reserve_metadata_snap"])
    assert held.status_after.held_root != "-"
    pool.our_turn([Snapshot(3, 1), Delete(1), Discard(2, 2, 5), *content(4)])
    again = pool.kernel_turn([Delete(2)], ["release_metadata_snap"])
    assert again.status_before.held_root == held.status_after.held_root
    assert again.status_after.held_root == "-"
    pool.our_turn([Delete(3), Delete(4)])
    assert pool.data_used == 0
    empty = pool.kernel_turn([]).status_before
    assert (empty.data_used, empty.metadata_used) == (0, held.status_before.metadata_used)


@pytest.mark.parametrize("kernel_first", [False, True], ids=["ours", "theirs"])
def test_more_devices_than_a_node_holds(tmp_path: Path, kernel_first: bool) -> None:
    pool = Shuttle(tmp_path, TINY)
    first: list[Step] = [Create(dev_id) for dev_id in range(0, 270, 2)]
    first += [Write(100, 0, 65536, 1), *(Snapshot(dev_id, 100) for dev_id in range(1, 21, 2))]
    then: list[Step] = [Delete(dev_id) for dev_id in range(30, 260, 2) if dev_id % 10]
    if kernel_first:
        pool.start_there()
        pool.kernel_turn(first)
        pool.our_turn(then)
        pool.kernel_turn([])
    else:
        pool.start_here()
        pool.our_turn(first)
        pool.kernel_turn(then)
        pool.our_turn([])
