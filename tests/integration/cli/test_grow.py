"""thinpool grow."""

import pytest

from tests.conftest import PoolMaker
from tests.integration.cli.outcomes import GIB, MIB, fill, refused, wrong_usage
from tests.support.pools import PoolRig


@pytest.mark.parametrize("start", [True, False])
def test_the_data_file_and_the_pool_are_larger(new_pool: PoolMaker, start: bool) -> None:
    rig = new_pool("64M", start=start)
    done = rig.run("grow", "--size", "1G")
    assert (done.returncode, done.stdout) == (0, "grown to 1G\n")
    assert rig.status()["data"]["size"] == GIB
    assert (rig.directory / "data").stat().st_size == GIB
    assert rig.json("grow", "--size", "2G")["data"]["size"] == 2 * GIB


def test_there_is_room_for_more(new_pool: PoolMaker) -> None:
    rig = new_pool("1M", on_full="error")
    rig.create("a", "8M")
    with rig.connect("a") as client:
        client.write(0, b"x" * MIB)
        rig.cli("grow", "--size", "8M")
        client.write(MIB, b"y" * (4 * MIB))
        client.flush()
        assert client.read(MIB - 1, 2) == b"xy"


def test_it_shrinks_nothing(rig: PoolRig) -> None:
    refused(rig, "grow", "--size", "128M", says="256M")
    assert rig.status()["data"]["size"] == 256 * MIB


@pytest.mark.parametrize(
    ("size", "says"),
    [
        ("0", "is zero"),
        ("-1G", "is negative"),
        ("1000000001", "not a multiple of 512"),
        ("100P", "over the format's limit"),
        ("x", "is not a size"),
    ],
)
def test_bad_sizes(rig: PoolRig, size: str, says: str) -> None:
    refused(rig, "grow", "--size", size, says=says)
    assert rig.status()["data"]["size"] == 256 * MIB


def test_wrong_usage(rig: PoolRig) -> None:
    wrong_usage(rig, "grow", says="--size")


def test_a_full_pool_serves_again(new_pool: PoolMaker) -> None:
    rig = new_pool("1M", on_full="error")
    rig.create("a", "8M")
    fill(rig, "a", MIB)
    with rig.connect("a") as client, pytest.raises(Exception, match="ENOSPC"):
        client.write(MIB, b"y" * 65536)
    assert rig.status()["mode"] == "out-of-data-space"
    rig.cli("grow", "--size", "4M")
    assert rig.status()["mode"] == "write"
    fill(rig, "a", MIB, offset=MIB)
