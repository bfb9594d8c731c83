"""Commits kept in memory, and a store of nothing else, for tests and models.

The store keeps the promises of `BlockStore`, durability aside. It can be told to fail, so that what
a failed commit must leave behind can be tested without a full disk.

Invariants:

1. A committed state is never changed: `after` builds the next one, which is swapped in whole. So a
   snapshot is a reference, and a commit that fails half way leaves nothing behind.
2. Blocks are kept as immutable `bytes`; `read` hands out a fresh copy.
3. What commits have erased is remembered, as None: a store below may have it.

It takes memory for each block and record that a commit has put or erased, and a commit copies the
table of them.

Thread safety: any thread may read; one thread at a time commits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

from thinmeta.errors import Closed, Corrupt, ReadOnlyStore
from thinmeta.format.block import BLOCK_SIZE
from thinmeta.store.protocol import OldReader


@dataclass(frozen=True, slots=True)
class Commits:
    """What `count` commits have put, or erased (None)."""

    blocks: Mapping[int, bytes | None] = field(default_factory=dict)
    records: Mapping[tuple[str, bytes], bytes | None] = field(default_factory=dict)
    count: int = 0

    def after(
        self,
        blocks: Mapping[int, bytes | bytearray],
        erased: Collection[int],
        records: Mapping[tuple[str, bytes], bytes | None],
    ) -> Commits:
        """With one commit more. Raises `ValueError` for what is no block."""
        new_blocks = {**self.blocks, **dict.fromkeys(erased)}
        for block, data in blocks.items():
            if len(data) != BLOCK_SIZE:
                raise ValueError(f"block {block} has {len(data)} bytes")
            new_blocks[block] = bytes(data)
        new_records = dict(self.records)
        for at, payload in records.items():
            new_records[at] = None if payload is None else bytes(payload)
        return Commits(new_blocks, new_records, self.count + 1)

    def block_numbers(self) -> list[int]:
        """The blocks that are there, ascending."""
        return sorted(block for block, data in self.blocks.items() if data is not None)

    def tables(self) -> set[str]:
        """The tables of which a record was put or erased."""
        return {table for table, _ in self.records}

    def of_table(self, table: str) -> dict[bytes, bytes | None]:
        """A table's records that were put or erased, by their keys."""
        return {key: payload for (name, key), payload in self.records.items() if name == table}


def put_records(records: Mapping[bytes, bytes | None]) -> list[tuple[bytes, bytes]]:
    """Of a table's records those that are there, in the order of their keys."""
    return sorted((key, payload) for key, payload in records.items() if payload is not None)


class MemoryStore:
    """A `BlockStore` that forgets everything when dropped.

    `fail_next_commit`, when set, is raised by the next commit, which does nothing else.
    """

    def __init__(self, *, _commits: Commits | None = None, _read_only: bool = False) -> None:
        self._commits = _commits or Commits()
        self._read_only = _read_only
        self._closed = False
        self.fail_next_commit: Exception | None = None

    def read(self, block: int) -> bytearray:
        data = self._open_commits().blocks.get(block)
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
        if (failure := self.fail_next_commit) is not None:
            self.fail_next_commit = None
            raise failure
        self._commits = commits.after(blocks, erased, records)

    def record(self, table: str, key: bytes) -> bytes | None:
        return self._open_commits().records.get((table, key))

    def records(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        return iter(put_records(self._open_commits().of_table(table)))

    def tables(self) -> list[str]:
        return sorted(self._open_commits().tables())

    def record_keys(self, table: str) -> Iterator[bytes]:
        return (key for key, _ in self.records(table))

    def block_numbers(self) -> Iterator[int]:
        return iter(self._open_commits().block_numbers())

    def make_room(self) -> bool:
        self._open_commits()
        return True

    def old_reader(self) -> OldReader | None:
        return None

    def file_size(self) -> int:
        self._open_commits()
        return 0

    @property
    def generation(self) -> int:
        return self._open_commits().count

    @contextmanager
    def snapshot(self) -> Iterator[MemoryStore]:
        with closing(MemoryStore(_commits=self._open_commits(), _read_only=True)) as view:
            yield view

    def close(self) -> None:
        self._closed = True

    def _open_commits(self) -> Commits:
        if self._closed:
            raise Closed("the store is closed")
        return self._commits
