"""thinpool list."""

from tests.integration.cli.outcomes import MIB, fill, wrong_usage
from tests.support.pools import PoolRig

FIELDS = {
    "name",
    "id",
    "uuid",
    "size",
    "mapped",
    "exclusive",
    "origin",
    "created",
    "read_only",
    "clients",
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
        assert row.endswith("2 clients")


def test_the_pool_may_be_named_before_or_after_the_verb(rig: PoolRig) -> None:
    rig.env = {name: value for name, value in rig.env.items() if name != "THINPOOL_POOL"}
    try:
        where = str(rig.directory)
        assert rig.cli("-p", where, "list") == rig.cli("list", "--pool", where)
        wrong_usage(rig, "list", says="which pool?")
        wrong_usage(rig, "-p", "x", "list", "-p", "y", says="which pool, x or y?")
    finally:
        rig.env["THINPOOL_POOL"] = str(rig.directory)
