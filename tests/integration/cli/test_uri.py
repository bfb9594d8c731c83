"""thinpool uri."""

from tests.integration.cli.outcomes import refused, wrong_usage
from tests.support.pools import PoolRig
from tests.support.tools import run


def test_the_uri_alone_on_one_line(rig: PoolRig) -> None:
    rig.create("a", "1M")
    line = rig.cli("uri", "a")
    assert line.startswith("nbd+unix:///a?socket=/")
    assert line.endswith("nbd.sock\n")
    assert line.count("\n") == 1
    assert rig.json("uri", "a") == {"uri": line.strip()}


def test_clients_take_it(running: PoolRig) -> None:
    running.create("größe & 50%?", "3M")
    assert run("nbdinfo", "--size", running.uri("größe & 50%?")).stdout.strip() == str(3 << 20)


def test_refusals(rig: PoolRig) -> None:
    refused(rig, "uri", "nobody", says="no volume")
    wrong_usage(rig, "uri", says="missing argument 'VOL'")
