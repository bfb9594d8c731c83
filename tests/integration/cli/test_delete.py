"""thinpool delete."""

from tests.integration.cli.outcomes import MIB, fill, refused, volume, wrong_usage
from tests.support.pools import PoolRig


def test_one_and_several(rig: PoolRig) -> None:
    for name in ("a", "b", "c"):
        rig.create(name, "1M")
    done = rig.run("delete", "a")
    assert (done.returncode, done.stdout) == (0, "deleted a, freed 0\n")
    assert rig.json("delete", "b", "c") == {"volumes": ["b", "c"], "freed": 0, "dry_run": False}
    assert {"a", "b", "c"}.isdisjoint(rig.volumes())


def test_it_says_how_much_it_frees(running: PoolRig) -> None:
    running.create("d", "8M")
    fill(running, "d", 4 * MIB)
    running.snapshot("d", "d1")
    fill(running, "d", MIB)
    used = running.status()["data"]["used"]
    for words, freed in ((["d"], MIB), (["d1"], MIB), (["d", "d1"], 5 * MIB)):
        answer = running.json("delete", *words, "--dry-run")
        assert answer == {"volumes": words, "freed": freed, "dry_run": True}
    assert "would delete d, d1 and free 5M" in running.cli("delete", "d", "d1", "--dry-run")
    assert running.status()["data"]["used"] == used
    assert running.json("delete", "d")["freed"] == MIB
    assert running.cli("delete", "d1") == "deleted d1, freed 4M\n"
    assert running.status()["data"]["used"] == used - 5 * MIB


def test_a_snapshot_outlives_its_origin(rig: PoolRig) -> None:
    rig.create("e", "1M")
    rig.snapshot("e", "e1")
    rig.delete("e")
    assert volume(rig, "e1")["origin"] is None


def test_one_in_use_is_refused_and_none_is_deleted(running: PoolRig) -> None:
    running.create("f", "1M")
    running.create("g", "1M")
    with running.connect("g") as client:
        refused(running, "delete", "f", "g", says="g")
        assert volume(running, "f") is not None
        client.write(0, b"x" * 512)
    running.delete("f", "g")


def test_refusals(rig: PoolRig) -> None:
    rig.create("h", "1M")
    refused(rig, "delete", "h", "nobody", says="no volume")
    refused(rig, "delete", "nobody", "--dry-run", says="no volume")
    assert volume(rig, "h") is not None
    wrong_usage(rig, "delete", says="missing argument")


def test_a_name_twice_is_deleted_once_or_refused(rig: PoolRig) -> None:
    rig.create("i", "1M")
    done = rig.run("delete", "i", "i")
    assert done.returncode in (0, 1)
    assert (volume(rig, "i") is None) == (done.returncode == 0)
