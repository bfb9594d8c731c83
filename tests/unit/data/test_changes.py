"""An administrator's change is judged, then begun, then committed, then shown.

What is refused has changed nothing; what is not durable nobody is shown, or let in by.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.data.rigs import BLOCK, Rig, finish, read, threads
from thinmeta.errors import NoMetadataSpace, StoreError
from thinmeta.format.values import MAX_TIME
from thinpoold import admin, discard
from thinpoold.errors import (
    LossNotAccepted,
    NoSpace,
    NoSuchVolume,
    PoolStopped,
    ThinPoolError,
    VolumeInUse,
)
from thinpoold.ledger import Guest, name_digest
from thinpoold.mapping_table import MappingTable
from thinpoold.modes import Mode
from thinpoold.pool import Pool

GUEST = Guest("a client")

Refusal = Callable[[Pool], Any]


def state(pool: Pool) -> tuple[object, ...]:
    """All that a refused change must leave as it was."""
    metadata = pool.metadata
    return (
        [*pool.registry],
        pool.record,
        [metadata.details(record.dev_id) for record in pool.registry],
        metadata.device_ids(),
        (metadata.data_free, metadata.data_used, metadata.data_blocks),
        (metadata.transaction_id, metadata.generation),
        metadata.dirty,
        pool.device.size,
        pool.core.reservations.owed(),
        [(one.name, one.blocks, one.table.blocks) for one in pool.core.volumes.values()],
        pool.deletion._pending(),
        pool.core.modes.mode,
        pool.core.broken_by,
        pool.core.unnoted,
        pool.registry.pending(),
    )


REFUSALS: dict[str, Refusal] = {
    "create taken": lambda pool: admin.create(pool, "v", BLOCK),
    "create name": lambda pool: admin.create(pool, "a/b", BLOCK),
    "create size": lambda pool: admin.create(pool, "n", 17),
    "create reserve": lambda pool: admin.create(pool, "n", BLOCK, reserve=1 << 30),
    "snapshot nobody": lambda pool: admin.snapshot(pool, [("nobody", "n")]),
    "snapshot taken": lambda pool: admin.snapshot(pool, [("v", "n"), ("v", "w")]),
    "snapshot twice": lambda pool: admin.snapshot(pool, [("v", "n"), ("w", "n")]),
    "snapshot reserved": lambda pool: admin.snapshot(pool, [("r", "n")]),
    "resize nobody": lambda pool: admin.resize(pool, "nobody", BLOCK),
    "resize smaller": lambda pool: admin.resize(pool, "v", BLOCK),
    "resize open": lambda pool: admin.resize(pool, "v", BLOCK, shrink=True),
    "rename nobody": lambda pool: admin.rename(pool, "nobody", "n"),
    "rename taken": lambda pool: admin.rename(pool, "v", "w"),
    "rename name": lambda pool: admin.rename(pool, "v", "."),
    "delete nobody": lambda pool: admin.delete(pool, ["w", "nobody"]),
    "delete open": lambda pool: admin.delete(pool, ["w", "v"]),
    "rollback open": lambda pool: admin.rollback(pool, "v", "w"),
    "rollback nobody": lambda pool: admin.rollback(pool, "w", "nobody"),
    "rollback itself": lambda pool: admin.rollback(pool, "w", "w"),
    "set unknown": lambda pool: admin.set_settings(pool, {"colour": "red"}),
    "set volume": lambda pool: admin.set_settings(pool, {"iops": "many"}, "v"),
    "set nobody": lambda pool: admin.set_settings(pool, {"iops": 1}, "nobody"),
    "grow smaller": lambda pool: admin.grow(pool, BLOCK),
    "accept nothing": lambda pool: admin.accept_loss(pool, ["v"]),
}


def last_time(pool: Pool) -> None:
    """Leave the format no time for a snapshot more."""
    with pool.core.changing():
        pool.core.begin_change()
        pool.metadata._time = MAX_TIME
        pool.metadata.set_transaction_id(7)
    pool.commit()


def held_name(pool: Pool) -> None:
    """A client has v open by the name n, from before v was called that."""
    pool.core.ledger.opened(pool.registry.get("v").uuid, Guest("q", name=name_digest("n")))


# What the pool is to go through first.
BEFORE: dict[str, Callable[[Pool], None]] = {"time": last_time, "held": held_name}
REFUSED_THEN: dict[str, tuple[str, Refusal]] = {
    "snapshot time": ("time", lambda pool: admin.snapshot(pool, [("v", "n")])),
    "rollback time": ("time", lambda pool: admin.rollback(pool, "w", "v")),
    "create held": ("held", lambda pool: admin.create(pool, "n", BLOCK)),
    "snapshot held": ("held", lambda pool: admin.snapshot(pool, [("v", "m"), ("w", "n")])),
    "rename held": ("held", lambda pool: admin.rename(pool, "w", "n")),
}

# What each verb would do, if the pool let it.
VERBS: dict[str, Refusal] = {
    "create": lambda pool: admin.create(pool, "n", BLOCK, reserve=BLOCK),
    "snapshot": lambda pool: admin.snapshot(pool, [("v", "n")]),
    "rollback": lambda pool: admin.rollback(pool, "w", "v"),
    "larger": lambda pool: admin.resize(pool, "v", 20 * BLOCK),
    "smaller": lambda pool: admin.resize(pool, "w", BLOCK, shrink=True),
    "rename": lambda pool: admin.rename(pool, "w", "n"),
    "delete": lambda pool: admin.delete(pool, ["w"]),
    "set": lambda pool: admin.set_settings(pool, {"low_water": 7}),
    "set volume": lambda pool: admin.set_settings(pool, {"read_only": True}, "w"),
    "grow": lambda pool: admin.grow(pool, 100 * BLOCK),
}


@pytest.fixture
def busy(rig: Rig) -> Rig:
    """v is open, with a write that no commit holds; w is closed; r has a reservation."""
    rig.create("w")
    rig.pool.close_volume(rig.pool.core.volumes[rig.pool.registry.get("w").uuid])
    r = rig.create("r", size=32 * BLOCK, reserve=40 * BLOCK)
    r.pwrite(b"r" * 32 * BLOCK, 0)
    rig.create("v").pwrite(b"v" * BLOCK, 0)
    return rig


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS.keys())
def test_what_is_refused_leaves_all_as_it_was(busy: Rig, refusal: Refusal) -> None:
    before = state(busy.pool)
    with pytest.raises(ThinPoolError):
        refusal(busy.pool)
    after = state(busy.pool)
    assert after == before
    busy.pool.core.sync()
    busy.crash()
    assert [record.name for record in busy.pool.registry] == ["r", "v", "w"]


@pytest.mark.parametrize(("before", "refusal"), REFUSED_THEN.values(), ids=REFUSED_THEN.keys())
def test_what_the_pools_past_forbids_leaves_all_as_it_was(
    busy: Rig, before: str, refusal: Refusal
) -> None:
    BEFORE[before](busy.pool)
    was = state(busy.pool)
    with pytest.raises((ThinPoolError, NoMetadataSpace)):
        refusal(busy.pool)
    assert state(busy.pool) == was


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS.keys())
def test_a_pool_that_takes_no_writes_is_left_as_it_was(busy: Rig, verb: Refusal) -> None:
    busy.pool.core.modes.degrade(Mode.READ_ONLY, "a look-up failed", lost_data=False)
    before = state(busy.pool)
    with pytest.raises(PoolStopped):
        verb(busy.pool)
    assert state(busy.pool) == before


# Where a command is interrupted, and whether all of what it does is there then, or nothing.
POINTS: dict[str, tuple[str, bool]] = {
    "judging": ("thinmeta.thin.metadata.ThinMetadata.check_room", False),
    "beginning": ("thinmeta.thin.metadata.ThinMetadata.new_device_id", False),
    "changing": ("thinmeta.thin.devices.Devices.add", False),
    "recording": ("thinpoold.volumes.Registry.put", False),
    "counting": ("thinmeta.thin.metadata.ThinMetadata.set_transaction_id", False),
    "freezing": ("thinmeta.thin.metadata.ThinMetadata.freeze", False),
    "flushing": ("tests.unit.data.rigs.FaultyDevice.flush", False),
    "writing": ("tests.unit.data.rigs.FaultyStore.commit", False),
    "committed": ("thinpoold.volumes.Registry.committed", True),
}


@pytest.mark.parametrize(("where", "happens"), POINTS.values(), ids=POINTS.keys())
@pytest.mark.parametrize("name", ["create", "snapshot", "rollback"])
def test_an_interrupted_command_does_all_or_nothing(
    busy: Rig, monkeypatch: pytest.MonkeyPatch, name: str, where: str, happens: bool
) -> None:
    busy.pool.commit()
    before = [*busy.pool.registry]

    def interrupt(*arguments: object, **more: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(where, interrupt)
        with pytest.raises(KeyboardInterrupt):
            VERBS[name](busy.pool)
    with contextlib.suppress(PoolStopped):
        busy.pool.commit()
    assert ([*busy.pool.registry] == before) is not happens
    busy.crash()
    assert ([*busy.pool.registry] == before) is not happens


def test_a_table_never_becomes_smaller_so_going_back_needs_none(
    busy: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the sizes on the way: what `rounds` does when a commit fails cannot fail for it."""
    pool = busy.pool
    volume = pool.open_volume("v")
    for size in (40, 17, 16):
        busy.store.fail_next_commit = None
        with contextlib.suppress(VolumeInUse):
            admin.resize(pool, "v", size * BLOCK, shrink=True)
    assert (volume.blocks, volume.table.blocks) == (40, 40)
    busy.store.fail_next_commit = StoreError(5)

    def fail() -> None:
        # From here on there is no address space at all.
        monkeypatch.setattr(MappingTable, "__init__", none)

    def none(*arguments: object) -> None:
        raise NoSpace("no address space for the mapping table")

    busy.store.at_commit = fail
    with pytest.raises(StoreError):
        admin.resize(pool, "v", 60 * BLOCK)
    busy.store.at_commit = lambda: None
    assert pool.core.modes.mode is Mode.READ_ONLY
    assert (volume.size, volume.table.blocks) == (40 * BLOCK, 60)
    assert read(volume, 39 * BLOCK, BLOCK) == bytes(BLOCK)


def test_a_size_for_which_there_is_no_address_space_is_refused(
    busy: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(busy.pool)

    def none(*arguments: object) -> None:
        raise NoSpace("no address space for the mapping table")

    with monkeypatch.context() as patch:
        patch.setattr(MappingTable, "__init__", none)
        with pytest.raises(NoSpace, match="address space"):
            admin.resize(busy.pool, "v", 1 << 40)
    assert state(busy.pool) == before
    busy.pool.commit()
    busy.crash()
    assert busy.pool.registry.get("v").size == 16 * BLOCK


def test_a_snapshot_beyond_the_formats_last_time_is_refused_and_loses_nothing(busy: Rig) -> None:
    pool = busy.pool
    with pool.core.changing():
        pool.core.begin_change()
        pool.metadata._time = MAX_TIME - 1
        pool.metadata.set_transaction_id(7)
    pool.commit()
    volume = pool.core.volumes[pool.registry.get("v").uuid]
    volume.pwrite(b"new" * (BLOCK // 3), 5 * BLOCK)
    before = state(pool)
    with pytest.raises(NoMetadataSpace, match="snapshots in a pool's life"):
        admin.snapshot(pool, [("v", "a"), ("w", "b")])
    assert state(pool) == before
    admin.snapshot(pool, [("v", "a")])
    with pytest.raises(NoMetadataSpace):
        admin.rollback(pool, "w", "a")
    with pytest.raises(NoMetadataSpace):
        admin.snapshot(pool, [("v", "b")])
    assert pool.core.modes.mode is Mode.WRITE
    busy.crash()
    assert read(busy.pool.open_volume("v"), 5 * BLOCK, 3) == b"new"


def test_an_interruption_before_the_change_begins_breaks_nothing(
    busy: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(busy.pool)

    def interrupt(*arguments: object, **more: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(busy.pool.metadata), "check_room", interrupt)
        with pytest.raises(KeyboardInterrupt):
            admin.create(busy.pool, "n", BLOCK)
    assert state(busy.pool) == before


def test_a_refusal_after_the_change_has_begun_takes_it_back(
    busy: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its class: that something was changed is not guessed from it."""
    busy.pool.commit()

    def refuse(*arguments: object) -> None:
        raise NoSpace("late")

    with monkeypatch.context() as patch:
        patch.setattr(type(busy.pool.core.reservations), "promise", refuse)
        with pytest.raises(NoSpace, match="late"):
            admin.create(busy.pool, "n", BLOCK)
    assert [record.name for record in busy.pool.registry] == ["r", "v", "w"]
    busy.crash()
    assert [record.name for record in busy.pool.registry] == ["r", "v", "w"]


def test_a_change_that_has_not_begun_is_a_bug(busy: Rig) -> None:
    pool = busy.pool
    record = pool.registry.get("w")
    changes: list[Callable[[], None]] = [
        lambda: pool.put_volume(record),
        lambda: pool.put_record(pool.record),
        lambda: pool.remove_volume(record),
        lambda: pool.deletion.add(record.dev_id),
    ]
    for change in changes:
        with pytest.raises(RuntimeError, match="before the change has begun"), pool.changing():
            change()


def test_a_refused_growth_takes_no_block(busy: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies beyond an end within a block is zeroed when the growth is sure."""
    pool = busy.pool
    admin.create(pool, "odd", BLOCK + 512)
    volume = pool.open_volume("odd")
    volume.pwrite(b"o" * (BLOCK + 512), 0)
    admin.snapshot(pool, [("odd", "shared")])
    before = pool.metadata.data_used, pool.metadata.dirty

    def none(*arguments: object) -> None:
        raise NoSpace("no address space for the mapping table")

    with monkeypatch.context() as patch:
        patch.setattr(MappingTable, "__init__", none)
        with pytest.raises(NoSpace, match="address space"):
            admin.resize(pool, "odd", 1 << 40)
    assert (pool.metadata.data_used, pool.metadata.dirty) == before


def test_a_volume_that_goes_while_its_loss_is_accepted_breaks_nothing(
    busy: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = busy.pool
    uuid = pool.registry.get("w").uuid
    pool.core.ledger.lose([uuid])

    def of(uuid: bytes) -> list[Any]:
        admin.delete(pool, ["w"])
        return []

    monkeypatch.setattr(pool.core.losses, "of", of)
    with pytest.raises(NoSuchVolume):
        admin.accept_loss(pool, ["w"])
    assert pool.core.modes.mode is Mode.WRITE
    assert pool.core.broken_by is None


def test_the_registry_itself_refuses_what_no_change_has_begun(busy: Rig) -> None:
    pool = busy.pool
    record = pool.registry.get("w")
    volume = pool.open_volume("v")
    changes: list[Callable[[], None]] = [
        lambda: pool.registry.put(record),
        lambda: pool.registry.remove(record),
        lambda: discard.remove(volume, 0, 1),
    ]
    for change in changes:
        with pytest.raises(RuntimeError, match="before the change has begun"), pool.changing():
            change()


# --- shown when it is durable ---------------------------------------------------------------------


CHANGES: dict[str, tuple[Refusal, str]] = {
    "create": (lambda pool: admin.create(pool, "n", BLOCK), "n"),
    "snapshot": (lambda pool: admin.snapshot(pool, [("v", "n")]), "n"),
    "rename": (lambda pool: admin.rename(pool, "w", "n"), "n"),
    "resize": (lambda pool: admin.resize(pool, "w", 20 * BLOCK), "w"),
    "rollback": (lambda pool: admin.rollback(pool, "w", "v"), "w"),
    "set": (lambda pool: admin.set_settings(pool, {"read_only": True}, "w"), "w"),
}


@pytest.mark.parametrize("fails", [False, True], ids=["commits", "fails"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_nobody_opens_what_is_not_durable(
    busy: Rig, change: tuple[Refusal, str], fails: bool
) -> None:
    """Nor is it shown: a crash would take back what the client was answered."""
    act, name = change
    pool = busy.pool
    pool.commit()
    reached, go = threading.Event(), threading.Event()

    def held() -> None:
        reached.set()
        assert go.wait(60)
        if fails:
            raise StoreError(5)

    busy.store.at_commit = held
    with threads(3) as workers:
        changing = workers.submit(act, pool)
        assert reached.wait(60)
        opening = workers.submit(pool.open_volume, name, None, GUEST)
        listing = workers.submit(admin.list_volumes, pool)
        # Neither has an answer before the commit; others are let in as ever.
        pool.close_volume(pool.open_volume("v", None, GUEST))
        assert not opening.done()
        assert not listing.done()
        go.set()
        if fails:
            with pytest.raises(StoreError):
                changing.result(60)
            names = {volume["name"] for volume in finish(listing)[0]["volumes"]}
            assert names == {"r", "v", "w"}
            if name == "n":
                with pytest.raises((NoSuchVolume, StoreError)):
                    opening.result(60)
            else:
                try:
                    volume = opening.result(60)
                    assert volume.size == 16 * BLOCK
                    assert not volume.read_only
                except (StoreError, LossNotAccepted):
                    # This pool has no notes: what no commit held is lost.
                    pass
        else:
            finish(changing, opening, listing)
    busy.store.at_commit = lambda: None


def test_settings_are_shown_when_they_are_durable(busy: Rig) -> None:
    pool = busy.pool
    reached, go = threading.Event(), threading.Event()

    def held() -> None:
        reached.set()
        assert go.wait(60)

    busy.store.at_commit = held
    with threads(2) as workers:
        changing = workers.submit(admin.set_settings, pool, {"on_full": "error"})
        assert reached.wait(60)
        getting = workers.submit(admin.get_settings, pool)
        assert not getting.done()
        go.set()
        finish(changing)
        assert finish(getting)[0]["settings"]["on_full"] == "error"


def test_a_stopped_pool_is_listed_whatever_its_commits_do(busy: Rig) -> None:
    pool = busy.pool

    def fail() -> None:
        raise StoreError(5)

    busy.store.at_commit = fail
    with pytest.raises(StoreError):
        admin.create(pool, "n", BLOCK)
    assert {volume["name"] for volume in admin.list_volumes(pool)["volumes"]} == {"r", "v", "w"}
    busy.store.at_commit = lambda: None
