"""What is in the store's LMDB databases, and a frozen view of it.

    database "blocks"  block number, u64 big-endian -> the block as `codec` encodes it
    every other        is a table of that name: key -> crc32c u32 (of table, key, payload), payload

So a table whose very name is damaged shows up as one whose records are.

Thread safety: functions are pure; a snapshot is one thread's.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import lmdb
from crc32c import crc32c

from thinmeta.errors import Closed, Corrupt, ReadOnlyStore
from thinmeta.store import codec
from thinmeta.store.lmdb_file import file_size, translated
from thinmeta.store.protocol import OldReader

# On disk; do not change.
BLOCKS: Final = "blocks"
_CRC: Final = struct.Struct("<I")

block_key: Final = struct.Struct(">Q").pack


def database_name(table: str) -> bytes:
    """The LMDB database of this name, as LMDB has it."""
    return table.encode(errors="surrogateescape")


def decode_block(block: int, stored: memoryview | None) -> bytearray:
    """The block that LMDB has this for. Raises `Corrupt` ('missing' or 'encoding')."""
    if stored is None:
        raise Corrupt("missing", f"block {block}", "is not in the store")
    return codec.decode(block, stored)


def encode_record(table: str, key: bytes, payload: bytes) -> bytes:
    return _record_crc(table, key, payload) + payload


def decode_record(table: str, key: bytes, stored: memoryview) -> bytes:
    """The payload of a record. Raises `Corrupt` ('record')."""
    payload = stored[_CRC.size :]
    if stored[: _CRC.size] != _record_crc(table, key, payload):
        raise Corrupt("record", f"table {table!r}, key {key!r}", "bad checksum")
    return bytes(payload)


def _record_crc(table: str, key: bytes, payload: bytes | memoryview) -> bytes:
    # Over table and key as well: a record found in a wrong place is damage too.
    return _CRC.pack(crc32c(payload, crc32c(key, crc32c(database_name(table)))))


class LmdbSnapshot:
    """A read-only view of one commit: a read transaction, held open.

    `blocks` and `tables` are handles of databases that were opened before the transaction `txn`
    began. While the snapshot is open LMDB does not reuse the pages it sees, so the file may grow.
    """

    def __init__(self, path: Path, txn: Any, blocks: Any, tables: dict[str, Any]) -> None:
        self._path = path
        self._txn = txn
        self._blocks = blocks
        self._tables = tables
        self._closed = False

    def read(self, block: int) -> bytearray:
        txn = self._open_txn()
        try:
            return decode_block(block, txn.get(block_key(block), db=self._blocks))
        except lmdb.Error as error:
            raise translated(error, self._path) from error

    def commit(
        self,
        blocks: Mapping[int, bytes | bytearray],
        erased: Collection[int],
        records: Mapping[tuple[str, bytes], bytes | None],
    ) -> None:
        raise ReadOnlyStore("a snapshot cannot be written")

    def record(self, table: str, key: bytes) -> bytes | None:
        txn = self._open_txn()
        if (handle := self._tables.get(table)) is None:
            return None
        try:
            stored = txn.get(key, db=handle)
        except lmdb.Error as error:
            raise translated(error, self._path) from error
        return None if stored is None else decode_record(table, key, stored)

    def records(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        self._open_txn()
        if (handle := self._tables.get(table)) is not None:
            for key, stored in self._items(handle, values=True):
                yield bytes(key), decode_record(table, bytes(key), stored)

    def tables(self) -> list[str]:
        # The named databases of an LMDB file are keys of its unnamed one.
        names = [
            bytes(name).decode(errors="surrogateescape") for name in self._items(None, values=False)
        ]
        return [name for name in names if name != BLOCKS]

    def record_keys(self, table: str) -> Iterator[bytes]:
        self._open_txn()
        if (handle := self._tables.get(table)) is not None:
            for key in self._items(handle, values=False):
                yield bytes(key)

    def block_numbers(self) -> Iterator[int]:
        for key in self._items(self._blocks, values=False):
            yield int.from_bytes(key, "big")

    def make_room(self) -> bool:
        return False

    def old_reader(self) -> OldReader | None:
        return None

    def file_size(self) -> int:
        self._open_txn()
        return file_size(self._path)

    @property
    def generation(self) -> int:
        return int(self._open_txn().id())

    @contextmanager
    def snapshot(self) -> Iterator[LmdbSnapshot]:
        self._open_txn()
        yield self

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._txn.abort()

    def _open_txn(self) -> Any:
        if self._closed:
            raise Closed("the snapshot is closed")
        return self._txn

    def _items(self, handle: Any, *, values: bool) -> Iterator[Any]:
        """Keys, or keys and values, of a database; buffers that last until the next one."""
        try:
            with self._open_txn().cursor(handle) as cursor:
                for item in cursor.iternext(values=values):
                    yield item
                    self._open_txn()
        except lmdb.Error as error:
            raise translated(error, self._path) from error
