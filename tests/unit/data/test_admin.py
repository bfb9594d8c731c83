"""The verbs on a pool: what they answer, what they refuse, and that what is refused changed
nothing."""

import random
import threading
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.data.rigs import BLOCK, PATIENCE, Rig, finish, read, threads
from thinpoold import admin
from thinpoold.admin.memory import BASE_BYTES
from thinpoold.errnos import OutOfRange
from thinpoold.errors import (
    InvalidName,
    InvalidSetting,
    InvalidSize,
    NoSuchVolume,
    UserError,
    VolumeExists,
    VolumeInUse,
)
from thinpoold.settings import CACHE, MIN_DATA_CACHE, Settings
from thinpoold.volumes import new_record


def listed(rig: Rig) -> dict[str, Any]:
    return {entry["name"]: entry for entry in admin.list_volumes(rig.pool)["volumes"]}


def test_create_answers_with_the_volume_and_is_durable(rig: Rig) -> None:
    fact = admin.create(rig.pool, "disk", 10 * BLOCK)
    assert fact["name"] == "disk"
    assert fact["size"] == 10 * BLOCK
    assert (fact["mapped"], fact["exclusive"], fact["clients"]) == (0, 0, 0)
    assert (fact["origin"], fact["read_only"]) == (None, False)
    assert str(uuid.UUID(fact["uuid"])) == fact["uuid"]
    assert fact["created"].endswith("Z")
    rig.crash()
    assert listed(rig) == {"disk": fact}


@pytest.mark.parametrize("name", ["", "a/b", "x" * 128, "a\nb"])
def test_bad_names_are_refused(rig: Rig, name: str) -> None:
    admin.create(rig.pool, "v", BLOCK)
    before = admin.status(rig.pool)
    with pytest.raises(InvalidName):
        admin.create(rig.pool, name, BLOCK)
    with pytest.raises(InvalidName):
        admin.snapshot(rig.pool, [["v", name]])
    with pytest.raises(InvalidName):
        admin.rename(rig.pool, "v", name)
    assert admin.status(rig.pool) == before


@pytest.mark.parametrize("size", [0, -512, 513, 1 << 62])
def test_bad_sizes_are_refused(rig: Rig, size: int) -> None:
    admin.create(rig.pool, "v", BLOCK)
    with pytest.raises(InvalidSize):
        admin.create(rig.pool, "w", size)
    with pytest.raises(InvalidSize):
        admin.resize(rig.pool, "v", size, shrink=True)
    assert list(listed(rig)) == ["v"]


def test_taken_and_unknown_names_are_refused(rig: Rig) -> None:
    admin.create(rig.pool, "v", BLOCK)
    admin.create(rig.pool, "w", BLOCK)
    with pytest.raises(VolumeExists):
        admin.create(rig.pool, "v", BLOCK)
    with pytest.raises(VolumeExists):
        admin.rename(rig.pool, "v", "w")
    with pytest.raises(VolumeExists):
        admin.snapshot(rig.pool, [["v", "new"], ["w", "new"]])
    with pytest.raises(VolumeExists):
        admin.snapshot(rig.pool, [["v", "new"], ["w", "v"]])
    calls: list[Callable[[], object]] = [
        lambda: admin.snapshot(rig.pool, [["v", "new"], ["x", "other"]]),
        lambda: admin.delete(rig.pool, ["v", "x"]),
        lambda: admin.delete(rig.pool, ["x"], dry_run=True),
        lambda: admin.rename(rig.pool, "x", "y"),
        lambda: admin.resize(rig.pool, "x", BLOCK),
        lambda: admin.rollback(rig.pool, "x", "v"),
        lambda: admin.rollback(rig.pool, "v", "x"),
        lambda: admin.info(rig.pool, "x"),
        lambda: rig.pool.open_volume("x"),
    ]
    for call in calls:
        with pytest.raises(NoSuchVolume):
            call()
    assert list(listed(rig)) == ["v", "w"]


def test_snapshots_of_several_volumes_are_of_one_instant(rig: Rig) -> None:
    """Writers count up in two volumes, always the first one first."""
    one, other = rig.create("one"), rig.create("other")
    stop = threading.Event()

    def count() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            for volume in (one, other):
                volume.pwrite(number.to_bytes(8, "little"), 3 * BLOCK)

    with threads() as pool:
        counting = pool.submit(count)
        try:
            for number in range(20):
                pairs = [["one", f"one{number}"], ["other", f"other{number}"]]
                fact = admin.snapshot(rig.pool, pairs if number % 2 else pairs[::-1])
                assert {entry["origin"] for entry in fact["volumes"]} == {"one", "other"}
        finally:
            stop.set()
        finish(counting)
    for number in range(20):
        first, second = (
            int.from_bytes(read(rig.pool.open_volume(f"{name}{number}"), 3 * BLOCK, 8), "little")
            for name in ("one", "other")
        )
        assert first - second in (0, 1)


def test_a_snapshot_waits_for_a_write_under_way(rig: Rig) -> None:
    volume = rig.create()
    volume.pwrite(b"a" * 512, 0)
    reached, go = rig.device.hold("write")
    with threads() as pool:
        writing = pool.submit(volume.pwrite, b"b" * 512, 0)
        assert reached.wait(PATIENCE)
        snapping = pool.submit(admin.snapshot, rig.pool, [["v", "s"]])
        while not volume.gate._closed:
            assert not snapping.done()
        go.set()
        finish(writing, snapping)
    assert read(rig.pool.open_volume("s"), 0, 512) == b"b" * 512


def test_a_snapshot_of_a_snapshot_and_the_tree(rig: Rig) -> None:
    rig.create("a").pwrite(b"x" * (2 * BLOCK), 0)
    admin.snapshot(rig.pool, [["a", "b"]], read_only=True)
    admin.snapshot(rig.pool, [["b", "c"]])
    rig.pool.open_volume("c").pwrite(b"y", 0)
    admin.create(rig.pool, "d", BLOCK)
    roots = admin.tree(rig.pool)["volumes"]
    assert [root["name"] for root in roots] == ["a", "d"]
    (below,) = roots[0]["children"]
    assert (below["name"], below["read_only"]) == ("b", True)
    assert [child["name"] for child in below["children"]] == ["c"]
    facts = listed(rig)
    assert {name: fact["mapped"] // BLOCK for name, fact in facts.items()} == {
        "a": 2,
        "b": 2,
        "c": 2,
        "d": 0,
    }
    assert facts["c"]["exclusive"] == BLOCK
    # When one in the middle goes, those under it stand alone.
    admin.delete(rig.pool, ["b"])
    assert [root["name"] for root in admin.tree(rig.pool)["volumes"]] == ["a", "c", "d"]
    assert listed(rig)["c"]["origin"] is None


def test_delete_says_what_it_frees_and_so_does_a_dry_run(rig: Rig) -> None:
    volume = rig.create("v")
    volume.pwrite(b"x" * (8 * BLOCK), 0)
    admin.snapshot(rig.pool, [["v", "s"]])
    volume.pwrite(b"y" * (2 * BLOCK), 0)
    rig.pool.close_volume(volume)
    for names, blocks in ((["s"], 2), (["v"], 2), (["v", "s"], 10)):
        fact = admin.delete(rig.pool, names, dry_run=True)
        assert fact == {"volumes": names, "freed": blocks * BLOCK, "dry_run": True}
    assert admin.delete(rig.pool, ["s"])["freed"] == 2 * BLOCK
    assert admin.delete(rig.pool, ["v", "v"])["freed"] == 8 * BLOCK
    assert admin.status(rig.pool)["data"]["used"] == 0
    rig.pool.commit()
    assert rig.pool.metadata.data_free == 64


def test_a_volume_in_use_is_not_deleted_rolled_back_or_shrunk(rig: Rig) -> None:
    volume = rig.create("v", size=4 * BLOCK)
    admin.snapshot(rig.pool, [["v", "s"]])
    calls: list[Callable[[], object]] = [
        lambda: admin.delete(rig.pool, ["s", "v"]),
        lambda: admin.delete(rig.pool, ["v"], dry_run=True),
        lambda: admin.rollback(rig.pool, "v", "s"),
        lambda: admin.resize(rig.pool, "v", BLOCK, shrink=True),
    ]
    for call in calls:
        with pytest.raises(VolumeInUse):
            call()
    assert sorted(listed(rig)) == ["s", "v"]
    rig.pool.close_volume(volume)
    for call in calls[::-1]:
        call()


def test_rollback_keeps_what_was_and_the_newer_snapshots(rig: Rig) -> None:
    rng = random.Random(7)
    volume = rig.create("v")
    contents = []
    for name in ("one", "two"):
        contents.append(rng.randbytes(3 * BLOCK))
        volume.pwrite(contents[-1], BLOCK)
        admin.snapshot(rig.pool, [["v", name]])
    volume.pwrite(b"now" * 100, BLOCK)
    current = read(volume)
    rig.pool.close_volume(volume)
    fact = admin.rollback(rig.pool, "v", "one")
    kept = fact["kept"]
    assert fact["volume"]["name"] == "v"
    assert listed(rig)[kept]["origin"] == "v"
    for turn in range(2):
        assert read(rig.pool.open_volume("v"), BLOCK, 3 * BLOCK) == contents[0]
        assert read(rig.pool.open_volume("one"), BLOCK, 3 * BLOCK) == contents[0]
        assert read(rig.pool.open_volume("two"), BLOCK, 3 * BLOCK) == contents[1]
        assert read(rig.pool.open_volume(kept)) == current
        if not turn:
            rig.crash()
    # Writing to it afterwards leaves the snapshot alone.
    rig.pool.open_volume("v").pwrite(b"!" * 100, BLOCK)
    assert read(rig.pool.open_volume("one"), BLOCK, 3 * BLOCK) == contents[0]


def test_rollback_that_discards_frees(rig: Rig) -> None:
    volume = rig.create("v")
    volume.pwrite(b"a" * (2 * BLOCK), 0)
    admin.snapshot(rig.pool, [["v", "s"]])
    volume.pwrite(b"b" * (8 * BLOCK), 0)
    rig.pool.close_volume(volume)
    identity = listed(rig)["v"]["uuid"]
    fact = admin.rollback(rig.pool, "v", "s", discard_current=True)
    assert fact["kept"] is None
    assert fact["volume"]["uuid"] == identity
    assert sorted(listed(rig)) == ["s", "v"]
    assert admin.status(rig.pool)["data"]["used"] == 2 * BLOCK


def test_rollback_takes_the_size_along_and_names_do_not_run_out(rig: Rig) -> None:
    admin.create(rig.pool, "v" * 127, 4 * BLOCK)
    admin.snapshot(rig.pool, [["v" * 127, "s"]])
    admin.resize(rig.pool, "v" * 127, 8 * BLOCK)
    kept = {admin.rollback(rig.pool, "v" * 127, "s")["kept"] for _ in range(3)}
    assert len(kept) == 3
    assert listed(rig)["v" * 127]["size"] == 4 * BLOCK
    with pytest.raises(UserError):
        admin.rollback(rig.pool, "s", "s")


def test_growing_a_volume_that_is_open(rig: Rig) -> None:
    volume = rig.create("v", size=2 * BLOCK)
    volume.pwrite(b"x" * (2 * BLOCK), 0)
    assert admin.resize(rig.pool, "v", 3000 * BLOCK)["size"] == 3000 * BLOCK
    volume.pwrite(b"y" * 512, 2999 * BLOCK)
    assert read(volume, 0, 2 * BLOCK) == b"x" * (2 * BLOCK)
    assert read(volume, 2999 * BLOCK, 513) == b"y" * 512 + b"\0"
    assert listed(rig)["v"]["clients"] == 1


def test_shrinking_discards_and_growing_again_shows_zeroes(rig: Rig) -> None:
    volume = rig.create("v", size=8 * BLOCK)
    volume.pwrite(b"x" * (8 * BLOCK), 0)
    rig.pool.close_volume(volume)
    with pytest.raises(InvalidSize):
        admin.resize(rig.pool, "v", 2 * BLOCK)
    fact = admin.resize(rig.pool, "v", 2 * BLOCK + 512, shrink=True)
    assert (fact["size"], fact["mapped"]) == (2 * BLOCK + 512, 3 * BLOCK)
    volume = rig.pool.open_volume("v")
    with pytest.raises(OutOfRange):
        read(volume, 2 * BLOCK + 512, 1)
    admin.resize(rig.pool, "v", 8 * BLOCK)
    assert read(volume) == b"x" * (2 * BLOCK + 512) + bytes(6 * BLOCK - 512)


def test_rename_keeps_clients(rig: Rig) -> None:
    volume = rig.create("old")
    fact = admin.rename(rig.pool, "old", "new")
    assert (fact["name"], fact["clients"]) == ("new", 1)
    volume.pwrite(b"x", 0)
    assert rig.pool.open_volume("new") is volume
    assert admin.rename(rig.pool, "new", "new")["name"] == "new"


def test_grow(rig: Rig) -> None:
    assert admin.grow(rig.pool, 100 * BLOCK)["data"]["size"] == 100 * BLOCK
    assert rig.path.stat().st_size == 100 * BLOCK
    with pytest.raises(InvalidSize):
        admin.grow(rig.pool, 50 * BLOCK)
    rig.crash()
    volume = rig.create(size=100 * BLOCK)
    volume.pwrite(b"x" * (100 * BLOCK), 0)


def test_settings_are_changed_together_or_not_at_all(rig: Rig) -> None:
    with pytest.raises(InvalidSetting):
        admin.set_settings(rig.pool, {"low-water": 5, "discard": "maybe"})
    assert admin.get_settings(rig.pool) == {"settings": Settings().as_json()}
    fact = admin.set_settings(rig.pool, {"low-water": "5%", "discard": "ignore"})
    assert fact["settings"]["low_water"] == 5
    rig.crash()
    assert rig.pool.core.settings == Settings(low_water=5, discard="ignore")


def test_memory_is_told_with_its_bounds(new_rig: Callable[..., Rig]) -> None:
    for cache in CACHE:
        rig = new_rig(settings=Settings(cache=cache))
        volume = rig.create()
        volume.pwrite(b"x" * (2 * BLOCK), 0)
        read(volume, 0, BLOCK)
        told = admin.memory(rig.pool, 2)
        bounds = told.pop("bounds")
        assert told["resident"] > 1 << 20
        assert 0 < told["metadata_cache"] <= bounds["metadata_cache"] == 64 << 20
        assert told["mapping_tables"] == bounds["mapping_tables"] == 4096
        if cache == "bufio":
            assert told["unwritten"] == bounds["unwritten"] == 0
            assert 2 * BLOCK == told["data_cache"] <= bounds["data_cache"] == MIN_DATA_CACHE
        else:
            assert told["data_cache"] == bounds["data_cache"] == 0
            assert 2 * BLOCK <= told["unwritten"] <= bounds["unwritten"]
        rig.pool.close_volume(volume)
        assert admin.memory(rig.pool, 2)["mapping_tables"] == 0


def test_the_sum_of_the_bounds_needs_a_limit_on_clients(new_rig: Callable[..., Rig]) -> None:
    bounded = new_rig(settings=Settings(max_clients=10))
    bounds = admin.memory(bounded.pool, 2)["bounds"]
    # Without the library that bounds them: nbdkit's own limit, and a block.
    assert bounds["requests"] == 10 * 2 * ((64 << 20) + BLOCK)
    parts = ("metadata_cache", "data_cache", "mapping_tables", "requests")
    assert bounds["total"] == sum(bounds[part] for part in parts) + BASE_BYTES
    assert admin.memory(bounded.pool, 0)["bounds"]["requests"] == 0
    unbounded = new_rig(settings=Settings(max_clients=0))
    bounds = admin.memory(unbounded.pool, 2)["bounds"]
    assert (bounds["requests"], bounds["total"]) == (None, None)


def test_status(rig: Rig) -> None:
    volume = rig.create()
    volume.pwrite(b"x", 0)
    status = admin.status(rig.pool)
    assert status["name"] == "rig"
    assert (status["mode"], status["needs_check"], status["fastpath"]) == ("write", False, False)
    assert (status["volumes"], status["clients"], status["block_size"]) == (1, 1, BLOCK)
    assert status["data"] == {"path": str(rig.path), "size": 64 * BLOCK, "used": BLOCK}
    assert 0 < status["metadata"]["used"] < status["metadata"]["size"]


def test_facts_of_volumes_with_many_mappings_come_from_the_last_commit(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thinpoold.admin.facts._FEW_MAPPINGS", 2)
    volume = rig.create()
    volume.pwrite(b"x" * (5 * BLOCK), 0)
    admin.snapshot(rig.pool, [["v", "s"]])
    volume.pwrite(b"y" * BLOCK, 0)
    fact = admin.info(rig.pool, "v")
    assert (fact["mapped"], fact["exclusive"], fact["shared"]) == (5 * BLOCK, BLOCK, 4 * BLOCK)
    assert fact["snapshots"] == ["s"]


def test_every_change_counts_the_transaction_up(rig: Rig) -> None:
    start = admin.status(rig.pool)["transaction_id"]
    admin.create(rig.pool, "v", BLOCK)
    admin.snapshot(rig.pool, [["v", "s"]])
    admin.delete(rig.pool, ["v"])
    assert admin.status(rig.pool)["transaction_id"] == start + 3


NFC, NFD = "gr\u00f6\u00dfe", "gro\u0308\u00dfe"


@pytest.mark.parametrize(("there", "other"), [(NFC, NFD), (NFD, NFC), ("\u00c5", "\u212b")])
def test_names_that_look_the_same_are_not_given(rig: Rig, there: str, other: str) -> None:
    admin.create(rig.pool, there, BLOCK)
    admin.create(rig.pool, "v", BLOCK)
    before = admin.status(rig.pool)
    attempts: list[Callable[[], object]] = [
        lambda: admin.create(rig.pool, other, BLOCK),
        lambda: admin.snapshot(rig.pool, [["v", other]]),
        lambda: admin.snapshot(rig.pool, [["v", f"x{there}"], ["v", f"x{other}"]]),
        lambda: admin.rename(rig.pool, "v", other),
    ]
    for attempt in attempts:
        with pytest.raises(VolumeExists):
            attempt()
    assert admin.status(rig.pool) == before
    # One volume may be called either way, and the other name is free when it is gone.
    admin.rename(rig.pool, there, other)
    admin.delete(rig.pool, [other])
    admin.create(rig.pool, there, BLOCK)


def test_what_is_called_badly_already_stays_in_use(rig: Rig) -> None:
    pool, names = rig.pool, [NFC, NFD, "a\u202eb"]
    with pool.changing() as begin:
        begin()
        for name in names:
            dev_id = pool.metadata.new_device_id()
            pool.metadata.create_thin(dev_id)
            pool.put_volume(new_record(name, dev_id, 4 * BLOCK))
    rig.crash()
    pool = rig.pool
    for number, name in enumerate(names):
        volume = pool.open_volume(name)
        volume.pwrite(b"x", 0)
        pool.close_volume(volume)
        admin.resize(pool, name, 8 * BLOCK)
        admin.snapshot(pool, [[name, f"s{number}"]])
        admin.rollback(pool, name, f"s{number}")
        admin.set_settings(pool, {"iops": 10}, name)
        assert admin.info(pool, name)["mapped"] == BLOCK
    admin.delete(pool, [NFC])
    admin.rename(pool, NFD, NFC)
    admin.delete(pool, [NFC, "a\u202eb"])
