"""What becomes true for one request while another acts on what was true before.

Each test holds one request up between its look and its act, has the world change, and lets another
request act on the change. The table in plugins/fastpath/README.md says what keeps the two apart.
"""

from __future__ import annotations

from tests.unit.data.rigs import BLOCK, Rig, finish, read, spin, threads
from thinmeta.thin import Cursor
from thinpoold import admin
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
    finish_deletion = admin.begin_delete(rig.pool, ["v"])
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
    del finish_deletion


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
