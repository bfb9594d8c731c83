"""thinpool set and get."""

import pytest

from tests.conftest import PoolMaker
from tests.integration.cli.outcomes import refused, wrong_usage
from tests.support.pools import PoolRig


def test_what_is_set_is_got(rig: PoolRig) -> None:
    before = rig.json("get")["settings"]
    after = rig.json("set", "on-full=error", "full-timeout=5", "low_water=25%")["settings"]
    assert after == {**before, "on_full": "error", "full_timeout": 5, "low_water": 25}
    assert rig.json("get")["settings"] == after
    rig.cli("set", "on-full=queue", "full-timeout=60", "low-water=10")
    assert rig.json("get")["settings"] == before


def test_text_is_what_set_takes(rig: PoolRig) -> None:
    text = rig.cli("get")
    assert "on-full=queue\n" in text
    assert "low-water=10%\n" in text
    assert rig.cli("get", "discard") == "discard=passdown\n"
    before = rig.json("get")
    names = ("on-full", "full-timeout", "discard", "skip-zeroing", "low-water")
    rig.cli("set", *[line for line in text.splitlines() if line.partition("=")[0] in names])
    assert rig.json("get") == before


def test_some(rig: PoolRig) -> None:
    assert rig.json("get", "on-full", "low_water") == {
        "settings": {"on_full": "queue", "low_water": 10}
    }


def test_it_outlives_the_daemon(new_pool: PoolMaker) -> None:
    rig = new_pool()
    rig.cli("set", "discard=ignore")
    rig.kill()
    assert rig.json("get")["settings"]["discard"] == "ignore"
    rig.start()
    assert rig.json("get")["settings"]["discard"] == "ignore"


def test_another_cache_is_in_effect_after_the_next_start(new_pool: PoolMaker) -> None:
    rig = new_pool()
    done = rig.run("set", "cache=bufio", "data-cache=32M")
    assert done.returncode == 0
    assert "cache and data-cache: in effect when the pool is stopped and started again" in (
        done.stderr
    )
    assert rig.status()["cache"] == "page"
    rig.create("vol", "4M")
    with rig.connect("vol") as client:
        client.write(700, b"by way of the page cache")
    rig.stop()
    assert rig.run("set", "low-water=5%").stderr == ""
    rig.start()
    status = rig.status()
    assert (status["cache"], status["fastpath"]) == ("bufio", False)
    assert status["fastpath_reason"]
    with rig.connect("vol") as client:
        assert client.read(700, 24) == b"by way of the page cache"
        client.write(65536 + 5, b"past it")
    rig.kill()
    rig.cli("set", "cache=page")
    rig.start()
    assert rig.status()["cache"] == "page"
    with rig.connect("vol") as client:
        assert client.read(65536, 12) == bytes(5) + b"past it"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("on-full=panic",), "on-full cannot be 'panic': it is queue or error"),
        (("discard=",), "passdown, nopassdown or ignore"),
        (("full-timeout=-1",), "seconds"),
        (("low-water=101%",), "0% to 100%"),
        (("skip-zeroing=maybe",), "yes or no"),
        (("block-size=128K",), "no setting 'block-size': there are on-full"),
        (("low-water=5%", "nonsense=1"), "no setting 'nonsense'"),
        (("low-water=5%", "low_water=6%"), "twice"),
    ],
)
def test_refusals_change_nothing(rig: PoolRig, words: tuple[str, ...], says: str) -> None:
    before = rig.json("get")
    refused(rig, "set", *words, says=says)
    assert rig.json("get") == before


def test_an_unknown_one_is_not_got(rig: PoolRig) -> None:
    refused(rig, "get", "nonsense", says="no setting 'nonsense': there are")


def test_wrong_usage(rig: PoolRig) -> None:
    wrong_usage(rig, "set", says="missing argument")
    wrong_usage(rig, "set", "on-full", says="'on-full' is not KEY=VALUE")
