"""Trees of a million mappings: bulk, single, at random, with a snapshot that diverges."""

import random
from pathlib import Path

import pytest

from tests.support.thin import thin_dump
from tests.unit.meta.rigs import complaints, write_image
from thinmeta.store.memory import MemoryStore
from thinmeta.thin.metadata import ThinMetadata

MILLION = 1_000_000


def new(data_blocks: int = 2 * MILLION) -> tuple[MemoryStore, ThinMetadata]:
    store = MemoryStore()
    metadata = ThinMetadata.create(store, data_block_sectors=128, data_blocks=data_blocks)
    metadata.create_thin(1)
    return store, metadata


def fill(metadata: ThinMetadata, dev: int, begin: int, count: int) -> None:
    """Maps blocks begin..begin+count-1 to whatever data blocks there are."""
    end = begin + count
    while begin < end:
        data, got = metadata.reserve(end - begin)
        metadata.insert(dev, begin, data, got)
        begin += got


@pytest.mark.slow
def test_a_million_in_bulk(tmp_path: Path) -> None:
    store, metadata = new()
    fill(metadata, 1, 0, MILLION)
    metadata.commit()
    assert metadata.details(1).mapped_blocks == metadata.data_used == MILLION
    assert complaints(store, tmp_path / "image") == []

    again = ThinMetadata.open(store)
    for block in random.Random(1).sample(range(MILLION), 1000):
        found = again.lookup(1, block)
        assert found is not None
        assert not found.shared
    assert again.lookup(1, MILLION) is None
    assert sum(run.length for run in again.runs(1, 0, 1 << 40)) == MILLION

    again.create_snapshot(2, 1)
    assert again.remove(1, 0, MILLION // 2) == MILLION // 2
    fill(again, 1, MILLION - 100, 100)
    again.commit()
    assert again.exclusive_blocks(2) == MILLION // 2 + 100
    assert again.exclusive_blocks(1) == 100
    assert complaints(store, tmp_path / "image") == []

    again.delete_device(2)
    again.commit()
    assert again.data_used == MILLION // 2
    assert again.remove(1, 0, 1 << 40) == MILLION // 2
    again.commit()
    assert again.data_used == 0
    assert complaints(store, tmp_path / "image") == []


@pytest.mark.slow
def test_a_million_at_random(seed: int, tmp_path: Path) -> None:
    """One at a time, anywhere, in commits of fifty thousand; then half of them gone again."""
    rng = random.Random(seed)
    store, metadata = new()
    blocks = rng.sample(range(1 << 30), MILLION)
    model: dict[int, int] = {}
    for number, block in enumerate(blocks, 1):
        data, _ = metadata.reserve(1)
        metadata.insert(1, block, data)
        model[block] = data
        if number % 50_000 == 0:
            metadata.commit()
    image = tmp_path / "image"
    assert complaints(store, image) == []
    assert thin_dump(write_image(store, image)).devices[1].mappings == model
    for number, block in enumerate(blocks[: MILLION // 2], 1):
        assert metadata.remove(1, block, block + 1) == 1
        del model[block]
        if number % 50_000 == 0:
            metadata.commit()
    metadata.commit()
    assert complaints(store, image) == []
    assert thin_dump(write_image(store, image)).devices[1].mappings == model
