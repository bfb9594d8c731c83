"""Pools of many volumes, and long chains of snapshots: nothing recursive, nothing squared."""

import json
from typing import Any

import pytest

from tests.unit.data.rigs import BLOCK, Rig
from thinpoold import admin
from thinpoold.admin.facts import MAX_NESTED
from thinpoold.cli.show import _MOST_INDENTED, _flat, _tree_rows
from thinpoold.volumes import Registry, VolumeRecord, new_record

# Beyond what Python's stack, and its JSON, take at a level each.
DEEP = 1500


@pytest.fixture
def chain(rig: Rig) -> Rig:
    """A chain of snapshots, s0 of v, s1 of s0, and so on, and a side branch near its end."""
    pool = rig.pool
    with pool.changing() as begin:
        begin()
        origin: VolumeRecord | None = None
        for name in ("v", *(f"s{number}" for number in range(DEEP)), "side"):
            dev_id = pool.metadata.new_device_id()
            pool.metadata.create_thin(dev_id)
            of = pool.registry.get(f"s{DEEP - 10}") if name == "side" else origin
            origin = new_record(name, dev_id, BLOCK, origin=of.uuid if of else None)
            pool.put_volume(origin)
    return rig


def levels(volumes: list[Any]) -> int:
    count, level = 0, volumes
    while level:
        count, level = count + 1, [child for one in level for child in one["children"]]
    return count


def test_a_long_chain_is_a_tree_of_json(chain: Rig) -> None:
    told = json.loads(json.dumps(admin.tree(chain.pool)))["volumes"]
    volumes = _flat(told)
    origins = {volume["name"]: volume["origin"] for volume in volumes}
    assert len(volumes) == len(origins) == DEEP + 2
    assert all(origins[f"s{number}"] == f"s{number - 1}" for number in range(1, DEEP))
    assert (origins["v"], origins["s0"], origins["side"]) == (None, "v", f"s{DEEP - 10}")
    assert levels(told) == MAX_NESTED


def test_a_long_chain_is_shown_in_lines_of_bounded_length(chain: Rig) -> None:
    rows = _tree_rows(_flat(admin.tree(chain.pool)["volumes"]))
    names = [row[0] for row in rows]
    assert [name.split()[-1] for name in names[:DEEP]] == ["v", *(f"s{n}" for n in range(DEEP - 9)),
        *(f"s{n}" for n in range(DEEP - 9, DEEP - 1))]  # fmt: skip
    assert max(map(len, names)) < 3 * _MOST_INDENTED + 20
    assert any(f"[{DEEP}] " in name for name in names)


def test_the_other_verbs_take_a_long_chain(chain: Rig) -> None:
    assert len(admin.list_volumes(chain.pool)["volumes"]) == DEEP + 2
    assert admin.info(chain.pool, "s7")["snapshots"] == ["s8"]
    last = f"s{DEEP - 1}"
    admin.rename(chain.pool, last, "end")
    admin.rollback(chain.pool, "s0", "end")
    admin.delete(chain.pool, ["s1"])
    assert len(_flat(admin.tree(chain.pool)["volumes"])) == DEEP + 2
    chain.crash()
    assert admin.status(chain.pool)["volumes"] == DEEP + 2


def test_a_volume_that_goes_while_the_tree_is_made_is_left_out(
    chain: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    unordered = Registry.unordered

    def and_delete(registry: Registry) -> list[VolumeRecord]:
        records = unordered(registry)
        monkeypatch.setattr(Registry, "unordered", unordered)
        gone = new_record("gone", 99_999, BLOCK, origin=registry.get("v").uuid)
        below = new_record("below", registry.get("v").dev_id, BLOCK, origin=gone.uuid)
        return [*records, gone, below]

    monkeypatch.setattr(Registry, "unordered", and_delete)
    names = {volume["name"] for volume in _flat(admin.tree(chain.pool)["volumes"])}
    assert "below" in names
    assert "gone" not in names


def test_volumes_are_in_the_order_that_people_expect(rig: Rig) -> None:
    names = ["s10", "s2", "a", "s02", "s1-10", "s1-9", "10", "9", "s"]
    for name in names:
        admin.create(rig.pool, name, BLOCK)
    expected = ["9", "10", "a", "s", "s1-9", "s1-10", "s02", "s2", "s10"]
    assert [one["name"] for one in admin.list_volumes(rig.pool)["volumes"]] == expected
    assert [one["name"] for one in admin.tree(rig.pool)["volumes"]] == expected
    admin.snapshot(rig.pool, [["a", "a10"], ["a", "a9"]])
    assert admin.info(rig.pool, "a")["snapshots"] == ["a9", "a10"]


def test_where_a_volume_is_takes_no_walk_over_it(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    admin.create(rig.pool, "v", 4 * BLOCK, read_only=True)
    expected = {
        key: admin.info(rig.pool, "v")[key]
        for key in ("name", "uuid", "generation", "size", "read_only")
    }

    def walk(*_: object) -> int:
        raise AssertionError("it is walked")

    monkeypatch.setattr(type(rig.pool.metadata), "exclusive_blocks", walk)
    monkeypatch.setattr(type(rig.pool.metadata), "runs", walk)
    place = admin.place_of(rig.pool, "v")
    assert place.pop("export") == f"{expected['uuid']}/1"
    assert place == expected
    assert admin.find(rig.pool, str(expected["uuid"]))["size"] == 4 * BLOCK
