"""Volumes and devices belong together, and the audit tells when they do not."""

import dataclasses
import uuid
from collections.abc import Callable

import pytest

from thinmeta.check import check
from thinmeta.store.memory import MemoryStore
from thinmeta.thin import ThinMetadata
from thinpoold import deletion, pool_record
from thinpoold.audit import audit
from thinpoold.pool_record import PoolRecord
from thinpoold.volumes import TABLE, VolumeRecord, new_record

BLOCK = 64 << 10


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def metadata(store: MemoryStore) -> ThinMetadata:
    """A pool with the volumes `a`, device 1, and `b`, device 2, not committed yet."""
    metadata = ThinMetadata.create(store, data_block_sectors=128, data_blocks=100)
    pool_record.store(metadata, PoolRecord("p", bytes(16), "data", BLOCK))
    for dev_id, name in enumerate(("a", "b"), 1):
        metadata.create_thin(dev_id)
        put(metadata, record(name, dev_id))
    return metadata


def record(name: str, dev_id: int) -> VolumeRecord:
    made = new_record(name, dev_id, 1 << 20)
    return dataclasses.replace(made, uuid=uuid.uuid5(uuid.NAMESPACE_OID, name).bytes)


def put(metadata: ThinMetadata, made: VolumeRecord) -> None:
    metadata.put_record(TABLE, made.uuid, made.pack())


def note(metadata: ThinMetadata, dev_id: int) -> None:
    """As a deletion does that is under way."""
    metadata.put_record(deletion.TABLE, dev_id.to_bytes(4, "big"), b"")


def test_a_device_that_is_being_deleted_belongs_to_nobody(
    store: MemoryStore, metadata: ThinMetadata
) -> None:
    metadata.create_thin(3)
    note(metadata, 3)
    metadata.commit()
    assert audit(store) == []
    assert check(store).ok


def test_a_sound_pool(store: MemoryStore, metadata: ThinMetadata) -> None:
    metadata.commit()
    assert audit(store) == []
    assert check(store).ok


def nothing_left(metadata: ThinMetadata) -> None:
    metadata.delete_device(2)


def deleted_but_owned(metadata: ThinMetadata) -> None:
    note(metadata, 2)


def deleted_but_gone(metadata: ThinMetadata) -> None:
    note(metadata, 3)


def nobody_left(metadata: ThinMetadata) -> None:
    metadata.create_thin(3)


def same_name(metadata: ThinMetadata) -> None:
    put(metadata, dataclasses.replace(record("b", 2), name="a"))


def same_device(metadata: ThinMetadata) -> None:
    put(metadata, record("b", 1))


def bad_name(metadata: ThinMetadata) -> None:
    put(metadata, dataclasses.replace(record("b", 2), name="a/b"))


def bad_size(metadata: ThinMetadata) -> None:
    put(metadata, dataclasses.replace(record("b", 2), size=-512))


def wrong_type(metadata: ThinMetadata) -> None:
    put(metadata, dataclasses.replace(record("b", 2), size="1M"))  # type: ignore[arg-type]


def no_record(metadata: ThinMetadata) -> None:
    metadata.put_record(TABLE, record("b", 2).uuid, b"{}")


def no_json(metadata: ThinMetadata) -> None:
    metadata.put_record(TABLE, record("b", 2).uuid, b"\xff")


def no_pool(metadata: ThinMetadata) -> None:
    metadata.put_record(pool_record.TABLE, pool_record.KEY, None)


def newer_pool(metadata: ThinMetadata) -> None:
    metadata.put_record(pool_record.TABLE, pool_record.KEY, b'{"format": 99}')


def other_blocks(metadata: ThinMetadata) -> None:
    pool_record.store(metadata, PoolRecord("p", bytes(16), "data", 2 * BLOCK))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (nothing_left, "'b' has no device 2"),
        (nobody_left, "device 3: belongs to no volume"),
        (deleted_but_owned, "its device 2 is being deleted"),
        (deleted_but_gone, "device 3: is being deleted, but is not there"),
        (same_name, "has the name 'a' of volume"),
        (same_device, "has device 1 of volume"),
        (bad_name, "makes no sense"),
        (bad_size, "makes no sense"),
        (wrong_type, "makes no sense"),
        (no_record, "makes no sense"),
        (no_json, "makes no sense"),
        (no_pool, "pool: is missing"),
        (newer_pool, "format 99"),
        (other_blocks, "the metadata says 65536"),
    ],
)
def test_damage_is_told(
    store: MemoryStore, metadata: ThinMetadata, damage: Callable[[ThinMetadata], None], says: str
) -> None:
    damage(metadata)
    metadata.commit()
    assert check(store).ok
    told = [str(problem) for problem in audit(store)]
    assert any(says in line for line in told), told
