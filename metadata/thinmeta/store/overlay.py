"""Commits over a store that is only read: they stay in memory, and go with it.

For metadata whose file cannot, or must not, be written, and of which something has to be worked out
before it can be shown. What commits have put counts; all else is the store's below.

Invariants:

1. The store below is never changed, and nobody else changes it either: its one commit is part of
   every commit here.
2. A committed state is never changed: `commit` builds the next one and swaps it in whole. So a
   snapshot is a reference, and a commit that fails half way leaves nothing behind.

It takes memory for each block that a commit has put, and copies the table of them at each commit:
it is meant for a few commits, of a few thousand blocks.

Thread safety: any thread may read; one thread at a time commits.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType

from thinmeta.errors import Closed, Corrupt, ReadOnlyStore
from thinmeta.format.block import BLOCK_SIZE
from thinmeta.store.protocol import BlockStore, OldReader


@dataclass(frozen=True, slots=True)
class _State:
    """What commits have put, or erased (None)."""

    blocks: Mapping[int, bytes | None] = field(default_factory=lambda: MappingProxyType({}))
    records: Mapping[tuple[str, bytes], bytes | None] = field(
        default_factory=lambda: MappingProxyType({})
    )
    commits: int = 0


class OverlayStore:
    """A `BlockStore` over `below`, which it closes at its end."""

    def __init__(
        self, below: BlockStore, *, _state: _State | None = None, _read_only: bool = False
    ) -> None:
        self._below = below
        self._state = _state or _State()
        self._read_only = _read_only
        self._closed = False

    def read(self, block: int) -> bytearray:
        state = self._open_state()
        if block not in state.blocks:
            return self._below.read(block)
        data = state.blocks[block]
        if data is None:
            raise Corrupt("missing", f"block {block}", "is not in the store")
        return bytearray(data)

    def commit(
        self,
        blocks: Mapping[int, bytes | bytearray],
        erased: Collection[int],
        records: Mapping[tuple[str, bytes], bytes | None],
    ) -> None:
        state = self._open_state()
        if self._read_only:
            raise ReadOnlyStore("a snapshot cannot be written")
        new_blocks = {**state.blocks, **dict.fromkeys(erased)}
        for block, data in blocks.items():
            if len(data) != BLOCK_SIZE:
                raise ValueError(f"block {block} has {len(data)} bytes")
            new_blocks[block] = bytes(data)
        self._state = _State(new_blocks, {**state.records, **records}, state.commits + 1)

    def record(self, table: str, key: bytes) -> bytes | None:
        records = self._open_state().records
        if (table, key) in records:
            return records[table, key]
        return self._below.record(table, key)

    def records(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        own = self._own(table)
        put = sorted((key, value) for key, value in own.items() if value is not None)
        left = (item for item in self._below.records(table) if item[0] not in own)
        return heapq.merge(left, put)

    def tables(self) -> list[str]:
        own = {table for table, _ in self._open_state().records}
        return sorted(own.union(self._below.tables()))

    def record_keys(self, table: str) -> Iterator[bytes]:
        own = self._own(table)
        put = sorted(key for key, value in own.items() if value is not None)
        left = (key for key in self._below.record_keys(table) if key not in own)
        return heapq.merge(left, put)

    def block_numbers(self) -> Iterator[int]:
        own = self._open_state().blocks
        put = sorted(block for block, data in own.items() if data is not None)
        left = (block for block in self._below.block_numbers() if block not in own)
        return heapq.merge(left, put)

    def make_room(self) -> bool:
        self._open_state()
        return True

    def old_reader(self) -> OldReader | None:
        return None

    def file_size(self) -> int:
        self._open_state()
        return self._below.file_size()

    @property
    def generation(self) -> int:
        return self._open_state().commits + self._below.generation

    @contextmanager
    def snapshot(self) -> Iterator[OverlayStore]:
        state = self._open_state()
        with self._below.snapshot() as below:
            view = OverlayStore(below, _state=state, _read_only=True)
            try:
                yield view
            finally:
                view.close()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._below.close()

    def _own(self, table: str) -> dict[bytes, bytes | None]:
        records = self._open_state().records
        return {key: value for (name, key), value in records.items() if name == table}

    def _open_state(self) -> _State:
        if self._closed:
            raise Closed("the store is closed")
        return self._state
