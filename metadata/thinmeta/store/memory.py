"""A store in memory, for tests and models.

It keeps the promises of `BlockStore`, durability aside. It can be told to fail, so that what a
failed commit must leave behind can be tested without a full disk.

Invariants:

1. A committed state is never changed: `commit` builds the next one and swaps it in whole. So a
   snapshot is a reference, and a commit that fails half way leaves nothing behind.
2. Blocks are kept as immutable `bytes`; `read` hands out a fresh copy.

Thread safety: any thread may read; one thread at a time commits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from thinmeta.errors import Closed, Corrupt, ReadOnlyStore
from thinmeta.format.block import BLOCK_SIZE
from thinmeta.store.protocol import OldReader


@dataclass(frozen=True, slots=True)
class _State:
    blocks: dict[int, bytes] = field(default_factory=dict)
    records: dict[tuple[str, bytes], bytes] = field(default_factory=dict)
    tables: frozenset[str] = frozenset()
    generation: int = 0


class MemoryStore:
    """A `BlockStore` that forgets everything when dropped.

    `fail_next_commit`, when set, is raised by the next commit, which does nothing else.
    """

    def __init__(self, *, _state: _State | None = None, _read_only: bool = False) -> None:
        self._state = _state or _State()
        self._read_only = _read_only
        self._closed = False
        self.fail_next_commit: Exception | None = None

    def read(self, block: int) -> bytearray:
        data = self._open_state().blocks.get(block)
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
        if (failure := self.fail_next_commit) is not None:
            self.fail_next_commit = None
            raise failure
        new_blocks = dict(state.blocks)
        for block in erased:
            new_blocks.pop(block, None)
        for block, data in blocks.items():
            if len(data) != BLOCK_SIZE:
                raise ValueError(f"block {block} has {len(data)} bytes")
            new_blocks[block] = bytes(data)
        new_records = dict(state.records)
        for at, payload in records.items():
            if payload is None:
                new_records.pop(at, None)
            else:
                new_records[at] = bytes(payload)
        tables = state.tables | {table for table, _ in records}
        self._state = _State(new_blocks, new_records, tables, state.generation + 1)

    def record(self, table: str, key: bytes) -> bytes | None:
        return self._open_state().records.get((table, key))

    def records(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        records = self._open_state().records
        return iter([(key, data) for (name, key), data in sorted(records.items()) if name == table])

    def tables(self) -> list[str]:
        return sorted(self._open_state().tables)

    def record_keys(self, table: str) -> Iterator[bytes]:
        return (key for key, _ in self.records(table))

    def block_numbers(self) -> Iterator[int]:
        return iter(sorted(self._open_state().blocks))

    def make_room(self) -> bool:
        self._open_state()
        return True

    def old_reader(self) -> OldReader | None:
        return None

    def file_size(self) -> int:
        self._open_state()
        return 0

    @property
    def generation(self) -> int:
        return self._open_state().generation

    @contextmanager
    def snapshot(self) -> Iterator[MemoryStore]:
        view = MemoryStore(_state=self._open_state(), _read_only=True)
        try:
            yield view
        finally:
            view.close()

    def close(self) -> None:
        self._closed = True

    def _open_state(self) -> _State:
        if self._closed:
            raise Closed("the store is closed")
        return self._state
