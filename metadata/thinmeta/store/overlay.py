"""Commits over a store that is only read: they stay in memory, and go with it.

For metadata whose file cannot, or must not, be written, and of which something has to be worked out
before it can be shown. What commits have put counts; all else is the store's below.

Invariants:

1. The store below is never changed, and nobody else changes it either: its one commit is part of
   every commit here.
2. What commits put is `memory`'s, with its invariants.

It is meant for a few commits, of a few thousand blocks.

Thread safety: any thread may read; one thread at a time commits.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager

from thinmeta.errors import Closed, Corrupt, ReadOnlyStore
from thinmeta.store.memory import Commits, put_records
from thinmeta.store.protocol import BlockStore, OldReader


class OverlayStore:
    """A `BlockStore` over `below`, which it closes at its end."""

    def __init__(
        self, below: BlockStore, *, _commits: Commits | None = None, _read_only: bool = False
    ) -> None:
        self._below = below
        self._commits = _commits or Commits()
        self._read_only = _read_only
        self._closed = False

    def read(self, block: int) -> bytearray:
        blocks = self._open_commits().blocks
        if block not in blocks:
            return self._below.read(block)
        data = blocks[block]
        if data is None:
            raise Corrupt("missing", f"block {block}", "is not in the store")
        return bytearray(data)

    def commit(
        self,
        blocks: Mapping[int, bytes | bytearray],
        erased: Collection[int],
        records: Mapping[tuple[str, bytes], bytes | None],
    ) -> None:
        commits = self._open_commits()
        if self._read_only:
            raise ReadOnlyStore("a snapshot cannot be written")
        self._commits = commits.after(blocks, erased, records)

    def record(self, table: str, key: bytes) -> bytes | None:
        records = self._open_commits().records
        if (table, key) in records:
            return records[table, key]
        return self._below.record(table, key)

    def records(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        own = self._open_commits().of_table(table)
        left = (item for item in self._below.records(table) if item[0] not in own)
        return heapq.merge(left, put_records(own))

    def tables(self) -> list[str]:
        return sorted(self._open_commits().tables().union(self._below.tables()))

    def record_keys(self, table: str) -> Iterator[bytes]:
        own = self._open_commits().of_table(table)
        left = (key for key in self._below.record_keys(table) if key not in own)
        return heapq.merge(left, (key for key, _ in put_records(own)))

    def block_numbers(self) -> Iterator[int]:
        commits = self._open_commits()
        left = (block for block in self._below.block_numbers() if block not in commits.blocks)
        return heapq.merge(left, commits.block_numbers())

    def make_room(self) -> bool:
        self._open_commits()
        return True

    def old_reader(self) -> OldReader | None:
        return None

    def file_size(self) -> int:
        self._open_commits()
        return self._below.file_size()

    @property
    def generation(self) -> int:
        return self._open_commits().count + self._below.generation

    @contextmanager
    def snapshot(self) -> Iterator[OverlayStore]:
        commits = self._open_commits()
        with (
            self._below.snapshot() as below,
            closing(OverlayStore(below, _commits=commits, _read_only=True)) as view,
        ):
            yield view

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._below.close()

    def _open_commits(self) -> Commits:
        if self._closed:
            raise Closed("the store is closed")
        return self._commits
