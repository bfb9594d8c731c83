"""Export: the kernel's flat format, accepted by its tools, whole or not at all; and reading one."""

from pathlib import Path

import pytest

from tests.support.thin import thin_check, thin_dump
from tests.unit.meta.workbench import Bench, make_pool, restore, restored_devices
from thinmeta.check import check
from thinmeta.errors import Closed, Corrupt, ReadOnlyStore, StoreError
from thinmeta.export import export_metadata
from thinmeta.format import bitmap, index, node
from thinmeta.format.block import BLOCK_SIZE, Kind, kind_of, verify
from thinmeta.format.superblock import SUPERBLOCK_BLOCK
from thinmeta.store.flat import FlatStore
from thinmeta.store.lmdb import LmdbStore
from thinmeta.store.memory import MemoryStore


@pytest.fixture
def pool() -> MemoryStore:
    store = MemoryStore()
    make_pool(store)
    return store


def test_the_kernels_tools_take_an_export(pool: MemoryStore, tmp_path: Path) -> None:
    image = tmp_path / "meta.img"
    told: list[tuple[int, int]] = []
    written = export_metadata(pool, image, progress=lambda done, total: told.append((done, total)))
    assert written == len(list(pool.block_numbers()))
    assert told[-1] == (written, written)
    assert thin_check(image) == []
    dumped = thin_dump(image)
    bench = Bench(pool)
    for device, root in bench.device_roots().items():
        mappings = {
            key: int.from_bytes(value, "little") >> 24
            for _, parsed in bench.leaves(root)
            for key, value in zip(parsed["keys"], parsed["values"], strict=True)
        }
        assert dumped.devices[device].mappings == mappings


def test_an_export_has_every_block_at_its_place_and_no_more(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path / "m", create=True)
    make_pool(store)
    image = tmp_path / "meta.img"
    written = export_metadata(store, image)
    size = Bench(store).superblock.metadata_space_map.nr_blocks * BLOCK_SIZE
    assert image.stat().st_size == size
    assert image.stat().st_blocks * 512 <= (written + 16) * BLOCK_SIZE < size
    flat = FlatStore(image)
    assert flat.file_size() == size
    for block in store.block_numbers():
        assert flat.read(block) == store.read(block)
    assert check(flat, foreign=True).ok
    flat.close()
    store.close()


def test_a_failed_export_leaves_nothing(pool: MemoryStore, tmp_path: Path) -> None:
    image = tmp_path / "meta.img"
    image.write_bytes(b"precious")
    pool.commit({1 << 30: bytes(BLOCK_SIZE)}, (), {})
    with pytest.raises(Corrupt, match="there is a block 1073741824"):
        export_metadata(pool, image)
    Bench(pool).flip(SUPERBLOCK_BLOCK, 5)
    with pytest.raises(Corrupt, match="superblock checksum"):
        export_metadata(pool, image)
    assert [path.name for path in tmp_path.iterdir()] == ["meta.img"]
    assert image.read_bytes() == b"precious"


def test_an_export_replaces_a_file_but_nothing_else(pool: MemoryStore, tmp_path: Path) -> None:
    image = tmp_path / "meta.img"
    image.write_bytes(b"old")
    export_metadata(pool, image)
    assert thin_check(image) == []
    for target in (tmp_path, Path("/dev/null")):
        with pytest.raises(FileExistsError):
            export_metadata(pool, target)
    with pytest.raises(FileNotFoundError):
        export_metadata(pool, tmp_path / "no" / "meta.img")


def test_a_flat_store_is_read_only(tmp_path: Path) -> None:
    store = FlatStore(restore(tmp_path, ""))
    with pytest.raises(ReadOnlyStore):
        store.commit({}, (), {})
    for block in (1024, 1 << 62, 1 << 70):
        with pytest.raises(Corrupt) as caught:
            store.read(block)
        assert caught.value.kind == "missing"
    assert list(store.block_numbers()) == list(range(1024))
    assert (store.tables(), store.record("t", b"k"), list(store.records("t"))) == ([], None, [])
    assert list(store.record_keys("t")) == []
    with store.snapshot() as view:
        assert view.read(0) == store.read(0)
    store.close()
    store.close()
    for call in (store.file_size, store.tables, lambda: store.read(0)):
        with pytest.raises(Closed):
            call()
    with pytest.raises(StoreError) as error:
        FlatStore(tmp_path / "nothing")
    assert error.value.errno == 2


def test_blocks_of_the_kernels_tools_are_what_the_format_says(tmp_path: Path) -> None:
    """Checksums and structures, on blocks that nobody here wrote."""
    store = FlatStore(restore(tmp_path, restored_devices()))
    bench = Bench(store)
    superblock = bench.superblock
    assert superblock.pack()[4:] == store.read(SUPERBLOCK_BLOCK)[4:]
    assert (superblock.time, superblock.transaction_id) == (3, 7)
    assert superblock.data_space_map.nr_blocks == 20000
    kinds = {
        "the superblock": Kind.SUPERBLOCK,
        "metadata space map, index": Kind.INDEX,
        "bitmap": Kind.BITMAP,
    }
    purposes = bench.kinds()
    assert len(purposes) > 30
    for block, purpose in purposes.items():
        data = store.read(block)
        kind = next((kinds[name] for name in kinds if name in purpose), Kind.NODE)
        assert kind_of(data) is kind, purpose
        verify(data, kind, block)
        if kind is Kind.NODE:
            parsed = node.parse(data)
            assert parsed.header.max_entries == node.max_entries(parsed.header.value_size)
    data = store.read(superblock.metadata_space_map.bitmap_root)
    entries = index.unpack(data, 1)
    again = index.pack(entries)
    assert again[16:] == data[16:]
    assert all(bitmap.get(store.read(entries[0].blocknr), block) for block in purposes)
    store.close()
