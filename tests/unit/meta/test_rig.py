"""The metadata rigs themselves: each must notice when one promise of the library is broken."""

import random
from pathlib import Path
from typing import Any

import pytest

from tests.unit.meta.rigs import Forest, complaints
from tests.unit.meta.test_thin_model import Pool, random_run
from thinmeta.btree import shadow
from thinmeta.buffers import BufferClient
from thinmeta.errors import Corrupt, NotFound
from thinmeta.format.block import Kind, seal
from thinmeta.spacemap.withheld import Withheld
from thinmeta.store.memory import MemoryStore
from thinmeta.thin.values import MappingValues


def nothing(*_: Any) -> None:
    """Stands in for what must not be left out."""


def diverge() -> None:
    """Two trees that shared all their nodes, both changed."""
    forest = Forest()
    forest.new()
    forest.insert_run(0, 0, 2000, 7)
    forest.clone(0)
    forest.check()
    rng = random.Random(1)
    for _ in range(50):
        forest.insert(rng.randrange(2), rng.randrange(2000), 9)
    forest.drop(0)
    forest.check()


def test_a_sound_library_is_not_complained_of() -> None:
    diverge()


def test_children_that_are_not_counted_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow, "_count_copy", nothing)
    with pytest.raises((AssertionError, Corrupt)):
        diverge()


def test_mappings_that_are_not_counted_are_noticed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(MappingValues, "copied", nothing)
    with pytest.raises((AssertionError, Corrupt)):
        random_run(3, 1000, 100, tmp_path / "image")


def test_blocks_used_again_too_early_are_noticed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Withheld, "free", nothing)
    with pytest.raises((AssertionError, Corrupt, KeyError)):
        random_run(3, 1000, 100, tmp_path / "image")


def test_a_change_that_is_not_written_is_noticed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    honest = BufferClient.make_dirty
    calls = iter(range(1 << 30))

    def forgetful(client: BufferClient, buffer: Any) -> None:
        if next(calls) % 50 != 49:
            honest(client, buffer)

    monkeypatch.setattr(BufferClient, "make_dirty", forgetful)
    with pytest.raises((AssertionError, Corrupt, NotFound)):
        random_run(3, 2000, 100, tmp_path / "image")


def leak(store: MemoryStore, of_data: bool) -> None:
    """Counts one block that nobody has, in the first bitmap of data or metadata."""
    for number in store.block_numbers():
        block = store.read(number)
        # A new pool's metadata bitmap is block 2; the next bitmap found is the data's.
        if int.from_bytes(block[4:8], "little") or number < 2 or (of_data and number == 2):
            continue
        if int.from_bytes(block[8:16], "little") != number:
            continue
        block[16 + 500] |= 2
        seal(block, Kind.BITMAP, number)
        store.commit({number: block}, [], {})
        return
    raise AssertionError("no bitmap found")


@pytest.mark.parametrize("of_data", [True, False])
def test_a_leak_is_noticed(of_data: bool, tmp_path: Path) -> None:
    pool = Pool()
    pool.create_thin(1)
    pool.write(1, 0, 100)
    pool.check(tmp_path / "image")
    leak(pool.store, of_data)
    assert complaints(pool.store, tmp_path / "image")
