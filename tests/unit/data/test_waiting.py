"""Who waits keeps nobody waiting: for space, for a name service, for a slow disk.

The fixture `lock_clock` judges each as well: nobody waits like that with a lock or gate in hand.
"""

import os
import pwd
import threading
import types
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.support.lockclock import Clock
from tests.unit.data.rigs import BLOCK, PATIENCE, Rig, finish, let_go, read, spin, sweep, threads
from tests.unit.data.test_nbd import Nbdkit, nbdkit, plugin
from thinmeta.errors import StoreError
from thinmeta.format.bitmap import ENTRIES_PER_BITMAP
from thinpoold import access, admin, discard, extents, reclaim
from thinpoold.access import Peer
from thinpoold.admin import settings as admin_settings
from thinpoold.control.dispatch import Dispatcher
from thinpoold.errors import InvalidSize, NoSpace, ThinPoolError, VolumeExists
from thinpoold.ledger import Guest, Ledger
from thinpoold.provision import MAX_RUN_BYTES
from thinpoold.settings import Settings
from thinpoold.volume import Volume

__all__ = ["nbdkit", "plugin"]

MIB = 1 << 20


def dispatcher(rig: Rig) -> Dispatcher:
    """What answers the control socket."""
    return Dispatcher(types.SimpleNamespace(pool=rig.pool, server_uri="nbd+unix:///?socket=/s"))


# --- for space ------------------------------------------------------------------------------------


def filled(new_rig: Callable[..., Rig], *, last: int = BLOCK // 2, **settings: Any) -> Rig:
    """A full pool with a volume `v` of one and a half blocks, shared with a snapshot."""
    rig = new_rig(blocks=8, settings=Settings(full_timeout=0, **settings))
    rig.create("v", size=BLOCK + last).pwrite(b"v" * (BLOCK + last), 0)
    rig.create("fill", size=6 * BLOCK).pwrite(b"f" * (6 * BLOCK), 0)
    for volume in list(rig.pool.core.volumes.values()):
        rig.pool.close_volume(volume)
    admin.snapshot(rig.pool, [["v", "s"]])
    return rig


@pytest.mark.parametrize("on_full", ["queue", "error"])
def test_a_resize_without_room_fails_at_once_and_changes_nothing(
    new_rig: Callable[..., Rig], on_full: str
) -> None:
    rig = filled(new_rig, on_full=on_full)
    before = admin.info(rig.pool, "v")
    with pytest.raises(NoSpace, match="'v' cannot grow: a snapshot shares its last block"):
        admin.resize(rig.pool, "v", 4 * BLOCK)
    assert admin.info(rig.pool, "v") == before
    # All that may help is to be had, and then it works.
    admin.set_settings(rig.pool, {"full_timeout": 5})
    admin.delete(rig.pool, ["fill"])
    assert admin.resize(rig.pool, "v", 4 * BLOCK)["size"] == 4 * BLOCK
    volume = rig.pool.open_volume("v")
    assert read(volume) == b"v" * (BLOCK + BLOCK // 2) + bytes(4 * BLOCK - BLOCK - BLOCK // 2)


def test_a_resize_takes_what_a_commit_frees(new_rig: Callable[..., Rig]) -> None:
    rig = filled(new_rig)
    fill = rig.pool.open_volume("fill")
    discard.trim(fill, 0, BLOCK)
    assert admin.resize(rig.pool, "v", 2 * BLOCK)["size"] == 2 * BLOCK


def test_a_resize_that_needs_no_room_does_not_ask_for_any(new_rig: Callable[..., Rig]) -> None:
    rig = filled(new_rig, last=0)
    assert admin.resize(rig.pool, "v", 2 * BLOCK)["size"] == 2 * BLOCK
    assert admin.resize(rig.pool, "fill", 7 * BLOCK)["size"] == 7 * BLOCK


def test_a_full_file_system_ends_a_resize_at_once(
    new_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = new_rig(settings=Settings(full_timeout=0))
    rig.pool.close_volume(rig.create("v", size=BLOCK // 2))
    volume = rig.pool.open_volume("v")
    volume.pwrite(b"v", 0)
    rig.device.log, rig.device.fail_at, rig.device.stays, rig.device.number = True, 0, True, 28
    with pytest.raises(NoSpace, match="cannot grow"):
        admin.resize(rig.pool, "v", 4 * BLOCK)
    rig.device.log = False
    rig.pool.core.modes.space_found()
    assert admin.resize(rig.pool, "v", 4 * BLOCK)["size"] == 4 * BLOCK


def test_other_commands_go_on_while_a_resize_waits_for_the_disk(rig: Rig) -> None:
    """Through what answers the control socket: one that is held up holds up none."""
    volume = rig.create("v", size=BLOCK // 2)
    volume.pwrite(b"v" * 512, 0)
    admin.create(rig.pool, "w", BLOCK)
    admin.snapshot(rig.pool, [["v", "s"]])
    control = dispatcher(rig)
    reached, go = rig.device.hold("write_all")
    with threads() as pool, let_go(go):
        resizing = pool.submit(control.call, "resize", {"name": "v", "size": 4 * BLOCK})
        assert reached.wait(PATIENCE)
        for name, given in (
            ("grow", {"size": 128 * BLOCK}),
            ("set", {"settings": {"full_timeout": 5}}),
            ("create", {"name": "new", "size": BLOCK}),
            ("rename", {"old": "new", "new": "newer"}),
            ("delete", {"names": ["w"]}),
            ("snapshot", {"pairs": [["s", "t"]]}),
        ):
            finish(pool.submit(control.call, name, given))
        assert not resizing.done()
        go.set()
        assert finish(resizing)[0]["size"] == 4 * BLOCK


@pytest.mark.parametrize("late", [False, True], ids=["before zeroing", "after it"])
def test_a_resize_that_another_overtakes_zeroes_nothing_that_is_in_use(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    volume = rig.create("v", size=BLOCK + 512)
    volume.pwrite(b"v" * 512, BLOCK)
    reached, go = threading.Event(), threading.Event()
    real = discard.zero_beyond

    def zero_beyond(volume: Volume, end: int) -> None:
        if late:
            real(volume, end)
        reached.set()
        assert go.wait(PATIENCE)
        if not late:
            real(volume, end)

    with threads() as pool, let_go(go):
        monkeypatch.setattr(discard, "zero_beyond", zero_beyond)
        resizing = pool.submit(admin.resize, rig.pool, "v", 4 * BLOCK)
        assert reached.wait(PATIENCE)
        monkeypatch.setattr(discard, "zero_beyond", real)
        assert admin.resize(rig.pool, "v", 3 * BLOCK)["size"] == 3 * BLOCK
        volume.pwrite(b"w" * BLOCK, BLOCK + 512)
        go.set()
        assert finish(resizing)[0]["size"] == 4 * BLOCK
    expected = bytes(BLOCK) + b"v" * 512 + b"w" * BLOCK
    assert read(volume) == expected + bytes(4 * BLOCK - len(expected))


def test_of_commands_at_the_same_time_one_gets_the_name(rig: Rig) -> None:
    start = threading.Barrier(6)

    def create() -> object:
        start.wait(PATIENCE)
        try:
            return admin.create(rig.pool, "v", BLOCK)["uuid"]
        except VolumeExists:
            return None

    with threads() as pool:
        made = finish(*(pool.submit(create) for _ in range(6)))
    assert made.count(None) == 5
    (fact,) = admin.list_volumes(rig.pool)["volumes"]
    assert fact["uuid"] in made


def test_settings_that_are_changed_at_the_same_time_are_all_changed(rig: Rig) -> None:
    start = threading.Barrier(3)

    def change(name: str, value: int) -> None:
        start.wait(PATIENCE)
        for _ in range(10):
            admin.set_settings(rig.pool, {name: value})

    wanted = {"full_timeout": 7, "low_water": 3, "max_clients": 9}
    with threads() as pool:
        finish(*(pool.submit(change, name, value) for name, value in wanted.items()))
    found = admin.get_settings(rig.pool)["settings"]
    assert {name: found[name] for name in wanted} == wanted


# --- for a name service ---------------------------------------------------------------------------


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """A name service that does not answer: (set when it was asked, to be set to have it answer)."""
    asked, answer = threading.Event(), threading.Event()

    def ask(real: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def asking(what: Any) -> Any:
            asked.set()
            assert answer.wait(PATIENCE)
            return real(what)

        return asking

    monkeypatch.setattr(pwd, "getpwnam", ask(pwd.getpwnam))
    monkeypatch.setattr(pwd, "getpwuid", ask(pwd.getpwuid))
    yield asked, answer
    answer.set()


@pytest.mark.parametrize("user", [pwd.getpwuid(0).pw_name, "no such user"])
def test_a_rule_that_cannot_be_looked_up_keeps_nobody_waiting(
    rig: Rig, silent: tuple[threading.Event, threading.Event], user: str
) -> None:
    asked, answer = silent
    volume = rig.create("v")
    control = dispatcher(rig)
    rule = {"settings": {"allow": f"user:{user}"}, "volume": "v"}
    with threads() as pool, let_go(answer):
        setting = pool.submit(control.call, "set", rule)
        assert asked.wait(PATIENCE)
        finish(pool.submit(volume.pwrite, b"x" * 512, 0))
        finish(pool.submit(rig.pool.core.sync))
        finish(pool.submit(control.call, "create", {"name": "w", "size": BLOCK}))
        finish(pool.submit(control.call, "snapshot", {"pairs": [["v", "s"]]}))
        assert not setting.done()
        answer.set()
        if user == "no such user":
            with pytest.raises(ThinPoolError, match="there is none here"):
                finish(setting)
        else:
            assert finish(setting)[0]["settings"]["allow"] == "user:0"


@pytest.mark.parametrize("what", ["list", "default", "open"])
def test_a_clients_groups_that_cannot_be_looked_up_keep_nobody_waiting(
    rig: Rig,
    nbdkit: Nbdkit,
    plugin: Any,
    silent: tuple[threading.Event, threading.Event],
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    asked, answer = silent
    nobody = pwd.struct_passwd(("nobody", "x", 4711, 4712, "", "/", "/bin/false"))
    monkeypatch.setattr(os, "geteuid", lambda: 1)
    other = rig.create("other")
    admin.create(rig.pool, "v", BLOCK)
    admin.set_settings(rig.pool, {"allow": "tls,group:4713"}, "v")
    admin.set_settings(rig.pool, {"allow": "user:1"}, "other")
    monkeypatch.setattr(plugin.peers, "current", lambda is_tls=None: Peer(4711, 1))
    real = access._groups

    def groups(uid: int) -> list[int]:
        asked.set()
        assert answer.wait(PATIENCE)
        return [nobody.pw_gid, 4713, *real(uid)]

    monkeypatch.setattr(access, "_groups", groups)
    calls: dict[str, Callable[[], Any]] = {
        "list": lambda: [name for name, _ in plugin.list_exports(0, 0)],
        "default": lambda: plugin.default_export(0, 0),
        "open": lambda: plugin.open(0).volume.name,
    }
    nbdkit.name = "v"
    with threads() as pool, let_go(answer):
        asking = pool.submit(calls[what])
        assert asked.wait(PATIENCE)
        finish(pool.submit(other.pwrite, b"x" * 512, 0))
        finish(pool.submit(admin.create, rig.pool, "w", BLOCK))
        admin.delete(rig.pool, ["w"])
        assert not asking.done()
        answer.set()
        assert finish(asking)[0] in ("v", ["v"])


# --- for the data device --------------------------------------------------------------------------


def large(new_rig: Callable[..., Rig], *, size: int = 24 * MIB) -> tuple[Rig, Volume]:
    """A volume of several portions, on a device that zeroes by writing, as a block device does."""
    rig = new_rig(blocks=3 * size // BLOCK)
    rig.device._can_zero = False
    return rig, rig.create("v", size=size)


def test_no_large_request_is_one_stay_in_the_gate(
    new_rig: Callable[..., Rig], lock_clock: Clock
) -> None:
    """The clock's model of a disk is what judges."""
    rig, volume = large(new_rig)
    for _ in range(2):
        sweep(volume, may_trim=False)
    admin.snapshot(rig.pool, [["v", "s"]])
    volume.pwrite(bytes(volume.size - 100), 50)
    assert lock_clock.complaints == []


@pytest.mark.parametrize("what", ["zero", "write", "read"])
def test_a_snapshot_is_made_in_the_midst_of_a_large_request(
    new_rig: Callable[..., Rig], what: str
) -> None:
    rig, volume = large(new_rig)
    volume.pwrite(bytes(volume.size), 0)
    calls: dict[str, tuple[str, Callable[[], None]]] = {
        "zero": (
            "zero",
            lambda: discard.zero(volume, 0, volume.size, may_trim=False, fast=False),
        ),
        "write": ("write", lambda: volume.pwrite(b"w" * volume.size, 0)),
        "read": ("read", lambda: volume.pread(bytearray(volume.size), 0)),
    }
    name, call = calls[what]
    reached, go = rig.device.hold(name)
    with threads() as pool, let_go(go):
        request = pool.submit(call)
        assert reached.wait(PATIENCE)
        snapshot = pool.submit(admin.snapshot, rig.pool, [["v", "s"]])
        # The gate is about to be closed: what is inside ends, and the rest waits outside.
        spin(lambda: volume.gate._closed)
        rig.device.gates.clear()
        go.set()
        finish(snapshot, request)
    assert volume.size > 2 * MAX_RUN_BYTES
    held = read(rig.pool.open_volume("s"))
    if what == "write":
        # So much was in when the gate closed, and no more.
        assert held == b"w" * MAX_RUN_BYTES + bytes(volume.size - MAX_RUN_BYTES)
        assert read(volume) == b"w" * volume.size
    else:
        assert held == bytes(volume.size)


def test_what_is_written_in_portions_comes_back(new_rig: Callable[..., Rig]) -> None:
    _, volume = large(new_rig)
    model = bytearray(volume.size)
    for begin, end, fill in (
        (MAX_RUN_BYTES - 1, 3 * MAX_RUN_BYTES + 1, b"a"),
        (7, 2 * MAX_RUN_BYTES + 7, b"b"),
        (5 * MIB, volume.size, b"c"),
    ):
        volume.pwrite(fill * (end - begin), begin)
        model[begin:end] = fill * (end - begin)
    discard.zero(volume, 6 * MIB + 5, 9 * MIB, may_trim=False, fast=False)
    model[6 * MIB + 5 : 15 * MIB + 5] = bytes(9 * MIB)
    assert read(volume, 3, volume.size - 5) == model[3:-2]


@pytest.mark.parametrize("size", [3 * BLOCK, 80 * BLOCK])
def test_portions_are_cut_between_blocks(new_rig: Callable[..., Rig], size: int) -> None:
    volume = new_rig(blocks=8, block_size=size).create(size=8 * size)
    parts = list(volume.portions(100, 8 * size - 200))
    assert parts[0][0] == 100
    assert parts[-1][1] == 8 * size - 100
    assert all(one[1] == other[0] for one, other in pairwise(parts))
    assert all(end % size == 0 for _, end in parts[:-1])
    assert all(end - begin <= max(size, MAX_RUN_BYTES) for begin, end in parts)


def test_nobody_looks_at_all_of_a_large_range_at_once(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = rig.create("v", size=60 * BLOCK)
    volume.pwrite(bytes(60 * BLOCK), 0)
    monkeypatch.setattr(discard, "LOOK_BLOCKS", 8)
    monkeypatch.setattr(extents, "_PREFETCH_BLOCKS", 8)
    looked: list[int] = []
    real = rig.pool.metadata.runs

    def runs(dev_id: int, begin: int, end: int) -> Any:
        looked.append(end - begin)
        return real(dev_id, begin, end)

    monkeypatch.setattr(rig.pool.metadata, "runs", runs)
    discard.zero(volume, 0, volume.size, may_trim=False, fast=True)
    extents.prefetch(volume, 0, volume.size)
    assert looked[:8] == [8] * 7 + [4]
    assert looked[-8:] == [8] * 7 + [4]


def test_data_is_prefetched_outside_the_gate(
    rig: Rig, lock_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = rig.create("v", size=32 * BLOCK)
    volume.pwrite(bytes(32 * BLOCK), 0)
    seen: list[tuple[int, int]] = []

    def prefetch(offset: int, count: int) -> None:
        assert lock_clock.held == []
        seen.append((offset, count))

    monkeypatch.setattr(rig.device, "prefetch", prefetch)
    monkeypatch.setattr(rig.device, "prefetch_bytes", 5 * BLOCK)
    extents.prefetch(volume, 0, volume.size)
    assert sum(count for _, count in seen) == 5 * BLOCK


# --- for metadata ---------------------------------------------------------------------------------


def commits_of(rig: Rig) -> list[int]:
    """How many blocks each commit from now on writes."""
    sizes: list[int] = []
    real = rig.store.commit

    def commit(blocks: Any, erased: Any, records: Any) -> None:
        sizes.append(len(blocks))
        real(blocks, erased, records)

    rig.store.commit = commit  # type: ignore[method-assign]
    return sizes


def test_a_pool_grows_in_portions(rig: Rig) -> None:
    """Each a commit of bounded size, so neither lock nor memory is taken for all of it."""
    sizes = commits_of(rig)
    blocks = 1000 * ENTRIES_PER_BITMAP + 5
    assert admin.grow(rig.pool, blocks * BLOCK)["data"]["size"] == blocks * BLOCK
    assert len(sizes) >= 8
    assert max(sizes) < 200


def test_others_go_on_while_a_pool_grows(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_settings, "_PORTION_BLOCKS", ENTRIES_PER_BITMAP)
    volume = rig.create("v")
    written: list[int] = []
    real = rig.store.commit

    def commit(blocks: Any, erased: Any, records: Any) -> None:
        # Between two portions, from another thread.
        with threads(1) as pool:
            finish(pool.submit(volume.pwrite, b"x" * 512, len(written) % 16 * BLOCK))
        written.append(rig.pool.metadata.data_blocks)
        real(blocks, erased, records)

    monkeypatch.setattr(rig.store, "commit", commit)
    admin.grow(rig.pool, 10 * ENTRIES_PER_BITMAP * BLOCK)
    assert sorted(set(written)) == [number * ENTRIES_PER_BITMAP for number in range(1, 11)]


def test_a_growth_that_fails_in_the_midst_leaves_a_sound_pool_that_grows_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_settings, "_PORTION_BLOCKS", ENTRIES_PER_BITMAP)
    real, left = rig.store.commit, [3]

    def commit(blocks: Any, erased: Any, records: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise StoreError(5)
        real(blocks, erased, records)

    monkeypatch.setattr(rig.store, "commit", commit)
    size = 10 * ENTRIES_PER_BITMAP * BLOCK
    with pytest.raises((StoreError, ThinPoolError)):
        admin.grow(rig.pool, size)
    monkeypatch.setattr(rig.store, "commit", real)
    rig.crash()
    assert rig.pool.metadata.data_blocks == 3 * ENTRIES_PER_BITMAP
    assert admin.grow(rig.pool, size)["data"]["size"] == size
    with pytest.raises(InvalidSize, match="cannot shrink"):
        admin.grow(rig.pool, size - BLOCK)


# --- for the ledger -------------------------------------------------------------------------------


def with_ledger(rig: Rig, path: Path) -> Ledger:
    ledger = Ledger(path, rig.pool.record.uuid)
    ledger.open()
    rig.pool.core.ledger = ledger
    return ledger


def test_opening_a_volume_waits_for_the_ledger_with_no_lock_held(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network's client is answered when its mark is durable; so is one that comes beside it."""
    other = rig.create("other")
    admin.create(rig.pool, "v", BLOCK)
    ledger = with_ledger(rig, tmp_path / "ledger")
    guest = Guest("192.0.2.7", network=True)
    asked, answer = threading.Semaphore(0), threading.Event()
    real = os.fdatasync

    def fdatasync(fd: int) -> None:
        if fd == ledger._fd:
            asked.release()
            assert answer.wait(PATIENCE)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    with threads() as pool, let_go(answer):
        opening = [pool.submit(rig.pool.open_volume, "v", None, guest) for _ in range(2)]
        for _ in opening:
            assert asked.acquire(timeout=PATIENCE)
        finish(pool.submit(other.pwrite, b"x" * 512, 0))
        finish(pool.submit(rig.pool.core.sync))
        finish(pool.submit(admin.create, rig.pool, "w", BLOCK))
        assert not any(one.done() for one in opening)
        answer.set()
        finish(*opening)
    # From now on there is nothing to wait for.
    monkeypatch.setattr(os, "fdatasync", lambda fd: pytest.fail("it is durable"))
    rig.pool.open_volume("v", None, guest)
    monkeypatch.setattr(os, "fdatasync", real)


def test_a_volume_whose_mark_cannot_be_made_durable_is_not_opened(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin.create(rig.pool, "v", BLOCK)
    with_ledger(rig, tmp_path / "ledger")
    real = os.fdatasync

    def fail(fd: int) -> None:
        raise OSError(5, "no")

    monkeypatch.setattr(os, "fdatasync", fail)
    for _ in range(2):
        with pytest.raises(ThinPoolError, match="ledger"):
            rig.pool.open_volume("v", None, Guest("192.0.2.7", network=True))
    monkeypatch.setattr(os, "fdatasync", real)
    assert not rig.pool.core.volumes
    rig.pool.open_volume("v", None, Guest("192.0.2.7", network=True))


def test_many_volumes_are_marked_with_the_ledgers_lock_let_go_between_them(
    rig: Rig, tmp_path: Path
) -> None:
    """The clock counts a write of 0.1 ms each, and 1,200 of them."""
    ledger = with_ledger(rig, tmp_path / "ledger")
    uuids = [number.to_bytes(16, "big") for number in range(1, 1201)]
    for uuid in uuids:
        ledger.opened(uuid)
        ledger.closed(uuid)
    ledger.lose(uuids)
    ledger.written(uuids)
    assert all(ledger.lost(uuid) for uuid in uuids)
    rig.pool.core.ledger = Ledger()


def test_scattered_blocks_are_released_a_bounded_number_of_ranges_at_a_time(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reclaim, "_PORTION_RANGES", 3)
    released: list[list[tuple[int, int]]] = []
    real = rig.pool.metadata.release

    def release(freed: list[tuple[int, int]]) -> None:
        released.append(freed)
        real(freed)

    monkeypatch.setattr(rig.pool.metadata, "release", release)
    volume = rig.create("v", size=32 * BLOCK)
    volume.pwrite(bytes(32 * BLOCK), 0)
    for block in range(0, 32, 2):
        discard.trim(volume, block * BLOCK, BLOCK)
    rig.pool.commit()
    assert [len(portion) for portion in released] == [3, 3, 3, 3, 3, 1]
    assert rig.pool.metadata.data_used == 16
