"""The registry of volumes over stored records."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinmeta.errors import Corrupt
from thinpoold.errors import InvalidName, NoSuchVolume, VolumeExists
from thinpoold.volumes import TABLE, Registry, VolumeRecord, new_record


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
