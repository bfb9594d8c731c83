"""The registry of volumes over stored records."""

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinmeta.errors import Corrupt, UnsupportedFormat
from thinpoold.errors import InvalidName, NoSuchVolume, VolumeExists
from thinpoold.pool_record import FORMAT, PoolRecord
from thinpoold.volumes import TABLE, VERSION, Registry, VolumeRecord, new_record


class Table:
    """Records in a dict."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, bytes], bytes] = {}

    def put_record(self, table: str, key: bytes, value: bytes | None) -> None:
        if value is None:
            del self.held[table, key]
        else:
            self.held[table, key] = value

    def records(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        return iter(
            sorted((key, value) for (name, key), value in self.held.items() if name == table)
        )


RECORDS = st.builds(
    VolumeRecord,
    uuid=st.binary(min_size=16, max_size=16),
    name=st.text(min_size=1, max_size=30).filter(lambda text: "/" not in text),
    dev_id=st.integers(0, (1 << 24) - 1),
    size=st.integers(1, 1 << 50),
    created=st.just("2030-01-01T00:00:00Z"),
    origin=st.none() | st.binary(min_size=16, max_size=16),
    read_only=st.booleans(),
    reserve=st.integers(0, 1 << 50),
    labels=st.dictionaries(st.text(max_size=5), st.text(max_size=5)),
)


@given(RECORDS)
def test_records_round_trip(record: VolumeRecord) -> None:
    assert VolumeRecord.unpack(record.uuid, record.pack()) == record


def test_put_get_rename_remove_and_load() -> None:
    table = Table()
    registry = Registry(table)
    one = new_record("one", 1, 512)
    two = new_record("two", 2, 1024, origin=one.uuid, read_only=True, reserve=512)
    registry.put(two)
    registry.put(one)
    assert [record.name for record in registry] == ["one", "two"]
    assert registry.get("two") == two
    assert registry.by_uuid(one.uuid) == one
    renamed = VolumeRecord(**{**vars(one), "name": "eins"})
    registry.put(renamed)
    with pytest.raises(NoSuchVolume):
        registry.get("one")
    again = Registry(table)
    assert list(again) == [renamed, two]
    registry.remove(two)
    assert len(registry) == 1
    again.load()
    assert list(again) == [renamed]


def test_names_are_unique_and_keep_the_rule() -> None:
    registry = Registry(Table())
    registry.put(new_record("one", 1, 512))
    registry.check_free("two")
    with pytest.raises(VolumeExists):
        registry.check_free("one")
    with pytest.raises(InvalidName):
        registry.check_free("a/b")


@pytest.mark.parametrize("value", [b"", b"[]", b"{}", b"\xff", b'{"name": 1, "origin": "zz"}'])
def test_nonsense_is_corrupt(value: bytes) -> None:
    table = Table()
    table.put_record(TABLE, bytes(16), value)
    with pytest.raises(Corrupt):
        Registry(table)


# As the first programs stored them, and those before versions.
OLDEST = (
    b'{"created": "2026-01-31T12:00:00Z", "dev_id": 1, '
    b'"labels": {}, "name": "gr\xc3\xb6\xc3\x9fe", "origin": null, '
    b'"read_only": false, "reserve": 0, "size": 1048576}'
)
BEFORE_VERSIONS = (
    b'{"allow": "user:1000", "bps": 0, "created": "2026-01-31T12:00:00Z", "dev_id": 1, '
    b'"generation": 3, "iops": 7, "labels": {}, "name": "v", "origin": "' + b"0a" * 16 + b'", '
    b'"read_only": true, "reserve": 512, "size": 1048576}'
)


def test_records_of_earlier_programs_are_read() -> None:
    oldest = VolumeRecord.unpack(bytes(16), OLDEST)
    assert (oldest.name, oldest.size, oldest.generation) == ("größe", 1 << 20, 1)
    later = VolumeRecord.unpack(bytes(16), BEFORE_VERSIONS)
    assert (later.allow, later.iops, later.generation) == ("user:1000", 7, 3)
    assert (later.origin, later.read_only, later.unknown) == (b"\n" * 16, True, {})


def test_what_a_newer_program_put_into_a_record_stays() -> None:
    table = Table()
    more = {**json.loads(BEFORE_VERSIONS), "class": "fast", "hours": {"from": 8, "days": [1, 2]}}
    table.put_record(TABLE, bytes(16), json.dumps(more).encode())
    registry = Registry(table)
    registry.put(replace(registry.get("v"), name="w", size=512).jumped())
    stored = json.loads(table.held[TABLE, bytes(16)])
    assert (stored["class"], stored["hours"]) == ("fast", {"from": 8, "days": [1, 2]})
    assert (stored["name"], stored["generation"], stored["version"]) == ("w", 4, VERSION)
    assert "unknown" not in stored


def test_a_record_of_a_newer_version_is_refused() -> None:
    table = Table()
    newer = {**json.loads(BEFORE_VERSIONS), "version": VERSION + 1}
    table.put_record(TABLE, bytes(16), json.dumps(newer).encode())
    with pytest.raises(UnsupportedFormat, match=rf"'v' is of version {VERSION + 1}"):
        Registry(table)


def test_the_pools_record_keeps_what_is_not_known_either() -> None:
    record = PoolRecord("p", bytes(16), "data", 1 << 16)
    stored = {**json.loads(record.pack()), "trash": "7d"}
    stored["data_mark"]["serial"] = "x"
    read = PoolRecord.unpack(json.dumps(stored).encode())
    changed = replace(read, settings=read.settings.changed({"on_full": "error"}))
    assert json.loads(changed.pack()) == {**stored, "on_full": "error"}
    with pytest.raises(UnsupportedFormat):
        PoolRecord.unpack(json.dumps({**stored, "format": FORMAT + 1}).encode())
