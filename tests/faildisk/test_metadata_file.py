"""The metadata's file on a disk that fails for a while: what is committed afterwards stays."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.faildisk.disk import Disk, failing_disk, file_system
from tests.faildisk.scenario import drop_cache
from thinmeta.errors import StoreError
from thinmeta.store.lmdb import LmdbStore
from thinmeta.store.lmdb_file import verify_pages

pytestmark = pytest.mark.slow


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with failing_disk(tmp_path / "disk", 64 << 20) as disk:
        yield disk


@pytest.mark.parametrize("reopened", [False, True], ids=["goes-on", "reopened"])
@pytest.mark.parametrize("kinds", [("pwrite",), ("flush",), ("pwrite", "flush")], ids="+".join)
def test_a_commit_after_one_that_failed_is_on_disk(
    disk: Disk, tmp_path: Path, kinds: tuple[str, ...], reopened: bool
) -> None:
    rng = random.Random(1)

    def blocks() -> dict[int, bytes]:
        return {number: rng.randbytes(4096) for number in range(100)}

    with file_system(disk, tmp_path / "mnt") as mounted, ExitStack() as opened:
        path = mounted / "m"
        store = opened.enter_context(closing(LmdbStore(path, create=True)))
        kept = blocks()
        store.commit(kept, (), {})
        disk.fail(*kinds)
        with pytest.raises(StoreError):
            store.commit(blocks(), (), {})
        disk.heal()
        if reopened:
            store.close()
            store = opened.enter_context(closing(LmdbStore(path)))
        assert {number: bytes(store.read(number)) for number in kept} == kept
        wanted = blocks()
        try:
            store.commit(wanted, (), {})
        except StoreError:
            # LMDB writes its meta page through a descriptor that is told of the error as well,
            # and commits nothing more then.
            assert not reopened
            store.close()
            store = opened.enter_context(closing(LmdbStore(path)))
            store.commit(wanted, (), {})
        kept = wanted
        store.close()
        drop_cache(path)
        assert verify_pages(path) == []
        store = opened.enter_context(closing(LmdbStore(path, read_only=True)))
        assert {number: bytes(store.read(number)) for number in kept} == kept
