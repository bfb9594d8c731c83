"""thinpool info."""

from tests.integration.cli.outcomes import refused, volume, wrong_usage
from tests.support.pools import PoolRig


def test_it_has_what_list_has_and_more(rig: PoolRig) -> None:
    rig.create("a", "10M", "--reserve", "1M")
    told = rig.json("info", "a")
    listed = volume(rig, "a")
    assert {key: told[key] for key in listed} == listed
    assert len(told) > len(listed)
    assert told["reserve"] == 1 << 20


def test_text_is_two_columns(rig: PoolRig) -> None:
    rig.create("b", "10M")
    lines = dict(line.split(maxsplit=1) for line in rig.cli("info", "b").splitlines()[:1])
    assert lines == {"name": "b"}
    assert "10M (10485760 bytes)" in rig.cli("info", "b")


def test_refusals(rig: PoolRig) -> None:
    refused(rig, "info", "nobody", says="no volume")
    refused(rig, "info", "a/b", says="has a '/'")
    wrong_usage(rig, "info", says="missing argument 'VOL'")
