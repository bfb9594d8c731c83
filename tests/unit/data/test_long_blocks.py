"""Blocks larger than what one stay in the gate moves: they are filled outside the gate.

What may happen to the block meanwhile are the changes that the gate would have held up.
"""

import errno
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.support.lockclock import Clock
from tests.unit.data.rigs import PATIENCE, Rig, finish, let_go, read, spin, sweep, threads
from thinmeta.errors import StoreError
from thinpoold import admin, discard
from thinpoold.errnos import ReadOnlyVolume
from thinpoold.errors import DeviceError
from thinpoold.modes import Stopped
from thinpoold.provision import MAX_RUN_BYTES
from thinpoold.volume import Volume

MIB = 1 << 20
BLOCK = 2 * MAX_RUN_BYTES
PIECE = 4096
WRITTEN = b"p" * PIECE


@pytest.fixture
def rig(new_rig: Callable[..., Rig]) -> Rig:
    """A pool of 8 blocks, on a device that zeroes by writing, as a block device does."""
    rig = new_rig(blocks=8, block_size=BLOCK)
    rig.device._can_zero = False
    return rig


@pytest.fixture
def volume(rig: Rig) -> Volume:
    """Of two blocks of `v`, of which snapshot `s` shares the first."""
    volume = rig.create("v", size=2 * BLOCK)
    volume.pwrite(b"v" * BLOCK, 0)
    admin.snapshot(rig.pool, [["v", "s"]])
    return volume


def changed(old: bytes, piece: bytes, at: int = PIECE) -> bytes:
    """The first block with a piece written into it."""
    return old[:at] + piece + old[at + len(piece) :]


@dataclass
class HeldUp:
    """A write of `WRITTEN` at `PIECE` that is copying the first block, and threads for others."""

    request: Future[None]
    pool: ThreadPoolExecutor
    go: threading.Event

    def end(self) -> None:
        """Let it go, and wait for it."""
        assert not self.request.done()
        self.go.set()
        finish(self.request)


@contextmanager
def held_up(rig: Rig, volume: Volume) -> Iterator[HeldUp]:
    reached, go = rig.device.hold("copy")
    with threads() as pool, let_go(go):
        request = pool.submit(volume.pwrite, WRITTEN, PIECE)
        assert reached.wait(PATIENCE)
        # Others are not held up.
        del rig.device.gates["copy"]
        yield HeldUp(request, pool, go)


def test_no_request_is_long_in_the_gate(rig: Rig, volume: Volume, lock_clock: Clock) -> None:
    """The clock's model of a disk is what judges."""
    for offset in (PIECE, BLOCK + PIECE):
        volume.pwrite(b"a" * PIECE, offset)
    for may_trim in (False, True):
        sweep(volume, may_trim=may_trim)
    admin.snapshot(rig.pool, [["v", "t"]])
    volume.pwrite(bytes(volume.size - 100), 50)
    assert lock_clock.complaints == []


def test_what_is_written_comes_back(rig: Rig, volume: Volume) -> None:
    rng = random.Random(1)
    model = bytearray(b"v" * BLOCK + bytes(BLOCK))
    frozen: dict[str, bytes] = {}
    for number in range(24):
        begin = rng.randrange(volume.size)
        end = min(volume.size, begin + rng.choice([512, PIECE, MIB, 5 * MIB, 2 * BLOCK]))
        kind = rng.randrange(4)
        if kind == 0:
            discard.zero(volume, begin, end - begin, may_trim=bool(number % 2), fast=False)
            model[begin:end] = bytes(end - begin)
        else:
            fill = bytes([number + 1])
            volume.pwrite(fill * (end - begin), begin)
            model[begin:end] = fill * (end - begin)
        if number % 8 == 7:
            name = f"t{number}"
            admin.delete(rig.pool, list(frozen))
            frozen = {name: bytes(model)}
            admin.snapshot(rig.pool, [["v", name]])
        assert read(volume) == model
    for name, content in frozen.items():
        assert read(rig.pool.open_volume(name)) == content


def test_a_snapshot_waits_for_no_copying(rig: Rig, volume: Volume) -> None:
    with held_up(rig, volume) as held:
        finish(held.pool.submit(admin.snapshot, rig.pool, [["v", "t"]]))
        admin.delete(rig.pool, ["s"])
        held.end()
    old = b"v" * BLOCK
    assert read(rig.pool.open_volume("t"), 0, BLOCK) == old
    assert read(volume, 0, BLOCK) == changed(old, WRITTEN)
    # Nor do the two share anything now: what is left of sharing is one's alone.
    rig.pool.commit()
    rig.pool.open_volume("t").pwrite(b"t" * BLOCK, 0)
    assert read(volume, 0, BLOCK) == changed(old, WRITTEN)


def test_a_block_shared_meanwhile_is_given_up_as_shared(rig: Rig, volume: Volume) -> None:
    """A crash would bring back a commit in which both own it: the other owner copies it, too."""
    rig.pool.open_volume("s").pwrite(b"s" * PIECE, 0)
    with held_up(rig, volume) as held:
        finish(held.pool.submit(admin.snapshot, rig.pool, [["v", "t"]]))
        rig.pool.commit()
        held.end()
    snapshot = rig.pool.open_volume("t")
    before = rig.pool.metadata.lookup(snapshot.dev_id, 0)
    snapshot.pwrite(b"t" * PIECE, 0)
    after = rig.pool.metadata.lookup(snapshot.dev_id, 0)
    assert before is not None
    assert after is not None
    assert before.data_block != after.data_block


def test_what_took_the_old_blocks_place_is_not_copied(rig: Rig, volume: Volume) -> None:
    """The block is discarded, given back, and another volume's, before it is read."""
    admin.delete(rig.pool, ["s"])
    rig.pool.commit()
    admin.snapshot(rig.pool, [["v", "s"]])
    with held_up(rig, volume) as held:
        admin.delete(rig.pool, ["s"])
        finish(held.pool.submit(discard.trim, volume, 0, BLOCK))
        rig.pool.commit()
        other = rig.create("w", size=6 * BLOCK)
        # All that is free, so the old block as well.
        other.pwrite(b"w" * (6 * BLOCK), 0)
        held.end()
    assert read(volume, 0, BLOCK) == changed(bytes(BLOCK), WRITTEN)
    assert read(other) == b"w" * (6 * BLOCK)


def test_who_waits_for_the_block_holds_up_nobody(rig: Rig, volume: Volume) -> None:
    with held_up(rig, volume) as held:
        second = held.pool.submit(volume.pwrite, b"q" * PIECE, 3 * PIECE)
        spin(lambda: len(volume.cells.covering(0, 1)) == 2)
        finish(held.pool.submit(admin.snapshot, rig.pool, [["v", "t"]]))
        finish(held.pool.submit(volume.pwrite, b"o" * PIECE, BLOCK))
        assert not second.done()
        held.end()
        finish(second)
    expected = changed(changed(b"v" * BLOCK, WRITTEN), b"q" * PIECE, 3 * PIECE)
    assert read(volume, 0, BLOCK) == expected
    assert read(rig.pool.open_volume("t"), 0, BLOCK) == b"v" * BLOCK


def test_a_block_that_may_be_written_in_place_by_then_is(rig: Rig, volume: Volume) -> None:
    """Its last other owner goes while it is copied, with the commit and the grace period."""
    with held_up(rig, volume) as held:
        admin.delete(rig.pool, ["s"])
        rig.pool.commit()
        used = rig.pool.metadata.data_used
        held.end()
    assert rig.pool.metadata.data_used == used
    assert read(volume, 0, BLOCK) == changed(b"v" * BLOCK, WRITTEN)


def test_a_volume_that_has_become_read_only_takes_no_write(rig: Rig, volume: Volume) -> None:
    with held_up(rig, volume) as held:
        finish(held.pool.submit(admin.set_settings, rig.pool, {"read_only": "yes"}, "v"))
        with pytest.raises(ReadOnlyVolume):
            held.end()
    assert read(volume, 0, BLOCK) == b"v" * BLOCK
    assert rig.pool.metadata.data_free + rig.pool.metadata.data_used == 8


def test_a_failure_gives_the_new_block_back(rig: Rig, volume: Volume) -> None:
    free = rig.pool.metadata.data_free
    rig.device.log, rig.device.fail_at, rig.device.fail_only = True, 0, frozenset({"copy"})
    with pytest.raises(DeviceError):
        volume.pwrite(b"p" * PIECE, PIECE)
    rig.device.log = False
    assert rig.pool.core.give_back_ahead() in (True, False)
    assert rig.pool.metadata.data_free == free
    volume.pwrite(b"p" * PIECE, PIECE)
    assert read(volume, 0, BLOCK) == changed(b"v" * BLOCK, b"p" * PIECE)


def test_going_back_to_the_last_commit_ends_it(rig: Rig, volume: Volume) -> None:
    rig.pool.commit()

    def fail() -> None:
        raise StoreError(errno.EIO)

    with held_up(rig, volume) as held:
        rig.pool.open_volume("s").pwrite(b"s" * PIECE, BLOCK)
        rig.store.at_commit = fail
        with pytest.raises(StoreError):
            rig.pool.commit()
        with pytest.raises(Stopped):
            held.end()
    assert read(volume, 0, BLOCK) == b"v" * BLOCK


def test_a_larger_size_zeroes_what_was_out_of_sight(rig: Rig) -> None:
    rig.pool.close_volume(rig.create("v", size=BLOCK))
    volume = rig.pool.open_volume("v")
    volume.pwrite(b"v" * BLOCK, 0)
    rig.pool.close_volume(volume)
    admin.resize(rig.pool, "v", PIECE, shrink=True)
    admin.snapshot(rig.pool, [["v", "s"]])
    reached, go = rig.device.hold("write_all")
    with threads() as pool, let_go(go):
        slow = pool.submit(admin.resize, rig.pool, "v", BLOCK)
        assert reached.wait(PATIENCE)
        volume = rig.pool.open_volume("v")
        writing = pool.submit(volume.pwrite, b"n" * 512, 0)
        spin(lambda: len(volume.cells.covering(0, 1)) == 2)
        go.set()
        finish(slow, writing)
    assert read(volume) == b"n" * 512 + b"v" * (PIECE - 512) + bytes(BLOCK - PIECE)


def test_many_at_once(rig: Rig, volume: Volume) -> None:
    """Each of eight writes its own pieces, while snapshots come and go."""
    ready = threading.Barrier(8)

    def write(number: int) -> None:
        ready.wait(PATIENCE)
        for turn in range(16):
            at = (turn * 8 + number) * PIECE
            volume.pwrite(bytes([number + 1]) * PIECE, at)

    with threads() as pool:
        writers = [pool.submit(write, number) for number in range(8)]
        while not all(one.done() for one in writers):
            admin.delete(rig.pool, ["s"])
            admin.snapshot(rig.pool, [["v", "s"]])
            rig.pool.commit()
        finish(*writers)
    expected = b"".join(bytes([n + 1]) * PIECE for _ in range(16) for n in range(8))
    assert read(volume, 0, len(expected)) == expected
