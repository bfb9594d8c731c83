"""Reading and writing a volume: what comes back, and what the data device is asked to do."""

import os
import random
from collections.abc import Callable

import pytest

from tests.support.lockclock import Clock
from tests.unit.data.rigs import BLOCK, Rig, finish, read, spin, threads
from thinpoold import admin, discard
from thinpoold.errnos import OutOfRange, ReadOnlyVolume
from thinpoold.mapping_table import IN_PLACE, PRESENT
from thinpoold.provision import MAX_RUN_BYTES
from thinpoold.settings import Settings
from thinpoold.volume import FILL_BLOCKS, FILL_RUNS, Volume


def test_an_unwritten_volume_reads_as_zero(rig: Rig) -> None:
    volume = rig.create(size=5 * BLOCK + 512)
    assert read(volume) == bytes(5 * BLOCK + 512)
    assert rig.pool.metadata.data_used == 0


@pytest.mark.parametrize(
    ("offset", "count"),
    [
        (0, 1),
        (BLOCK - 1, 1),
        (BLOCK - 1, 2),
        (100, BLOCK),
        (0, BLOCK),
        (0, 3 * BLOCK),
        (BLOCK + 512, 4096),
        (BLOCK // 2, 5 * BLOCK),
        (7 * BLOCK + 5, BLOCK // 2),
    ],
)
def test_what_is_written_comes_back_and_zeroes_around_it(rig: Rig, offset: int, count: int) -> None:
    volume = rig.create(size=8 * BLOCK)
    data = random.Random(offset).randbytes(count)
    volume.pwrite(data, offset)
    expected = bytes(offset) + data + bytes(volume.size - offset - count)
    assert read(volume) == expected
    # The same through a fresh table, and after a restart.
    volume.table.drop()
    assert read(volume) == expected
    rig.pool.commit()
    rig.crash()
    assert read(rig.pool.open_volume("v")) == expected


def test_a_sequential_write_is_one_run_of_data_blocks(rig: Rig) -> None:
    volume = rig.create()
    volume.pwrite(bytes(8 * BLOCK), 0)
    with rig.pool.core.lock:
        (run,) = rig.pool.metadata.runs(volume.dev_id, 0, 100)
    assert run.length == 8


def test_a_miss_brings_in_what_follows(new_rig: Callable[..., Rig]) -> None:
    blocks = 2 * FILL_BLOCKS
    rig = new_rig(blocks=2 * blocks + 64)

    def known(volume: Volume, block: int, count: int = 1) -> int:
        volume.table.drop()
        with rig.pool.core.lock:
            volume.fill(block, block + count)
        assert all(volume.table.entries[block : block + count])
        return volume.blocks - volume.table.entries.tolist().count(0)

    one = rig.create("one", size=blocks * BLOCK)
    one.pwrite(bytes(blocks * BLOCK), 0)
    assert known(one, 5) == FILL_BLOCKS
    assert known(one, 5, FILL_BLOCKS + 10) == FILL_BLOCKS + 10
    assert known(one, blocks - 3) == 3
    # Backwards, and so each block a run of its own.
    two = rig.create("two", size=blocks * BLOCK)
    for block in reversed(range(blocks)):
        two.pwrite(bytes(BLOCK), block * BLOCK)
    assert known(two, 5) == FILL_RUNS
    # But all that was asked for.
    assert known(two, 5, FILL_RUNS + 10) == FILL_RUNS + 10


def test_a_write_longer_than_a_run(new_rig: Callable[..., Rig]) -> None:
    blocks = 2 * MAX_RUN_BYTES // BLOCK + 3
    volume = new_rig(blocks=blocks).create(size=blocks * BLOCK)
    data = os.urandom(blocks * BLOCK - 1000)
    volume.pwrite(data, 500)
    assert read(volume, 500, len(data)) == data


def test_a_write_over_mapped_unmapped_and_shared_blocks(rig: Rig) -> None:
    volume = rig.create(size=12 * BLOCK)
    model = bytearray(volume.size)

    def write(begin: int, count: int, fill: bytes) -> None:
        volume.pwrite(fill * count, begin)
        model[begin : begin + count] = fill * count

    write(BLOCK + 10, 2 * BLOCK, b"a")
    admin.snapshot(rig.pool, [["v", "s"]])
    before = bytes(model)
    write(5 * BLOCK + 10, BLOCK, b"b")
    write(2 * BLOCK + 7, 6 * BLOCK, b"c")
    assert read(volume) == bytes(model)
    assert read(rig.pool.open_volume("s")) == before


def test_mapped_blocks_are_written_in_place_with_one_call(rig: Rig) -> None:
    volume = rig.create()
    volume.pwrite(bytes(4 * BLOCK), 0)
    rig.device.log = True
    volume.pwrite(b"x" * 512, 1024)
    volume.pwrite(b"y" * (2 * BLOCK), BLOCK + 512)
    read(volume, 512, 512)
    read(volume, 100, 3 * BLOCK)
    assert rig.device.calls == ["write", "write", "read", "read"]


def test_a_partial_write_into_a_hole_zeroes_nothing(rig: Rig) -> None:
    volume = rig.create()
    rig.device.log = True
    volume.pwrite(b"x" * 512, 1024)
    assert rig.device.calls == ["is_zero", "write_all"]
    assert os.stat(rig.path).st_blocks * 512 < BLOCK


def recycle(rig: Rig) -> None:
    """Fill the pool's data device with another volume's bytes, and free it all."""
    other = rig.create("other", size=64 * BLOCK)
    other.pwrite(b"\xa5" * (64 * BLOCK), 0)
    discard.trim(other, 0, other.size)
    rig.pool.commit()


@pytest.mark.parametrize("setting", ["passdown", "nopassdown"])
@pytest.mark.parametrize("at", [0, 512, BLOCK // 2, BLOCK - 512])
def test_a_small_write_never_shows_a_recycled_blocks_old_bytes(
    new_rig: Callable[..., Rig], setting: str, at: int
) -> None:
    rig = new_rig(settings=Settings(discard=setting))
    recycle(rig)
    volume = rig.create(size=64 * BLOCK)
    for block in range(32):
        volume.pwrite(b"n" * 512, block * BLOCK + at)
    expected = bytearray(BLOCK)
    expected[at : at + 512] = b"n" * 512
    for block in range(32):
        assert read(volume, block * BLOCK, BLOCK) == expected
    assert read(volume, 32 * BLOCK, 32 * BLOCK) == bytes(32 * BLOCK)


@pytest.mark.parametrize("setting", ["passdown", "nopassdown"])
def test_nor_does_an_unaligned_run_at_either_end(new_rig: Callable[..., Rig], setting: str) -> None:
    rig = new_rig(settings=Settings(discard=setting))
    recycle(rig)
    volume = rig.create(size=8 * BLOCK)
    volume.pwrite(b"n" * (3 * BLOCK), 1000)
    assert read(volume) == bytes(1000) + b"n" * (3 * BLOCK) + bytes(5 * BLOCK - 1000)


def test_nor_does_the_rest_of_a_last_block_when_the_volume_grows(
    new_rig: Callable[..., Rig],
) -> None:
    rig = new_rig(settings=Settings(discard="nopassdown"))
    recycle(rig)
    volume = rig.create(size=BLOCK + 512)
    volume.pwrite(b"n" * 512, BLOCK)
    admin.resize(rig.pool, "v", 2 * BLOCK)
    assert read(volume) == bytes(BLOCK) + b"n" * 512 + bytes(BLOCK - 512)


def test_skip_zeroing_writes_nothing_beside_the_data(new_rig: Callable[..., Rig]) -> None:
    rig = new_rig(settings=Settings(discard="nopassdown", skip_zeroing=True))
    recycle(rig)
    volume = rig.create()
    volume.pwrite(b"n" * 512, 512)
    assert read(volume, 0, 2048) == b"\xa5" * 512 + b"n" * 512 + b"\xa5" * 1024


def test_blocks_larger_than_a_buffer(new_rig: Callable[..., Rig], lock_clock: Clock) -> None:
    """Zeroing and copying around a write take other ways there."""
    size = 4 << 20
    lock_clock.most_in_gate = 0.1
    rig = new_rig(blocks=16, block_size=size, settings=Settings(discard="nopassdown"))
    other = rig.create("other", size=16 * size)
    other.pwrite(b"\xa5" * (16 * size), 0)
    discard.trim(other, 0, other.size)
    rig.pool.commit()
    volume = rig.create("v", size=2 * size)
    volume.pwrite(b"n" * 100, 2 << 20)
    model = bytearray(2 * size)
    model[2 << 20 : (2 << 20) + 100] = b"n" * 100
    assert read(volume) == bytes(model)
    admin.snapshot(rig.pool, [["v", "s"]])
    volume.pwrite(b"m" * 100, 3 << 20)
    assert read(rig.pool.open_volume("s")) == bytes(model)
    model[3 << 20 : (3 << 20) + 100] = b"m" * 100
    assert read(volume) == bytes(model)


def test_a_block_size_that_is_no_power_of_two(new_rig: Callable[..., Rig]) -> None:
    size = 3 * BLOCK
    volume = new_rig(block_size=size).create(size=10 * size)
    volume.pwrite(b"x" * size, size // 2)
    assert read(volume, 0, 2 * size) == bytes(size // 2) + b"x" * size + bytes(size // 2)


def test_breaking_of_sharing_copies_the_rest_of_the_block(rig: Rig) -> None:
    volume = rig.create()
    old = random.Random(1).randbytes(2 * BLOCK)
    volume.pwrite(old, 0)
    admin.snapshot(rig.pool, [["v", "s"]])
    snap = rig.pool.open_volume("s")
    rig.device.log = True
    volume.pwrite(b"x" * 512, 1024)
    assert rig.device.calls == ["read", "write_all"]
    assert read(volume, 0, 2 * BLOCK) == old[:1024] + b"x" * 512 + old[1536:]
    assert read(snap, 0, 2 * BLOCK) == old
    snap.pwrite(b"s" * BLOCK, BLOCK)
    assert read(volume, BLOCK, BLOCK) == old[BLOCK:]


def test_one_thread_breaks_sharing_of_blocks_of_several_sizes(
    new_rig: Callable[..., Rig],
) -> None:
    sizes = (2 * BLOCK, BLOCK, 3 * BLOCK)
    volumes = []
    for number, size in enumerate(sizes):
        rig = new_rig(block_size=size)
        volume = rig.create(size=4 * size)
        model = bytearray(random.Random(number).randbytes(4 * size))
        volume.pwrite(bytes(model), 0)
        admin.snapshot(rig.pool, [["v", "s"]])
        volumes.append((volume, model, rig.pool.open_volume("s"), bytes(model)))
    for block in range(4):
        for (volume, model, _, _), size in zip(volumes, sizes, strict=True):
            # At the front, in the middle, at the end.
            at = block * size + (0, 1000, size // 2, size - 300)[block]
            volume.pwrite(b"n" * 300, at)
            model[at : at + 300] = b"n" * 300
    for volume, model, snap, old in volumes:
        assert read(volume) == bytes(model)
        assert read(snap) == old


def test_a_write_across_shared_and_new_blocks_keeps_what_is_beside_it(rig: Rig) -> None:
    volume = rig.create()
    model = bytearray(volume.size)
    for block in (1, 2, 5):
        model[block * BLOCK : (block + 1) * BLOCK] = random.Random(block).randbytes(BLOCK)
        volume.pwrite(bytes(model[block * BLOCK : (block + 1) * BLOCK]), block * BLOCK)
    admin.snapshot(rig.pool, [["v", "s"]])
    old = bytes(model)
    for begin, end in (
        (100, BLOCK + 100),
        (2 * BLOCK - 100, 2 * BLOCK + 100),
        (3 * BLOCK, 6 * BLOCK - 9),
    ):
        volume.pwrite(b"n" * (end - begin), begin)
        model[begin:end] = b"n" * (end - begin)
        assert read(volume) == bytes(model)
    assert read(rig.pool.open_volume("s")) == old


def test_a_whole_shared_block_is_overwritten_without_a_copy(rig: Rig) -> None:
    volume = rig.create()
    volume.pwrite(b"a" * (2 * BLOCK), 0)
    admin.snapshot(rig.pool, [["v", "s"]])
    rig.device.log = True
    volume.pwrite(b"b" * (2 * BLOCK), 0)
    assert rig.device.calls == ["write_all"]


def test_concurrent_writers_break_the_sharing_of_a_block_once(rig: Rig) -> None:
    volume = rig.create()
    old = random.Random(2).randbytes(BLOCK)
    volume.pwrite(old, 0)
    admin.snapshot(rig.pool, [["v", "s"]])
    reached, go = rig.device.hold("write_all")
    used = rig.pool.metadata.data_used
    with threads() as pool:
        first = pool.submit(volume.pwrite, b"0" * 512, 0)
        assert reached.wait(60)
        rest = [pool.submit(volume.pwrite, b"%d" % n * 512, n * 512) for n in range(1, 8)]
        spin(lambda: len(volume.cells._line) == 8)
        # Reads go on meanwhile, and see the block as it was.
        assert read(volume, 0, BLOCK) == old
        go.set()
        finish(first, *rest)
    assert rig.pool.metadata.data_used == used + 1
    expected = b"".join(b"%d" % n * 512 for n in range(8)) + old[4096:]
    assert read(volume, 0, BLOCK) == expected
    assert read(rig.pool.open_volume("s"), 0, BLOCK) == old


def test_other_blocks_go_on_while_one_is_copied(rig: Rig) -> None:
    volume = rig.create()
    volume.pwrite(b"a" * (2 * BLOCK), 0)
    admin.snapshot(rig.pool, [["v", "s"]])
    volume.pwrite(b"b" * 512, BLOCK)
    reached, go = rig.device.hold("write_all")
    with threads() as pool:
        slow = pool.submit(volume.pwrite, b"c" * 512, 0)
        assert reached.wait(60)
        volume.pwrite(b"d" * 512, BLOCK + 512)
        assert read(volume, BLOCK, 1024) == b"b" * 512 + b"d" * 512
        rig.pool.core.flush()
        assert not slow.done()
        go.set()
        finish(slow)


def test_random_writers_on_many_threads(new_rig: Callable[..., Rig]) -> None:
    """Each thread owns every eighth sector, so the outcome is known whatever the order."""
    rig = new_rig(blocks=256)
    volume = rig.create(size=16 * BLOCK)
    sectors = volume.size // 512
    expected = bytearray(volume.size)
    snapshots = 0

    def run(me: int) -> dict[int, bytes]:
        rng = random.Random(me)
        mine: dict[int, bytes] = {}
        for _ in range(150):
            sector = rng.randrange(sectors // 8) * 8 + me
            data = rng.randbytes(512)
            volume.pwrite(data, sector * 512)
            mine[sector] = data
            got = bytearray(512)
            volume.pread(got, sector * 512)
            assert bytes(got) == data
        return mine

    with threads() as pool:
        runs = [pool.submit(run, me) for me in range(8)]
        while not all(one.done() for one in runs) and snapshots < 8:
            admin.snapshot(rig.pool, [["v", f"s{snapshots}"]])
            snapshots += 1
        for mine in finish(*runs):
            for sector, data in mine.items():
                expected[sector * 512 : sector * 512 + 512] = data
    assert read(volume) == bytes(expected)


def test_past_the_end(rig: Rig) -> None:
    volume = rig.create(size=BLOCK + 512)
    with pytest.raises(OutOfRange):
        read(volume, BLOCK, 513)
    with pytest.raises(OutOfRange):
        volume.pwrite(b"x", BLOCK + 512)
    with pytest.raises(OutOfRange):
        discard.trim(volume, 0, 2 * BLOCK)
    with pytest.raises(OutOfRange):
        discard.zero(volume, 0, 2 * BLOCK, may_trim=True, fast=False)
    assert rig.pool.metadata.data_used == 0


def test_a_read_only_volume_takes_no_changes(rig: Rig) -> None:
    volume = rig.create(read_only=True)
    with pytest.raises(ReadOnlyVolume):
        volume.pwrite(b"x", 0)
    with pytest.raises(ReadOnlyVolume):
        discard.trim(volume, 0, BLOCK)
    with pytest.raises(ReadOnlyVolume):
        discard.zero(volume, 0, BLOCK, may_trim=False, fast=False)
    assert read(volume, 0, 10) == bytes(10)


def test_what_the_last_other_owner_gave_up_is_not_written_in_place_before_the_commit(
    rig: Rig,
) -> None:
    """A crash would bring the other owner back, with this one's new bytes."""
    volume = rig.create()
    volume.pwrite(b"old" * 1024, 0)
    admin.snapshot(rig.pool, [["v", "s"]])
    snap = rig.pool.open_volume("s")
    snap.pwrite(b"its own" * 100, 0)
    # The block is the volume's alone by now, but was not at the last commit.
    volume.pwrite(b"new" * 1024, 0)
    rig.crash()
    assert read(rig.pool.open_volume("s"), 0, 3072) == b"old" * 1024
    assert read(rig.pool.open_volume("v"), 0, 3072) == b"old" * 1024


@pytest.mark.parametrize("how", ["trim", "delete"])
def test_nor_what_was_discarded_or_deleted_with_another_volume(rig: Rig, how: str) -> None:
    volume = rig.create()
    volume.pwrite(b"old" * 1024, 0)
    admin.snapshot(rig.pool, [["v", "s"]])
    volume.pwrite(b"x" * 10, 5 * BLOCK)
    rig.pool.commit()
    if how == "trim":
        snap = rig.pool.open_volume("s")
        discard.trim(snap, 0, snap.size)
        volume.pwrite(b"new" * 1024, 0)
    else:
        # Before the commit that ends the deletion gets to the store.
        def write_now() -> None:
            rig.store.at_commit = lambda: None
            volume.pwrite(b"new" * 1024, 0)
            raise KeyboardInterrupt

        rig.store.at_commit = write_now
        with pytest.raises(KeyboardInterrupt):
            admin.delete(rig.pool, ["s"])
    rig.crash()
    assert read(rig.pool.open_volume("s"), 0, 3072) == b"old" * 1024


def test_after_the_commit_the_last_owner_writes_in_place(rig: Rig) -> None:
    volume = rig.create()
    volume.pwrite(b"old" * 1024, 0)
    admin.snapshot(rig.pool, [["v", "s"]])
    admin.delete(rig.pool, ["s"])
    rig.device.log = True
    volume.pwrite(b"new" * 1024, 0)
    assert rig.device.calls == ["write"]
    assert volume.table.entries[0] & IN_PLACE == IN_PLACE


def test_a_read_fills_the_table_and_a_shared_block_is_not_writable_there(rig: Rig) -> None:
    volume = rig.create()
    volume.pwrite(bytes(2 * BLOCK), 0)
    admin.snapshot(rig.pool, [["v", "s"]])
    assert volume.table.entries[0] == 0
    read(volume, 0, 1)
    assert volume.table.entries[0] & IN_PLACE == PRESENT
    assert volume.table.entries[1] & IN_PLACE == PRESENT


def test_a_write_in_place_brings_in_what_may_be_written_in_place_next(rig: Rig) -> None:
    """Or each block's first write after a client has come back would be Python's."""
    volume = rig.create(size=16 * BLOCK)
    volume.pwrite(b"o" * (8 * BLOCK), 0)
    admin.snapshot(rig.pool, [("v", "s")])
    volume.pwrite(b"n" * BLOCK, 4 * BLOCK)
    volume.pwrite(b"n" * BLOCK, 6 * BLOCK)
    volume.table.drop()
    volume.pwrite(b"x" * 512, 4 * BLOCK)
    found = [entry & IN_PLACE for entry in volume.table.entries[:9]]
    assert found == [0, 0, 0, 0, IN_PLACE, PRESENT, IN_PLACE, PRESENT, 0]
    assert read(volume, 4 * BLOCK, 4 * BLOCK) == b"x" * 512 + b"n" * (BLOCK - 512) + b"".join(
        letter * BLOCK for letter in (b"o", b"n", b"o")
    )


def test_clients_share_a_volume_until_the_last_one_goes(rig: Rig) -> None:
    volume = rig.create()
    other = rig.pool.open_volume("v")
    assert other is volume
    assert admin.list_volumes(rig.pool)["volumes"][0]["clients"] == 2
    rig.pool.close_volume(other)
    volume.pwrite(b"x", 0)
    rig.pool.close_volume(volume)
    assert admin.list_volumes(rig.pool)["volumes"][0]["clients"] == 0
    assert read(rig.pool.open_volume("v"), 0, 1) == b"x"


def test_a_hole_is_read_without_bringing_in_what_is_beside_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = rig.create(size=16 * BLOCK)
    for block in range(1, 16, 2):
        volume.pwrite(b"x" * BLOCK, block * BLOCK)
    volume.forget()
    filled: list[int] = []
    real = volume.fill

    def fill(block: int, last: int) -> None:
        filled.append(block)
        real(block, last)

    monkeypatch.setattr(volume, "fill", fill)
    for _ in range(3):
        assert read(volume, 2 * BLOCK, BLOCK) == bytes(BLOCK)
    assert filled == []
    assert read(volume) == (bytes(BLOCK) + b"x" * BLOCK) * 8
    assert filled == [1]
