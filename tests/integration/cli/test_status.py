"""thinpool status."""

from pathlib import Path

import pytest

from tests.conftest import PoolMaker
from tests.integration.cli.outcomes import MIB, fill, refused, wrong_usage
from tests.support.client import NbdError
from tests.support.pools import PoolRig
from thinpoold.pool import Pool

FIELDS = {
    "name",
    "uuid",
    "mode",
    "reason",
    "needs_check",
    "pid",
    "uri",
    "control_socket",
    "transaction_id",
    "block_size",
    "data",
    "metadata",
    "volumes",
    "deleting",
    "clients",
    "fastpath",
    "cache",
    "memory",
}


def test_json_has_the_fields_that_scripts_count_on(rig: PoolRig) -> None:
    status = rig.status()
    assert status.keys() >= FIELDS
    assert status["data"].keys() == {"path", "size", "used"}
    assert status["metadata"].keys() == {"size", "used", "file_size", "reader"}
    memory, bounds = status["memory"], status["memory"]["bounds"]
    parts = {"metadata_cache", "data_cache", "mapping_tables", "unwritten"}
    assert memory.keys() == {"resident", "bounds", *parts}
    assert bounds.keys() == {"requests", "total", *parts}
    assert memory["resident"] < bounds["total"]
    assert (bounds["requests"] > 0) == rig.running
    assert (status["clients"], status["max_clients"]) == (0, 128)
    assert status["largest_request"] == 4 * MIB
    assert all(0 <= memory[part] <= bounds[part] for part in parts)
    assert sum(memory[part] for part in parts - {"unwritten"}) < memory["resident"] < 200 * MIB
    assert status["cache"] == "page"
    assert status["mode"] == "write"
    assert status["needs_check"] is False
    assert status["data"]["size"] == 256 * MIB
    assert 0 < status["metadata"]["used"] <= status["metadata"]["size"]
    assert status["metadata"]["file_size"] > 0


def test_whether_it_runs(rig: PoolRig) -> None:
    status = rig.status()
    if rig.running:
        assert (status["running"], status["pid"]) == (True, rig.pid)
        assert Path(status["control_socket"]).is_socket()
    else:
        assert status["running"] is False
        assert [status[key] for key in ("pid", "uri", "control_socket")] == [None] * 3


def test_volumes_and_clients_are_counted(running: PoolRig) -> None:
    before = running.status()
    running.create("a", "8M")
    fill(running, "a", 2 * MIB)
    with running.connect("a"), running.connect("a"):
        status = running.status()
        assert status["volumes"] == before["volumes"] + 1
        assert status["clients"] == 2
        assert status["data"]["used"] == before["data"]["used"] + 2 * MIB
        assert status["transaction_id"] > before["transaction_id"]


def test_text(rig: PoolRig) -> None:
    lines = dict(line.split("  ", 1) for line in rig.cli("status").splitlines())
    told = {key: value.strip() for key, value in lines.items()}
    assert told["mode"] == "write"
    assert told["block size"] == "64K"
    assert told["data"].endswith(f", {rig.directory}/data")
    assert "of 256M used" in told["data"]
    assert told["clients"] == "0 of at most 128"
    assert ("memory" in told) == rig.running
    assert " of at most " in told.get("memory", " of at most ")
    assert told["running"] == (f"yes, process {rig.pid}" if rig.running else "no")


def test_the_pool_may_be_a_word_or_an_option(rig: PoolRig) -> None:
    place = str(rig.directory)
    word, option = rig.json("status", place), rig.json("status", "-p", place)
    # Two processes, when it is stopped.
    del word["memory"], option["memory"]
    assert word == option
    assert rig.json("status", place)["name"] == rig.directory.name


def test_refusals(rig: PoolRig, tmp_path: Path) -> None:
    refused(rig, "status", str(tmp_path), says="no pool in")
    wrong_usage(rig, "status", "a", "b", says="unexpected extra argument")


def test_one_that_cannot_be_opened(new_pool: PoolMaker) -> None:
    rig = new_pool(start=False)
    (rig.directory / "data").rename(rig.directory / "away")
    refused(rig, "status", says="data")
    (rig.directory / "away").rename(rig.directory / "data")


def test_why_it_does_not_take_all_writes_is_told(new_pool: PoolMaker) -> None:
    rig = new_pool("4M", on_full="error")
    assert rig.status()["reason"] == ""
    rig.create("v", "8M")
    with rig.connect("v") as client, pytest.raises(NbdError):
        client.write(0, b"x" * (8 * MIB))
    assert rig.status()["mode"] == "out-of-data-space"
    assert f"out-of-data-space: {rig.status()['reason']}\n" in rig.cli("status")
    assert "grow the pool, or delete or discard something" in rig.status()["reason"]
    rig.cli("grow", "--size", "16M")
    assert (rig.status()["mode"], rig.status()["reason"]) == ("write", "")


def test_what_is_still_being_deleted_is_told(new_pool: PoolMaker) -> None:
    rig = new_pool(start=False)
    rig.create("a", "1M")
    pool = Pool.open(rig.directory)
    with pool.changing() as begin:
        begin()
        record = pool.registry.get("a")
        pool.registry.remove(record)
        pool.deletion.add(record.dev_id)
    pool.close()
    assert (rig.status()["volumes"], rig.status()["deleting"]) == (0, 1)
    assert "0, and 1 being deleted" in rig.cli("status")
    assert rig.inspect() == []
    rig.start()
    assert rig.inspect() == []
    assert rig.status()["deleting"] == 0
