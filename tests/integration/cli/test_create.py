"""thinpool create."""

import json

import pytest

from tests.integration.cli.outcomes import GIB, of_the_pool, refused, volume, wrong_usage
from tests.support.pools import PoolRig


def test_it_makes_a_volume_of_that_size(rig: PoolRig) -> None:
    done = rig.run("create", "disk", "10G")
    assert (done.returncode, done.stdout, done.stderr) == (0, "created disk, 10G\n", "")
    made = volume(rig, "disk")
    assert (made["size"], made["mapped"], made["exclusive"]) == (10 * GIB, 0, 0)
    assert (made["origin"], made["read_only"], made["clients"]) == (None, False, 0)
    assert made["created"].endswith(("Z", "+00:00"))


def test_json_is_the_volume_as_list_has_it(rig: PoolRig) -> None:
    made = json.loads(rig.cli("create", "json", "1M", "--json"))
    assert made == of_the_pool(volume(rig, "json"))


@pytest.mark.parametrize("size", ["512", "1.5M", "1T"])
def test_sizes(rig: PoolRig, size: str) -> None:
    rig.create(f"size-{size}", size)


def test_a_name_may_be_any_text(rig: PoolRig) -> None:
    for name in ("my disk", "größe-磁盘", "x" * 127, "--", "-1", "?&#%"):
        rig.cli("create", "--", name, "1M")
        assert volume(rig, name)["size"] == 1 << 20


def test_read_only(rig: PoolRig) -> None:
    rig.create("ro", "1M", "--read-only")
    assert volume(rig, "ro")["read_only"] is True


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "it is empty; a name is 1 to 127 bytes"),
        ("x" * 128, "it has 128 bytes; a name is 1 to 127 bytes"),
        ("a/b", "it has a '/'; a name is 1 to 127 bytes"),
        ("a\nb", "it has a control character; a name is 1 to 127 bytes"),
    ],
)
def test_a_bad_name_is_refused(rig: PoolRig, name: str, says: str) -> None:
    refused(rig, "create", name, "1M", says=says)
    assert name not in rig.volumes()


def test_a_taken_name_is_refused(rig: PoolRig) -> None:
    rig.create("taken", "1M")
    refused(rig, "create", "taken", "2M", says="exists")
    assert volume(rig, "taken")["size"] == 1 << 20


@pytest.mark.parametrize(
    ("size", "says"),
    [
        ("0", "is zero: a volume has 512 bytes to"),
        ("-5G", "is negative"),
        ("1000", "not a multiple of 512"),
        ("100P", "over the format's limit"),
        ("8E", "over the format's limit"),
        ("big", "is not a size"),
    ],
)
def test_a_bad_size_is_refused_with_the_limit(rig: PoolRig, size: str, says: str) -> None:
    refused(rig, "create", "badly-sized", size, says=says)
    assert "badly-sized" not in rig.volumes()


def test_a_bad_reserve_is_refused(rig: PoolRig) -> None:
    refused(rig, "create", "r", "1M", "--reserve", "1000", says="multiple of 512")
    refused(rig, "create", "r", "1M", "--reserve", "-1K", says="is negative")


def test_wrong_usage(rig: PoolRig) -> None:
    wrong_usage(rig, "create", "x", says="create: missing argument 'SIZE'")
    wrong_usage(rig, "create", "x", "1M", "--nope", says="no such option '--nope'")
    wrong_usage(rig, "create", "x", "1M", "--reserve", says="an argument; see 'thinpool create --h")
    assert "x" not in rig.volumes()


@pytest.mark.parametrize("size", ["65P", "4E", "5E"])
def test_one_limit_is_told_whatever_is_over_it(rig: PoolRig, size: str) -> None:
    refused(
        rig, "create", "large", size, says="over the format's limit: a volume has 512 bytes to 64P"
    )
    rig.create(f"small-{size}", "1M")
    refused(rig, "resize", f"small-{size}", size, says="a volume has 512 bytes to 64P")


def test_a_size_that_no_integer_holds_is_refused(rig: PoolRig) -> None:
    refused(rig, "create", "large", "8E", says="over the format's limit: all sizes are below 8E")
    refused(
        rig, "create", "large", "9" * 40, says="over the format's limit: all sizes are below 8E"
    )
