"""thinpool rename."""

from tests.integration.cli.outcomes import refused, volume
from tests.support.pools import PoolRig


def test_a_new_name_for_the_same_volume(rig: PoolRig) -> None:
    rig.create("a", "1M")
    rig.snapshot("a", "a1")
    before = volume(rig, "a")
    done = rig.run("rename", "a", "b")
    assert (done.returncode, done.stdout) == (0, "renamed a to b\n")
    assert volume(rig, "a") is None
    assert volume(rig, "b") == {**before, "name": "b"}
    assert volume(rig, "a1")["origin"] == "b"


def test_clients_keep_it(running: PoolRig) -> None:
    running.create("c", "1M")
    with running.connect("c") as client:
        client.write(0, b"y" * 512)
        running.cli("rename", "c", "d")
        client.write(512, b"z" * 512)
        client.flush()
    with running.connect("d") as client:
        assert client.read(0, 1024) == b"y" * 512 + b"z" * 512


def test_refusals(rig: PoolRig) -> None:
    rig.create("e", "1M")
    rig.create("f", "2M")
    refused(rig, "rename", "nobody", "g", says="no volume")
    refused(rig, "rename", "e", "f", says="exists")
    refused(rig, "rename", "e", "a/b", says="has a '/'")
    refused(rig, "rename", "e", "", says="is empty")
    assert volume(rig, "e")["size"] == 1 << 20
    assert volume(rig, "f")["size"] == 2 << 20
