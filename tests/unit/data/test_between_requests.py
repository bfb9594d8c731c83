"""What becomes true for one request while another acts on what was true before.

Each test holds one request up between its look and its act, has the world change, and lets another
request act on the change. The table in plugins/fastpath/README.md says what keeps the two apart.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import wait

import pytest

from tests.unit.data.rigs import BLOCK, PATIENCE, Rig, finish, read, spin, threads
from thinmeta.thin import Cursor, ThinMetadata
from thinpoold import admin, discard
from thinpoold.errnos import ReadOnlyVolume
from thinpoold.settings import CACHE, Settings
from thinpoold.volume import Volume

PIECE = 4096


def shared_volume(rig: Rig) -> Volume:
    volume = rig.create(size=8 * BLOCK)
    volume.pwrite(b"0" * 8 * BLOCK, 0)
    admin.snapshot(rig.pool, [("v", "s")])
    return rig.pool.open_volume("s")


def test_a_block_is_not_written_in_place_while_it_is_copied_after_a_commit(rig: Rig) -> None:
    snap = shared_volume(rig)
    rig.pool.open_volume("v").pwrite(b"a", 3 * BLOCK)
    reached, go = rig.device.hold("write_all")
    with threads(2) as pool:
        first = pool.submit(snap.pwrite, b"1" * PIECE, 3 * BLOCK)
        assert reached.wait(60)
        rig.device.gates.clear()
        rig.pool.commit()
        read(snap, 0, BLOCK)
        second = pool.submit(snap.pwrite, b"2" * PIECE, 3 * BLOCK + 2 * PIECE)
        # Answered at once, in place, or waiting for the copy to end.
        spin(lambda: second.done() or len(snap.cells.covering(3, 4)) == 2)
        go.set()
        finish(first, second)
    assert read(snap, 3 * BLOCK, PIECE) == b"1" * PIECE
    assert read(snap, 3 * BLOCK + 2 * PIECE, PIECE) == b"2" * PIECE


def test_a_block_is_not_written_in_place_while_it_is_copied_after_a_deletion(rig: Rig) -> None:
    """The deleted volume's share goes at once, without commit or grace period of its own."""
    snap = shared_volume(rig)
    volume = rig.pool.open_volume("v")
    dev_id = volume.dev_id
    rig.pool.close_volume(volume)
    rig.pool.close_volume(volume)
    with rig.pool.changing() as begin:
        begin()
        rig.pool.remove_volume(rig.pool.registry.get("v"))
    reached, go = rig.device.hold("write_all")
    with threads(2) as pool:
        first = pool.submit(snap.pwrite, b"1" * PIECE, 3 * BLOCK)
        assert reached.wait(60)
        rig.device.gates.clear()
        core = rig.pool.core
        with core.lock:
            assert rig.pool.metadata.delete_some(dev_id, Cursor()) is None
        read(snap, 0, BLOCK)
        second = pool.submit(snap.pwrite, b"2" * PIECE, 3 * BLOCK + 2 * PIECE)
        # Answered at once, in place, or waiting for the copy to end.
        spin(lambda: second.done() or len(snap.cells.covering(3, 4)) == 2)
        go.set()
        finish(first, second)
    assert read(snap, 3 * BLOCK, PIECE) == b"1" * PIECE
    assert read(snap, 3 * BLOCK + 2 * PIECE, PIECE) == b"2" * PIECE


def test_a_volume_never_reads_what_the_other_owner_writes_when_it_is_alone(rig: Rig) -> None:
    """A read that looked a shared block up, and comes to the data device late."""
    snap = shared_volume(rig)
    volume = rig.pool.open_volume("v")
    assert read(volume, 3 * BLOCK, 1) == b"0"
    reached, go = rig.device.hold("read")
    with threads(2) as pool:
        late = pool.submit(read, volume, 3 * BLOCK, BLOCK)
        assert reached.wait(60)
        rig.device.gates.clear()
        # The volume gives its share up, and a commit makes that durable.
        volume.pwrite(b"v" * BLOCK, 3 * BLOCK)
        rig.pool.commit()
        snap.pwrite(b"s" * BLOCK, 3 * BLOCK)
        go.set()
        (seen,) = finish(late)
    assert seen in (b"0" * BLOCK, b"v" * BLOCK)
    assert read(snap, 3 * BLOCK, BLOCK) == b"s" * BLOCK


def test_what_has_no_other_owner_is_written_in_place_after_the_grace_period(rig: Rig) -> None:
    snap = shared_volume(rig)
    rig.pool.open_volume("v").pwrite(b"v" * BLOCK, 3 * BLOCK)
    rig.pool.commit()
    used = rig.pool.metadata.data_used
    snap.pwrite(b"s" * BLOCK, 3 * BLOCK)
    assert rig.pool.metadata.data_used == used


def test_a_block_under_a_cell_is_read_while_it_waits_to_become_in_place(rig: Rig) -> None:
    """The look-up that leaves it shared must not make it unknown, which reads as zero."""
    snap = shared_volume(rig)
    rig.pool.open_volume("v").pwrite(b"v" * BLOCK, 3 * BLOCK)
    rig.pool.commit()
    with snap.cells.hold(2, 5):
        assert read(snap, 0, 8 * BLOCK) == b"0" * 8 * BLOCK
    assert read(snap, 3 * BLOCK, BLOCK) == b"0" * BLOCK


def test_who_waits_for_a_cell_finds_what_can_be_written_in_place_by_then(rig: Rig) -> None:
    snap = shared_volume(rig)
    with threads(1) as pool, snap.cells.hold(3, 4):
        waiting = pool.submit(snap.pwrite, b"1" * PIECE, 3 * BLOCK)
        spin(lambda: len(snap.cells.covering(3, 4)) == 2)
        rig.pool.open_volume("v").pwrite(b"v" * BLOCK, 3 * BLOCK)
        assert not waiting.done()
    finish(waiting)
    assert read(snap, 3 * BLOCK, PIECE) == b"1" * PIECE
    assert read(snap, 3 * BLOCK + PIECE, PIECE) == b"0" * PIECE


@pytest.mark.parametrize("cache", CACHE)
def test_a_block_in_place_is_not_copied_with_the_one_before_it(
    new_rig: Callable[..., Rig], cache: str
) -> None:
    """Two blocks of a run: the first counts as shared still, the second is written in place."""
    rig = new_rig(settings=Settings(cache=cache))
    snap = shared_volume(rig)
    volume = rig.pool.open_volume("v")
    volume.pwrite(b"v", 3 * BLOCK)
    rig.pool.commit()
    snap.pwrite(b"1" * PIECE, 3 * BLOCK + PIECE)
    # Block 2 has one owner, block 3 too, but of block 2 no commit says so yet.
    volume.pwrite(b"v", 2 * BLOCK)
    reached, go = rig.device.hold("write")
    with threads(2) as pool:
        first = pool.submit(snap.pwrite, b"2" * PIECE, 3 * BLOCK + 2 * PIECE)
        assert reached.wait(PATIENCE)
        rig.device.gates.clear()
        second = pool.submit(snap.pwrite, b"3" * 2 * PIECE, 3 * BLOCK - PIECE)
        finish(second)
        go.set()
        finish(first)
    assert (
        read(snap, 3 * BLOCK - PIECE, 4 * PIECE) == b"3" * 2 * PIECE + b"1" * PIECE + b"2" * PIECE
    )


@pytest.mark.parametrize("cache", CACHE)
def test_a_block_in_place_stays_so_when_what_is_beside_it_is_looked_up(
    new_rig: Callable[..., Rig], cache: str
) -> None:
    """As before, with a write that begins in the block itself, after a look-up of another."""
    rig = new_rig(settings=Settings(cache=cache))
    snap = shared_volume(rig)
    volume = rig.pool.open_volume("v")
    volume.pwrite(b"v", 2 * BLOCK)
    rig.pool.commit()
    snap.pwrite(b"1" * PIECE, 2 * BLOCK)
    volume.pwrite(b"v", 3 * BLOCK)
    reached, go = rig.device.hold("write")
    with threads(2) as pool:
        first = pool.submit(snap.pwrite, b"2" * PIECE, 2 * BLOCK + PIECE)
        assert reached.wait(PATIENCE)
        rig.device.gates.clear()
        with rig.pool.core.lock:
            snap.fill(0, 1)
        finish(pool.submit(snap.pwrite, b"3" * 2 * PIECE, 3 * BLOCK - PIECE))
        go.set()
        finish(first)
    assert read(snap, 2 * BLOCK, 2 * PIECE) == b"1" * PIECE + b"2" * PIECE
    assert read(snap, 3 * BLOCK - PIECE, 2 * PIECE) == b"3" * 2 * PIECE


def test_a_deletion_goes_on_with_what_is_noted_durably_alone(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an earlier process left is being deleted while a command's note is being committed."""
    snap = shared_volume(rig)
    volume = rig.pool.open_volume("v")
    dev_id = volume.dev_id
    rig.pool.close_volume(volume)
    rig.pool.close_volume(volume)
    reached, go, come = threading.Event(), threading.Event(), threading.Event()

    def hold_commit() -> None:
        reached.set()
        assert go.wait(PATIENCE)

    flush = rig.pool.core.flush

    def flushing() -> None:
        come.set()
        flush()

    with threads(2) as pool:
        rig.store.at_commit = hold_commit
        deleting = pool.submit(admin.delete, rig.pool, ["v"])
        assert reached.wait(PATIENCE)
        monkeypatch.setattr(rig.pool.core, "flush", flushing)
        going = pool.submit(rig.pool.deletion.go_on)
        going.add_done_callback(lambda _: come.set())
        assert come.wait(PATIENCE)
        read(snap, 0, BLOCK)
        snap.pwrite(b"s" * BLOCK, 3 * BLOCK)
        # What a crash now brings back.
        last = ThinMetadata.open(rig.store)
        mapping = last.lookup(dev_id, 3)
        last.close()
        assert mapping is not None
        with rig.path.open("rb") as data:
            data.seek(mapping.data_block * BLOCK)
            held = data.read(BLOCK)
        go.set()
        finish(deleting, going)
    assert held == b"0" * BLOCK


@pytest.mark.parametrize("change", ["write in place", "first write", "zero", "trim"])
def test_a_volume_is_not_changed_after_it_has_become_read_only(rig: Rig, change: str) -> None:
    """The request has been let in as one of a writable volume, and waits at the gate."""
    volume = rig.create(size=8 * BLOCK)
    volume.pwrite(b"0" * 2 * BLOCK, 0)
    requests: dict[str, Callable[[], None]] = {
        "write in place": lambda: volume.pwrite(b"1", 0),
        "first write": lambda: volume.pwrite(b"1", 4 * BLOCK),
        "zero": lambda: discard.zero(volume, 0, BLOCK, may_trim=False, fast=False),
        "trim": lambda: discard.trim(volume, 0, BLOCK),
    }
    at_gate, go_in = threading.Event(), threading.Event()
    enter = volume.gate.enter

    def slowly() -> None:
        at_gate.set()
        assert go_in.wait(PATIENCE)
        enter()

    volume.gate.enter = slowly  # type: ignore[method-assign]
    with threads(1) as pool:
        request = pool.submit(requests[change])
        assert at_gate.wait(PATIENCE)
        admin.set_settings(rig.pool, {"read_only": True}, "v")
        volume.gate.enter = enter  # type: ignore[method-assign]
        go_in.set()
        wait([request], PATIENCE)
    assert isinstance(request.exception(), ReadOnlyVolume)
    assert read(volume) == b"0" * 2 * BLOCK + bytes(6 * BLOCK)


def test_a_rollback_to_a_volume_waits_for_a_write_in_place_of_it(rig: Rig) -> None:
    """Both have the block in common afterwards."""
    snap = shared_volume(rig)
    volume = rig.pool.open_volume("v")
    rig.pool.close_volume(volume)
    rig.pool.close_volume(volume)
    snap.pwrite(b"1" * BLOCK, 3 * BLOCK)
    reached, go = rig.device.hold("write")
    with threads(3) as pool:
        writing = pool.submit(snap.pwrite, b"2" * PIECE, 3 * BLOCK)
        assert reached.wait(PATIENCE)
        rig.device.gates.clear()
        rolling = pool.submit(admin.rollback, rig.pool, "v", "s")
        # The gate is closed: whoever comes now waits.
        spin(lambda: snap.gate._closed)
        late = pool.submit(snap.pwrite, b"3" * PIECE, 3 * BLOCK + PIECE)
        assert not rolling.done()
        go.set()
        finish(writing, rolling, late)
    rolled = rig.pool.open_volume("v")
    assert read(rolled, 3 * BLOCK, 3 * PIECE) == b"2" * PIECE + b"1" * 2 * PIECE
    assert read(snap, 3 * BLOCK, 2 * PIECE) == b"2" * PIECE + b"3" * PIECE
