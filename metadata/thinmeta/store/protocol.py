"""What the metadata needs of a store.

A store maps metadata block numbers to blocks of 4096 bytes, and keeps small tables of records
beside them. Its promises:

1. `commit` is atomic and durable: afterwards all of it is there, through any crash; if it raises,
   none of it is, and the last commit stands.
2. A store never interprets a block. What `read` returns is, bit for bit, what was committed, or an
   exception; telling whether those bits are sound (`format.block.verify`) is the reader's work.
3. Records carry a checksum of their own: `record` returns what was committed, or raises.
4. A `snapshot` shows one commit whole for as long as it is open, whatever is committed meanwhile.

Thread safety: any thread may read at any time; commits come from one thread at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol


class OldReader(NamedTuple):
    """A process that reads a commit which is not the last; 0 is no process in particular."""

    pid: int
    generation: int


class BlockStore(Protocol):
    """Metadata blocks by number, and tables of records, committed together."""

    def read(self, block: int) -> bytearray:
        """The block's 4096 bytes, the caller's to change.

        Raises `Corrupt`: 'missing' if there is no such block, 'encoding' if it does not decode.
        Raises `StoreError` if the store cannot be read.
        """
        ...

    def commit(
        self,
        blocks: Mapping[int, bytes | bytearray],
        erased: Collection[int],
        records: Mapping[tuple[str, bytes], bytes | None],
    ) -> None:
        """Write `blocks`, erase the blocks `erased`, and put `records` (None erases), or nothing.

        `records` is keyed by (table, key). Erasing what is not there is no error.
        Raises `NoMetadataSpace`, `StoreError`, `ReadOnlyStore` or `Closed`.
        """
        ...

    def record(self, table: str, key: bytes) -> bytes | None:
        """The record, or None if there is none. Raises `Corrupt` ('record') if it is damaged."""
        ...

    def records(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        """All records of a table, in the order of their keys, as of one commit.

        Raises `Corrupt` ('record') at the first damaged one.
        """
        ...

    def tables(self) -> list[str]:
        """Names of the tables that hold, or have held, records; ascending."""
        ...

    def record_keys(self, table: str) -> Iterator[bytes]:
        """Keys of a table, ascending; says nothing of whether the records are sound."""
        ...

    def block_numbers(self) -> Iterator[int]:
        """Numbers of the blocks that are there, ascending, as of one commit."""
        ...

    def make_room(self) -> bool:
        """Have room for some commits that delete or discard, which then need no space any more.

        False if there is no space for that. Called by the thread of the commits. Raises
        `StoreError`.
        """
        ...

    def old_reader(self) -> OldReader | None:
        """Who has read the oldest commit for longest, of those that live and read an old one.

        Readers that died are forgotten; until then, what was there for them cannot be used again.
        """
        ...

    def file_size(self) -> int:
        """Bytes of the file in use; 0 where there is none."""
        ...

    @property
    def generation(self) -> int:
        """Number of the last commit, one more than that of the commit before."""
        ...

    def snapshot(self) -> AbstractContextManager[BlockStore]:
        """A read-only view of the last commit."""
        ...

    def close(self) -> None:
        """Let go of the store. Further calls raise `Closed`; closing twice is no error."""
        ...
