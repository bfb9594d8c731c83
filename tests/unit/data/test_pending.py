"""What is pending: refusals that rest on it wait, and going back leaves nothing of it behind.

Beside `test_changes`: an answer of 'there is none' is an answer as well, and so is a pool's size.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import pytest

from tests.unit.data.rigs import BLOCK, PATIENCE, Rig, finish, spin, threads
from thinmeta.errors import NoMetadataSpace, StoreError
from thinpoold import admin
from thinpoold.errors import (
    ContentJumped,
    NoSuchVolume,
)
from thinpoold.ledger import Guest
from thinpoold.modes import Mode
from thinpoold.pool import Pool

GUEST = Guest("a client")
FULL = NoMetadataSpace("the disk is full")

Act = Callable[[Pool], Any]


@contextmanager
def held(rig: Rig, act: Act, *, fails: bool = False) -> Iterator[tuple[Any, Callable[[], None]]]:
    """`act` has changed the pool, and its commit is held up: (threads to use, what lets it go)."""
    reached, go = threading.Event(), threading.Event()

    def hold() -> None:
        reached.set()
        assert go.wait(PATIENCE)
        if fails:
            raise StoreError(5)

    rig.store.at_commit = hold
    with threads(4) as workers:
        changing = workers.submit(act, rig.pool)
        assert reached.wait(PATIENCE)

        def let_go() -> None:
            go.set()
            if fails:
                with pytest.raises(StoreError):
                    changing.result(PATIENCE)
            else:
                finish(changing)

        try:
            yield workers, let_go
        finally:
            go.set()
            rig.store.at_commit = lambda: None


def waits(rig: Rig, future: Future[Any]) -> None:
    """Whoever asked has come to wait for the commit that is held up, and has no answer."""
    waiters = vars(rig.pool.core.committer._changed)["_waiters"]
    spin(lambda: bool(waiters) or future.done())
    assert not future.done()


@pytest.fixture
def quiet(rig: Rig) -> Rig:
    """v has data, w and s have none open, s is a snapshot of v; all is durable."""
    volume = rig.create("v")
    volume.pwrite(b"v" * BLOCK, 0)
    admin.snapshot(rig.pool, [("v", "s")])
    rig.pool.close_volume(volume)
    admin.create(rig.pool, "w", 16 * BLOCK)
    rig.pool.commit()
    return rig


# --- refusals -------------------------------------------------------------------------------------

GONE: dict[str, Act] = {
    "delete": lambda pool: admin.delete(pool, ["w"]),
    "rename": lambda pool: admin.rename(pool, "w", "n"),
}


@pytest.mark.parametrize("fails", [False, True], ids=["commits", "fails"])
@pytest.mark.parametrize("act", GONE.values(), ids=GONE.keys())
def test_nobody_is_told_that_a_volume_is_gone_before_it_is(
    quiet: Rig, act: Act, fails: bool
) -> None:
    with held(quiet, act, fails=fails) as (workers, let_go):
        opening = workers.submit(quiet.pool.open_volume, "w", None, GUEST)
        waits(quiet, opening)
        let_go()
        if fails:
            assert opening.result(PATIENCE).name == "w"
        else:
            with pytest.raises(NoSuchVolume):
                opening.result(PATIENCE)


@pytest.mark.parametrize("fails", [False, True], ids=["commits", "fails"])
def test_nobody_is_told_that_a_content_has_jumped_before_it_has(quiet: Rig, fails: bool) -> None:
    export = quiet.pool.registry.get("v").stable_name
    with held(quiet, lambda pool: admin.rollback(pool, "v", "s"), fails=fails) as (workers, let_go):
        opening = workers.submit(quiet.pool.open_volume, export, None, GUEST)
        waits(quiet, opening)
        let_go()
        if fails:
            assert opening.result(PATIENCE).name == "v"
        else:
            with pytest.raises(ContentJumped):
                opening.result(PATIENCE)


def test_a_name_that_there_never_was_is_refused_at_once(quiet: Rig) -> None:
    before = quiet.pool.core.metadata.generation
    with pytest.raises(NoSuchVolume):
        quiet.pool.open_volume("nobody", None, GUEST)
    assert quiet.pool.core.metadata.generation == before


# --- what is shown --------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True], ids=["commits", "fails"])
def test_a_pools_size_is_shown_when_it_is_durable(quiet: Rig, fails: bool) -> None:
    with held(quiet, lambda pool: admin.grow(pool, 100 * BLOCK), fails=fails) as (workers, let_go):
        looking = workers.submit(admin.status, quiet.pool)
        waits(quiet, looking)
        let_go()
        size = finish(looking)[0]["data"]["size"]
        assert size == (64 if fails else 100) * BLOCK


def test_a_failed_pool_says_how_it_is_after_a_change_that_was_not_committed(quiet: Rig) -> None:
    quiet.store.fail_next_commit = StoreError(5)
    quiet.store.fail_at = quiet.store.reads + 10**9

    def fail() -> None:
        quiet.store.fail_at = quiet.store.reads

    quiet.store.at_commit = fail
    with pytest.raises(StoreError):
        admin.create(quiet.pool, "n", BLOCK)
    assert quiet.pool.core.modes.mode is Mode.FAILED
    assert admin.status(quiet.pool)["mode"] == "failed"
    assert admin.get_settings(quiet.pool)
    quiet.store.at_commit = lambda: None
    quiet.crash()
