"""thinpool set and get."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import PoolMaker
from tests.integration.cli.outcomes import refused, volume, wrong_usage
from tests.support.pools import PoolRig
from thinpoold.attach import records
from thinpoold.attach.devices import NbdDevice
from thinpoold.attach.errors import AttachRefused
from thinpoold.attach.records import Attachment
from thinpoold.cli.app import thinpool


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


def test_what_is_attached_with_several_connections_must_not_have_to_wait(
    rig: PoolRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of a kernel's here: tests/uml has one."""
    rig.create("v", "1M")
    rig.create("w", "1M")
    attached = Attachment(
        kind=records.NBD,
        device="/dev/nbd3",
        pool=str(rig.directory),
        volume="v",
        uuid=volume(rig, "v")["uuid"],
        read_only=False,
        pid=1,
        started=0,
        connector=77,
        connections=4,
    )
    monkeypatch.setattr(records, "ROOTS", tmp_path / "records")
    monkeypatch.setattr(records, "directory", lambda: tmp_path / "records")
    monkeypatch.setattr(NbdDevice, "connector", 77)
    records.make_directory()
    records.save(attached)
    before = rig.json("get"), rig.json("get", "--volume", "v")

    def set_(*words: str) -> None:
        thinpool.main(["-p", str(rig.directory), "set", *words], standalone_mode=False)

    for words in (["full-timeout=0"], ["full_timeout=91", "low-water=5"]):
        with pytest.raises(AttachRefused, match="/dev/nbd3 is attached with 4 connections"):
            set_(*words)
    for words in (["iops=1"], ["bps=1G", "read-only=yes"]):
        with pytest.raises(AttachRefused, match="/dev/nbd3 is attached with 4 connections"):
            set_("--volume", "v", *words)
    assert (rig.json("get"), rig.json("get", "--volume", "v")) == before
    set_("--volume", "w", "iops=1")
    set_("on-full=error", "full-timeout=0")
    with pytest.raises(AttachRefused, match="for ever"):
        set_("on-full=queue")
    records.save(replace(attached, connections=1))
    set_("on-full=queue")
    set_("--volume", "v", "iops=1")
    rig.cli("set", "full-timeout=60")
    rig.cli("delete", "v", "w")


def test_labels(rig: PoolRig) -> None:
    rig.create("labelled", "1M")
    out = rig.cli("set", "--volume", "labelled", "label.owner=Ann O=1", "label.a-b_c.d=2", "iops=9")
    assert out.splitlines()[-2:] == ["label.a-b_c.d=2", "label.owner=Ann O=1"]
    assert rig.json("info", "labelled")["labels"] == {"owner": "Ann O=1", "a-b_c.d": "2"}
    assert "labels                  a-b_c.d=2, owner=Ann O=1" in rig.cli("info", "labelled")
    assert rig.cli("get", "--volume", "labelled", "label.a-b_c.d") == "label.a-b_c.d=2\n"
    rig.cli("set", "--volume", "labelled", "label.a-b_c.d=", "label.x=\u00fc")
    rig.cli("rename", "labelled", "renamed")
    assert rig.json("info", "renamed")["labels"] == {"owner": "Ann O=1", "x": "\u00fc"}
    rig.snapshot("renamed", "of-labelled")
    assert rig.json("info", "of-labelled")["labels"] == {}


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("label.=x", "no key of a label"),
        ("label.a b=x", "no key of a label"),
        ("label.-a=x", "no key of a label"),
        (f"label.{'k' * 64}=x", "no key of a label"),
        ("label.a=x\ny", "control characters"),
        ("label.a=x\u202ey", "invisible"),
        (f"label.a={'x' * 256}", "255 bytes"),
        ("lable.a=x", "no setting 'lable.a': there are iops, bps, read-only, allow, label.KEY"),
    ],
)
def test_bad_labels_change_nothing(rig: PoolRig, word: str, says: str) -> None:
    if "badly" not in rig.volumes():
        rig.create("badly", "1M")
    before = rig.json("info", "badly")
    refused(rig, "set", "--volume", "badly", "label.ok=1", word, says=says)
    assert rig.json("info", "badly") == before


def test_labels_have_a_bound(rig: PoolRig) -> None:
    rig.create("many", "1M")
    rig.cli("set", "--volume", "many", *(f"label.k{number}=v" for number in range(64)))
    refused(rig, "set", "--volume", "many", "label.more=v", says="65 labels: at most 64")
    rig.cli("set", "--volume", "many", "label.k7=", "label.more=v")
    assert len(rig.json("info", "many")["labels"]) == 64
