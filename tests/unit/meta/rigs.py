"""Trees and space maps on a store in memory, with commits, crashes and audits.

Thread-safety: none; one thread.
"""

import random
import struct
from pathlib import Path

from tests.support import audit
from tests.support.thin import thin_check
from thinmeta.btree import Cursor, IntValues, Tree, Values, next_portion
from thinmeta.buffers import BUFFER_BYTES, BufferCache
from thinmeta.check import check
from thinmeta.spacemap import MetadataSpaceMap
from thinmeta.store.memory import MemoryStore
from thinmeta.transaction import TransactionManager


class WideValues(Values[int]):
    """Values so wide that a leaf holds few: deep trees from few keys."""

    def __init__(self, value_size: int) -> None:
        super().__init__(value_size)
        self.value_size = value_size

    def pack(self, value: int) -> bytes:
        return value.to_bytes(8, "little") * (self.value_size // 8)

    def unpack(self, octets: memoryview) -> int:
        whole = bytes(octets)
        assert whole == whole[:8] * (self.value_size // 8), "a torn value"
        return int.from_bytes(whole[:8], "little")


class Rig:
    """A store, a cache, a transaction manager and the metadata space map."""

    def __init__(self, cache_blocks: int = 40) -> None:
        self.store = MemoryStore()
        self.cache = BufferCache(cache_blocks * BUFFER_BYTES)
        self.tm = TransactionManager(self.store, self.cache)
        self.counts = MetadataSpaceMap(self.tm, None)

    def commit(self) -> None:
        """All that changed becomes the store's content."""
        self.counts.save()
        self.counts.withheld.freeze()
        freed = self.counts.withheld.frozen()
        erased = [n for begin, count in freed for n in range(begin, begin + count)]
        frozen = self.tm.freeze(erased)
        self.tm.write(frozen)
        self.tm.committed()
        self.counts.release(self.counts.withheld.committed())

    def audit(self, trees: audit.Trees, roots_and_others: set[int]) -> None:
        """Every metadata block's count is the number of its parents; after a commit.

        `trees` has walked all trees but the space map's own; `roots_and_others` are blocks
        counted once that no tree points at.
        """
        root = self.counts.root()
        overflow_tree = audit.Trees(self.store.read)
        overflow = {
            key: struct.unpack("<I", value)[0]
            for key, value in overflow_tree.walk(root.ref_count_root, 4)
        }
        index = bytes(self.store.read(root.bitmap_root))
        audit.check_sum(index, audit.INDEX_SALT)
        bitmaps = -(-root.nr_blocks // audit.ENTRIES_PER_BITMAP)
        entries = [index[16 + n * 16 : 32 + n * 16] for n in range(bitmaps)]
        counts, blocks = audit.space_map_counts(self.store.read, root.nr_blocks, entries, overflow)
        expected = dict(trees.parents)
        for block, parents in overflow_tree.parents.items():
            expected[block] = expected.get(block, 0) + parents
        for block in (0, root.bitmap_root, *blocks, *roots_and_others):
            assert block not in expected
            expected[block] = 1
        found = {block: count for block, count in enumerate(counts) if count}
        assert found == expected
        assert root.nr_allocated == len(found)
        assert set(self.store.block_numbers()) == set(found), "the store keeps just what is counted"


class Forest(Rig):
    """Trees of one kind that share nodes, each with its model in a dict."""

    def __init__(self, value_size: int = 8, cache_blocks: int = 40) -> None:
        super().__init__(cache_blocks)
        self.values: Values[int] = (
            IntValues(value_size) if value_size <= 8 else WideValues(value_size)
        )
        self.tree = Tree(self.tm, self.values)
        self.value_size = value_size
        self.roots: list[int] = []
        self.models: list[dict[int, int]] = []

    def new(self) -> None:
        self.roots.append(self.tree.empty())
        self.models.append({})

    def clone(self, which: int) -> None:
        """A snapshot, as the thin metadata makes it."""
        self.tm.increment(self.roots[which])
        self.roots.append(self.roots[which])
        self.models.append(dict(self.models[which]))

    def drop(self, which: int) -> None:
        self.tree.delete(self.roots.pop(which))
        del self.models[which]

    def insert(self, which: int, key: int, value: int) -> None:
        self.roots[which] = self.tree.insert(self.roots[which], key, value)
        self.models[which][key] = value

    def insert_run(self, which: int, key: int, count: int, value: int) -> None:
        packed = b"".join(self.values.pack(value + n) for n in range(count))
        self.roots[which], replaced = self.tree.insert_run(self.roots[which], key, packed, count)
        model = self.models[which]
        assert replaced == sum(key + n in model for n in range(count))
        model.update({key + n: value + n for n in range(count)})

    def remove(self, which: int, key: int) -> None:
        self.roots[which] = self.tree.remove(self.roots[which], key)
        self.models[which].pop(key, None)

    def remove_range(self, which: int, begin: int, end: int) -> None:
        self.roots[which], removed = self.tree.remove_range(self.roots[which], begin, end)
        gone = [key for key in self.models[which] if begin <= key < end]
        assert removed == len(gone)
        for key in gone:
            del self.models[which][key]

    def drop_some(self, which: int, portions: int) -> None:
        """As the thin metadata deletes a large device; it may stop on the way."""
        at = Cursor()
        for _ in range(portions):
            ranges, after = next_portion(self.tm, self.roots[which], at)
            if after is None:
                assert not ranges
                self.drop(which)
                return
            bounds = [*(key for keys in ranges for key in keys), after.begin]
            assert bounds == sorted(bounds)
            assert after.begin > at.begin
            assert all(end > at.begin for _, end in ranges)
            for begin, end in ranges:
                self.remove_range(which, begin, end)
            at = after

    def lookup(self, which: int, key: int) -> None:
        assert self.tree.lookup(self.roots[which], key) == self.models[which].get(key)

    def compare(self, which: int, begin: int = 0, end: int = 1 << 64) -> None:
        found = list(self.tree.items(self.roots[which], begin, end))
        model = self.models[which]
        assert found == sorted((k, v) for k, v in model.items() if begin <= k < end)
        lacks = self.tree.lacks(self.roots[which], begin, end)
        if found:
            assert not lacks
        elif begin >= max(model, default=0):
            # Nothing follows, so the path to `begin` tells.
            assert lacks

    def check(self) -> None:
        """Commits; then every tree equals its model and every count is right."""
        self.commit()
        walked = audit.Trees(self.store.read)
        for root, model in zip(self.roots, self.models, strict=True):
            found = walked.walk(root, self.value_size)
            assert [(key, self.values.unpack(memoryview(value))) for key, value in found] == sorted(
                model.items()
            )
            assert self.tree.count(root) == len(model)
        self.audit(walked, set())


def keys_near(rng: random.Random, model: dict[int, int], space: int) -> int:
    """A key that is there, next to one that is, or anywhere."""
    if model and rng.random() < 0.6:
        key = rng.choice(list(model)) if len(model) < 2000 else rng.randrange(space)
        return max(0, min(space - 1, key + rng.choice((-1, 0, 0, 1))))
    return rng.randrange(space)


def write_image(store: MemoryStore, path: Path) -> Path:
    """Every block at its place in a flat file, as the kernel's tools read it."""
    superblock = store.read(0)
    (blocks,) = struct.unpack_from("<Q", superblock, 344)
    with path.open("wb") as image:
        for block in store.block_numbers():
            image.seek(block * audit.BLOCK_SIZE)
            image.write(store.read(block))
        image.truncate(max(blocks, 1) * audit.BLOCK_SIZE)
    return path


def complaints(store: MemoryStore, path: Path) -> list[str]:
    """What thin_check, the audit, or our own checker has against a store's last commit."""
    found = thin_check(write_image(store, path))
    found += [str(problem) for problem in check(store).errors]
    try:
        audit.audit(store.read)
    except AssertionError as error:
        found.append(str(error))
    return found


__all__ = ["Forest", "Rig", "WideValues", "complaints", "keys_near", "write_image"]
