"""thinpool rollback."""

from tests.integration.cli.outcomes import MIB, fill, of_the_pool, refused, volume
from tests.support.pools import PoolRig


def content(rig: PoolRig, name: str) -> bytes:
    with rig.connect(name) as client:
        return client.read(0, MIB)


def prepared(rig: PoolRig, name: str) -> None:
    rig.create(name, "1M")
    fill(rig, name, MIB, byte=b"1")
    rig.snapshot(name, f"{name}1")
    fill(rig, name, MIB, byte=b"2")
    rig.snapshot(name, f"{name}2")
    fill(rig, name, MIB // 2, byte=b"3")


def test_what_it_held_is_kept(running: PoolRig) -> None:
    prepared(running, "a")
    before = volume(running, "a")
    answer = running.json("rollback", "a", "a1")
    assert answer["volume"] == of_the_pool(volume(running, "a"))
    assert answer["volume"]["uuid"] == before["uuid"]
    assert content(running, "a") == b"1" * MIB
    assert content(running, "a1") == b"1" * MIB
    assert content(running, "a2") == b"2" * MIB
    assert content(running, answer["kept"]) == b"3" * (MIB // 2) + b"2" * (MIB // 2)


def test_or_not(running: PoolRig) -> None:
    prepared(running, "b")
    before = set(running.volumes())
    assert running.cli("rollback", "b", "b2", "--discard-current") == "rolled back b to b2\n"
    assert set(running.volumes()) == before
    assert content(running, "b") == b"2" * MIB


def test_the_text_names_what_is_kept(rig: PoolRig) -> None:
    rig.create("c", "1M")
    rig.snapshot("c", "c1")
    text = rig.cli("rollback", "c", "c1")
    kept = text.strip().rpartition(" ")[2]
    assert volume(rig, kept) is not None


def test_refusals(rig: PoolRig) -> None:
    rig.create("d", "1M")
    refused(rig, "rollback", "d", "nobody", says="no volume")
    refused(rig, "rollback", "nobody", "d", says="no volume")
    refused(rig, "rollback", "d", "d", says="d")
