"""The ledger: what of it outlives a process, a power cut, damage."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinpoold import boot
from thinpoold import ledger as ledgers
from thinpoold.boot import Boot
from thinpoold.errors import DeviceError, NoSpace
from thinpoold.ledger import Entry, Guest, Ledger, Mark, State, name_digest, other_commit, read
from thinpoold.ledger_format import Found, pack_pool, packed

UUID = bytes(range(16))
A, B = b"a" * 16, b"b" * 16
BOOT = Boot(b"boot" * 4, own=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


def begun(path: Path, generation: int = 7) -> Ledger:
    ledger = Ledger(path, UUID)
    ledger.open()
    ledger.begin(BOOT, generation)
    return ledger


@given(
    uuid=st.binary(min_size=16, max_size=16),
    marks=st.integers(1, 15),
    since=st.integers(0, 2**64 - 1),
    name=st.binary(min_size=16, max_size=16),
    client=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
)
def test_an_entry_is_read_as_it_was_written(
    uuid: bytes, marks: int, since: int, name: bytes, client: str
) -> None:
    entry = Entry(uuid, Mark(marks), since, name, client)
    again = Entry.unpack(entry.pack())
    assert again.client.encode() == client.encode()[: len(again.client.encode())]
    assert (again.uuid, again.marks, again.since, again.name) == (uuid, entry.marks, since, name)
    assert len(client.encode()) - len(again.client.encode()) < 4 or len(client.encode()) > 80


def test_what_a_process_marked_the_next_finds(path: Path) -> None:
    ledger = begun(path)
    ledger.opened(A, Guest("qemu (process 7)", name=name_digest("disk")))
    ledger.opened(B)
    ledger.committed(9)
    # Killed here.
    found = Ledger(path, UUID).found
    assert found.died
    assert (found.generation, found.boot) == (9, BOOT)
    (a, b) = sorted(found.entries.values(), key=lambda entry: entry.uuid)
    assert a.marks == Mark.OPEN | Mark.WRITTEN
    assert (a.client, a.name) == ("qemu (process 7)", name_digest("disk"))
    assert b.marks == Mark.WRITTEN


def test_an_end_in_order_is_told_from_a_death(path: Path) -> None:
    ledger = begun(path)
    assert Ledger(path, UUID).found.died
    ledger.end(clean=True)
    assert not Ledger(path, UUID).found.died
    Ledger(path, UUID).open()
    assert Ledger(path, UUID).found.died


def test_no_file_is_no_death(path: Path) -> None:
    found = Ledger(path, UUID).found
    assert found.state is None
    assert not found.died


def test_a_file_without_a_pools_slot_is_a_death_of_which_nothing_is_known(path: Path) -> None:
    begun(path).end(clean=True)
    octets = bytearray(path.read_bytes())
    octets[20] ^= 1
    path.write_bytes(octets)
    found = Ledger(path, UUID).found
    assert found.died
    assert found.boot.id == b""


def test_what_is_written_to_a_closed_volume_is_on_disk_after_a_flush_that_began_later(
    path: Path,
) -> None:
    ledger = begun(path)
    ledger.opened(A)
    ledger.opened(B)
    ledger.closed(B)
    before = ledger.closed_unwritten()
    assert before == [B]
    # Closed while the flush is under way: what it wrote may have come after.
    ledger.closed(A)
    # Opened again meanwhile.
    ledger.opened(B)
    ledger.written(before)
    assert sorted(ledger.unwritten()) == [A, B]
    ledger.closed(B)
    ledger.written(ledger.closed_unwritten())
    assert ledger.unwritten() == []
    assert read(path, UUID).entries == {}


def test_a_loss_stays_until_it_is_accepted(path: Path) -> None:
    ledger = begun(path)
    ledger.opened(A, Guest("somebody"))
    ledger.lose([A, B])
    ledger.closed(A)
    ledger.written([A])
    again = begun(path)
    assert again.lost(A)
    assert again.lost(B)
    again.accept(A)
    assert not Ledger(path, UUID).lost(A)
    assert Ledger(path, UUID).lost(B)


def test_who_had_a_volume_open_is_expected_back(path: Path) -> None:
    ledger = begun(path)
    ledger.opened(A, Guest("qemu", name=name_digest("disk")))
    assert ledger.absent(A) is None
    holder = ledger.holder("disk")
    assert holder is not None
    assert holder.uuid == A
    ledger = begun(path)
    absent = ledger.absent(A)
    assert absent is not None
    assert absent.client == "qemu"
    # It has come back, and gone in order.
    ledger.opened(A, Guest("qemu"))
    assert ledger.absent(A) is None
    ledger.closed(A)
    assert begun(path).absent(A) is None
    assert begun(path).holder("disk") is None


def test_calls_that_are_told_of_errors_may_overlap(path: Path) -> None:
    ledger = begun(path)
    with ledger.syncing():
        with ledger.syncing():
            pass
        assert State.SYNCING in (read(path, UUID).state or State(0))
    assert State.SYNCING not in (read(path, UUID).state or State(0))


def test_a_call_at_an_opening_takes_nothing_of_what_was_found(path: Path) -> None:
    """The process may die again before it has acted on it."""
    ledger = begun(path)
    ledger.note(State.SYNCING, on=True)
    again = Ledger(path, UUID)
    again.open()
    with again.syncing():
        pass
    assert State.SYNCING in (read(path, UUID).state or State(0))
    again.begin(BOOT, 8)
    with again.syncing():
        pass
    assert State.SYNCING not in (read(path, UUID).state or State(0))


def test_a_state_found_stays_until_all_is_begun_anew(path: Path) -> None:
    begun(path).note(State.FAILED | State.UNNOTED, on=True, durable=True)
    again = Ledger(path, UUID)
    again.open()
    assert State.FAILED | State.UNNOTED in (read(path, UUID).state or State(0))
    again.begin(BOOT, 8)
    assert read(path, UUID).state == State(0)


def test_there_is_room_for_any_number_of_volumes(path: Path) -> None:
    ledger = begun(path)
    uuids = [number.to_bytes(16, "big") for number in range(1, 1300)]
    for uuid in uuids:
        ledger.opened(uuid)
    ledger = begun(path)
    assert sorted(ledger.unwritten()) == uuids
    ledger.written(uuids[::2])
    for uuid in uuids[::2]:
        ledger.opened(uuid)
    assert sorted(begun(path).unwritten()) == uuids
    size = path.stat().st_size
    assert size == 3 * (64 << 10)


def test_marking_needs_no_space(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = begun(path)
    ends = []
    real = os.pwrite

    def pwrite(fd: int, octets: bytes, at: int) -> int:
        ends.append(at + len(octets))
        return real(fd, octets, at)

    size = path.stat().st_size
    monkeypatch.setattr(os, "pwrite", pwrite)
    for number in range(1, 512):
        ledger.opened(number.to_bytes(16, "big"))
        ledger.lose([number.to_bytes(16, "big")])
    assert max(ends) <= size


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, NoSpace), (errno.EIO, DeviceError)], ids=["full", "ill"]
)
def test_what_cannot_be_marked_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    ledger = begun(path)

    def fail(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwrite", fail)
    acts: list[Callable[[], object]] = [
        lambda: ledger.opened(A),
        lambda: ledger.lose([A]),
        lambda: ledger.committed(8),
    ]
    for act in acts:
        with pytest.raises(kind, match="ledger"):
            act()
    with pytest.raises(kind, match="ledger"), ledger.syncing():
        pass


def test_a_torn_or_foreign_slot_counts_as_unused(path: Path) -> None:
    ledger = begun(path)
    ledger.lose([A])
    assert Ledger(path, bytes(16)).found.entries == {}
    octets = bytearray(path.read_bytes())
    at = octets.index(A)
    octets[at + 16] ^= 1
    path.write_bytes(octets)
    found = read(path, UUID)
    assert found.entries == {}
    assert found.generation == 7


def test_the_pools_slot_is_as_it_is_on_disk() -> None:
    slot = packed(pack_pool(State.CLEAN, 5, BOOT), UUID)
    assert len(slot) == 128
    assert slot[:8] == b"tpledgr1"
    assert slot[8:20] == bytes([1, 0, 0, 0, 5]) + bytes(7)


@pytest.mark.parametrize(
    ("found", "generation", "says"),
    [
        (Found(), 5, ""),
        (Found(State.CLEAN, 5), 5, ""),
        (Found(State.CLEAN, 5), 4, "made commit 5"),
        (Found(State(0), 5, boot.current()), 6, ""),
        (Found(State(0), 5, boot.current()), 4, "made commit 5"),
        (Found(State(0), 5, boot.current()), 7, "last was 5"),
        # After a power cut it may be what was on disk of it, which is older.
        (Found(State(0), 5, BOOT), 7, ""),
        (Found(State(0), 5, BOOT), 4, "made commit 5"),
        # An older program has been at it since.
        (Found(State.CLEAN, 5), 9, ""),
    ],
)
def test_a_store_at_another_commit_than_the_last_is_told(
    found: Found, generation: int, says: str
) -> None:
    told = other_commit(generation, found)
    assert says in told
    assert bool(told) == bool(says)


def test_there_is_one_in_memory_without_a_path() -> None:
    ledger = Ledger()
    ledger.open()
    ledger.begin(BOOT, 1)
    ledger.opened(A, Guest("x"))
    ledger.lose([A])
    with ledger.syncing():
        pass
    assert ledger.lost(A)
    ledger.end(clean=True)
    assert ledgers.Ledger().entries() == []
