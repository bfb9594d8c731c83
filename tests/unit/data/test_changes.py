"""An administrator's change is judged, then begun, then committed, then shown.

What is refused has changed nothing; what is not durable nobody is shown, or let in by.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.data.rigs import BLOCK, Rig, finish, read, threads
from thinmeta.errors import NoMetadataSpace, StoreError
from thinmeta.format.values import MAX_TIME
from thinpoold import admin
from thinpoold.errors import LossNotAccepted, NoSpace, NoSuchVolume, ThinPoolError
from thinpoold.ledger import Guest
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
        metadata.transaction_id,
        metadata.dirty,
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
