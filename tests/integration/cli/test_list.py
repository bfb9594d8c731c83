"""thinpool list."""

import os
import subprocess
import sys
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.integration.cli.outcomes import MIB, fill, wrong_usage
from tests.support.pools import PoolRig

# Opens a volume, says its size, and keeps it open until its stdin ends.
_CLIENT = """
import nbd, sys
client = nbd.NBD()
client.connect_uri(sys.argv[1])
print(client.get_size(), flush=True)
sys.stdin.read()
"""

FIELDS = {
    "name",
    "id",
    "uuid",
    "size",
    "mapped",
    "exclusive",
    "origin",
    "labels",
    "created",
    "read_only",
    "clients",
    "opened_by",
}


def test_no_volumes(rig: PoolRig) -> None:
    if not rig.volumes():
        assert rig.json("list") == {"volumes": []}
        assert rig.cli("list").split() == [
            "NAME", "SIZE", "MAPPED", "EXCLUSIVE", "ACCESS", "ORIGIN", "CREATED", "OPEN", "BY",
        ]  # fmt: skip


def test_json_has_the_fields_that_scripts_count_on(rig: PoolRig) -> None:
    rig.create("a", "1M")
    rig.snapshot("a", "a1")
    listed = rig.json("list")
    assert listed.keys() == {"volumes"}
    for entry in listed["volumes"]:
        assert entry.keys() >= FIELDS
        assert isinstance(entry["size"], int)
    assert len({entry["uuid"] for entry in listed["volumes"]}) == len(listed["volumes"])
    assert len({entry["id"] for entry in listed["volumes"]}) == len(listed["volumes"])


def test_a_table_is_aligned(rig: PoolRig) -> None:
    rig.create("a-much-longer-name", "10G", "--read-only")
    header, *rows = rig.cli("list").splitlines()
    size = header.index("SIZE") + len("SIZE")
    row = next(line for line in rows if line.startswith("a-much-longer-name"))
    assert row[:size].endswith(" 10G")
    assert row[header.index("ACCESS") :].startswith("ro ")
    assert row[header.index("ORIGIN") :].startswith("- ")


def test_what_each_holds_and_who_has_it_open(running: PoolRig) -> None:
    running.create("b", "8M")
    fill(running, "b", 2 * MIB)
    with running.connect("b"), running.connect("b"):
        entry = running.volumes()["b"]
        assert (entry["mapped"], entry["exclusive"], entry["clients"]) == (2 * MIB, 2 * MIB, 2)
        row = next(line for line in running.cli("list").splitlines() if line.startswith("b "))
        assert row.split()[2:4] == ["2M", "2M"]
        (client,) = entry["opened_by"]
        own = {"pid": os.getpid(), "uid": os.geteuid(), "connections": 2, "address": None}
        assert client.items() >= {**own, "tls": False, "read_only": False}.items()
        assert client["command"] in Path("/proc/self/comm").read_text()
        since = datetime.fromisoformat(client["since"])
        assert timedelta() <= datetime.now(UTC) - since < timedelta(minutes=10)
        who = f"{client['command']}[{os.getpid()}] ({client['user']}) x2"
        assert row.endswith(who)
        assert who in running.cli("info", "b")


def test_processes_are_apart_and_the_first_are_named(running: PoolRig) -> None:
    running.create("c", "8M")
    assert running.volumes()["c"]["opened_by"] == []
    with ExitStack() as stack:
        for _ in range(3):
            command = [sys.executable, "-P", "-c", _CLIENT, running.uri("c")]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            stack.enter_context(process)
            assert process.stdout is not None
            assert process.stdout.readline() == b"%d\n" % (8 * MIB)
        row = next(line for line in running.cli("list").splitlines() if line.startswith("c "))
        assert row.endswith(", and 1 more")
        assert len(running.volumes()["c"]["opened_by"]) == 3


def test_the_pool_may_be_named_before_or_after_the_verb(rig: PoolRig) -> None:
    rig.env = {name: value for name, value in rig.env.items() if name != "THINPOOL_POOL"}
    try:
        where = str(rig.directory)
        assert rig.cli("-p", where, "list") == rig.cli("list", "--pool", where)
        wrong_usage(rig, "list", says="which pool?")
        wrong_usage(rig, "-p", "x", "list", "-p", "y", says="which pool, x or y?")
    finally:
        rig.env["THINPOOL_POOL"] = str(rig.directory)


def test_volumes_are_chosen_by_their_labels(rig: PoolRig) -> None:
    for name, labels in {
        "la": ["label.owner=ann", "label.tier=1"],
        "lb": ["label.owner=bob"],
        "lc": ["label.owner=ann=bob"],
    }.items():
        rig.create(name, "1M")
        rig.cli("set", "--volume", name, *labels)

    def listed(*words: str) -> list[str]:
        return [one["name"] for one in rig.json("list", *words)["volumes"]]

    assert listed("--label", "owner") == ["la", "lb", "lc"]
    assert listed("--label", "owner=ann") == ["la"]
    assert listed("--label", "owner=ann=bob") == ["lc"]
    assert listed("--label", "owner", "--label", "tier=1") == ["la"]
    assert listed("--label", "tier=") == []
    header, row = rig.cli("list", "--label", "tier").splitlines()
    assert header.split()[-1] == "LABELS"
    assert row.endswith("owner=ann, tier=1")
    rig.delete("la", "lb", "lc")


def test_s2_stands_before_s10(rig: PoolRig) -> None:
    rig.create("s1", "1M")
    rig.snapshot("s1", "s10", "s1", "s9", "s1", "s2")
    names = [one for one in rig.volumes() if one in ("s1", "s2", "s9", "s10")]
    assert names == ["s1", "s2", "s9", "s10"]
    assert [row.split()[0] for row in rig.cli("list").splitlines()[1:]] == [*rig.volumes()]
