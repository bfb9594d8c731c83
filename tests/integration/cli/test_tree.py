"""thinpool tree."""

from collections.abc import Callable
from typing import Any

from tests.support.pools import PoolRig


def names(volumes: list[Any]) -> dict[str, Any]:
    return {volume["name"]: names(volume["children"]) for volume in volumes}


def test_snapshots_stand_below_their_origins(rig: PoolRig) -> None:
    rig.create("a", "1M")
    rig.create("b", "2M")
    rig.snapshot("a", "a1", "a", "a2")
    rig.snapshot("a1", "a11")
    assert names(rig.json("tree")["volumes"]) == {"a": {"a1": {"a11": {}}, "a2": {}}, "b": {}}
    text = rig.cli("tree")
    places = [text.index(part) for part in ("\na ", "├─ a1 ", "│  └─ a11 ", "└─ a2 ", "\nb ")]
    assert places == sorted(places), text


def test_what_outlives_its_origin_stands_alone(rig: PoolRig) -> None:
    rig.create("c", "1M")
    rig.snapshot("c", "c1")
    rig.snapshot("c1", "c2")
    rig.delete("c")
    shown = names(rig.json("tree")["volumes"])
    assert shown["c1"] == {"c2": {}}


def test_sizes_are_shown(rig: PoolRig) -> None:
    rig.create("d", "3M")
    header, *rows = rig.cli("tree").splitlines()
    assert header.split() == ["NAME", "SIZE", "MAPPED", "EXCLUSIVE"]
    assert next(row for row in rows if row.startswith("d ")).split() == ["d", "3M", "0", "0"]
    entry = next(one for one in rig.json("tree")["volumes"] if one["name"] == "d")
    assert (entry["size"], entry["mapped"]) == (3 << 20, 0)


def test_a_long_chain_of_snapshots_is_shown(new_pool: Callable[..., PoolRig]) -> None:
    pool = new_pool()
    with pool.rpc() as rpc:
        rpc.call("create", name="s0", size=1 << 20)
        for number in range(1, 520):
            rpc.call("snapshot", pairs=[[f"s{number - 1}", f"s{number}"]])
    for _ in ("running", "stopped"):
        rows = pool.cli("tree").splitlines()[1:]
        assert [row.split()[-4] for row in rows] == [f"s{number}" for number in range(520)]
        assert max(map(len, rows)) < 120
        assert names(pool.json("tree")["volumes"]).keys() == {f"s{n}" for n in range(0, 520, 100)}
        if pool.running:
            pool.stop()
