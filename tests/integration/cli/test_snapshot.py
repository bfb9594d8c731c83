"""thinpool snapshot."""

import json

from tests.integration.cli.outcomes import MIB, fill, of_the_pool, refused, volume, wrong_usage
from tests.support.pools import PoolRig


def test_a_snapshot_is_a_volume_with_an_origin(rig: PoolRig) -> None:
    rig.create("a", "8M")
    done = rig.run("snapshot", "a", "a1")
    assert (done.returncode, done.stdout) == (0, "snapshotted a1 of a\n")
    made = volume(rig, "a1")
    assert (made["origin"], made["size"], made["read_only"]) == ("a", 8 * MIB, False)


def test_several_at_one_instant(rig: PoolRig) -> None:
    rig.create("b", "1M")
    rig.create("c", "2M")
    before = rig.status()["transaction_id"]
    answer = json.loads(rig.cli("snapshot", "b", "b1", "c", "c1", "b", "b2", "--json"))
    assert [(one["name"], one["origin"]) for one in answer["volumes"]] == [
        ("b1", "b"),
        ("c1", "c"),
        ("b2", "b"),
    ]
    assert answer["volumes"] == [of_the_pool(volume(rig, name)) for name in ("b1", "c1", "b2")]
    assert rig.status()["transaction_id"] == before + 1


def test_a_snapshot_of_a_snapshot(rig: PoolRig) -> None:
    rig.create("d", "1M")
    rig.snapshot("d", "d1")
    rig.snapshot("d1", "d2")
    assert volume(rig, "d2")["origin"] == "d1"


def test_read_only(rig: PoolRig) -> None:
    rig.create("e", "1M")
    rig.snapshot("e", "e1", "--read-only")
    assert volume(rig, "e1")["read_only"] is True


def test_it_holds_what_the_origin_held(running: PoolRig) -> None:
    running.create("f", "8M")
    fill(running, "f", MIB, byte=b"1")
    running.snapshot("f", "f1")
    fill(running, "f", MIB // 2, byte=b"2")
    with running.connect("f1") as client:
        assert client.read(0, MIB) == b"1" * MIB
    listed = running.volumes()
    assert (listed["f"]["mapped"], listed["f1"]["mapped"]) == (MIB, MIB)
    assert (listed["f"]["exclusive"], listed["f1"]["exclusive"]) == (MIB // 2, MIB // 2)


def test_all_or_none(rig: PoolRig) -> None:
    rig.create("g", "1M")
    refused(rig, "snapshot", "g", "g1", "nobody", "n1", says="nobody")
    assert volume(rig, "g1") is None
    refused(rig, "snapshot", "g", "g1", "g", "g1", says="g1")
    assert volume(rig, "g1") is None
    refused(rig, "snapshot", "g", "g1", "g", "g", says="exists")
    assert volume(rig, "g1") is None


def test_refusals(rig: PoolRig) -> None:
    rig.create("h", "1M")
    refused(rig, "snapshot", "nobody", "n1", says="no volume")
    refused(rig, "snapshot", "h", "a/b", says="has a '/'")
    refused(rig, "snapshot", "h", "", says="is empty")


def test_wrong_usage(rig: PoolRig) -> None:
    wrong_usage(rig, "snapshot", says="missing argument")
    wrong_usage(rig, "snapshot", "h", says="'h' has no snapshot name")
    wrong_usage(rig, "snapshot", "h", "h1", "h2", says="'h2' has no snapshot name")
