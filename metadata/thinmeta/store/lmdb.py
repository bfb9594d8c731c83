"""The pool's store: an LMDB file. `lmdb_view` says what is in it.

LMDB gives what the Protocol asks for: copy-on-write pages, one writer, and readers, in this process
and in others, that see one commit whole and hold nobody up.

Invariants:

1. A commit is one LMDB transaction, synced: first the new pages, then the meta page that makes them
   the truth. Everything is encoded before the transaction begins.
2. Nothing of LMDB's leaves the store: no buffer outlives the transaction that it was read in, no
   `lmdb.Error` is seen outside.
3. A commit writes within the room that was made for it (`lmdb_room`), but on a full disk.
4. A record in a table of the store's own tells the version of this arrangement. A file of another
   version is closed again untouched.

Thread safety: any thread may read; commits come from one thread at a time; a snapshot is one
thread's. `close` when no call is under way. Open after a fork, not before. LMDB forbids one process
to open one file twice.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import lmdb

from thinmeta.errors import (
    AlreadyExists,
    Closed,
    Corrupt,
    ReadOnlyStore,
    StoreError,
    ThinMetaError,
    UnsupportedFormat,
)
from thinmeta.format.block import BLOCK_SIZE
from thinmeta.store import codec
from thinmeta.store.lmdb_file import (
    allocate_lock,
    file_size,
    translated,
    translated_commit,
    verify_pages,
)
from thinmeta.store.lmdb_room import RESERVE_BYTES, Room
from thinmeta.store.lmdb_view import (
    BLOCKS,
    LmdbSnapshot,
    block_key,
    database_name,
    decode_block,
    encode_record,
)
from thinmeta.store.protocol import OldReader

# On disk; do not change.
LAYOUT_VERSION: Final = 1
OWN_TABLE: Final = "store"
_LAYOUT_KEY: Final = b"layout"

#: Bytes. The metadata's 16 GiB at LMDB's worst (8221 bytes a block that does not compress), and as
#: much again for what commits copy. Address space alone: the file grows as it is filled.
DEFAULT_MAP_SIZE: Final = 64 << 30
_MAX_TABLES: Final = 32
#: Read transactions that may be open at once, over all processes.
_MAX_READERS: Final = 1024
#: Read transactions kept for reuse: opening one from scratch takes a lock.
_SPARE_READERS: Final = 16
#: Bytes that a commit may write beside twice what it was given.
_PAGE_MARGIN: Final = 1 << 20


class LmdbStore:
    """A `BlockStore` in one LMDB file (`path`, and `path`-lock beside it).

    `create` makes the file, and refuses one that is there (`AlreadyExists`); without it the file
    must be there (`StoreError`, ENOENT). `map_size`, in bytes, bounds the file. `alone`, with
    `read_only`: nobody writes the file while it is open, which the caller sees to; then nothing is
    noted in the lock file, nor is one made.

    Raises `Corrupt` ('store') for a file that is not a store, `UnsupportedFormat` for a newer one.
    """

    def __init__(
        self,
        path: Path,
        *,
        create: bool = False,
        read_only: bool = False,
        alone: bool = False,
        map_size: int = DEFAULT_MAP_SIZE,
    ) -> None:
        self.path = path
        self.read_only = read_only
        self._closed = False
        self._env = _open_env(path, create, read_only, alone and read_only, map_size)
        self._blocks: Any = None
        self._room: Room | None = None
        #: Database handles by table. Only grows: dict operations are atomic, so no lock.
        self._tables: dict[str, Any] = {}
        try:
            self._env.reader_check()
            if not read_only:
                self._room = Room(path, self._used())
            if create:
                self._create()
            else:
                self._check_length()
                self._check_layout()
        except (lmdb.Error, OSError) as error:
            self.close()
            raise translated(error, path) from error
        except ThinMetaError:
            self.close()
            raise

    def read(self, block: int) -> bytearray:
        env = self._open_env()
        try:
            with env.begin(db=self._blocks, buffers=True) as txn:
                return decode_block(block, txn.get(block_key(block)))
        except lmdb.Error as error:
            raise translated(error, self.path) from error

    def commit(
        self,
        blocks: Mapping[int, bytes | bytearray],
        erased: Collection[int],
        records: Mapping[tuple[str, bytes], bytes | None],
    ) -> None:
        self._open_env()
        if self.read_only:
            raise ReadOnlyStore(f"{self.path} is open read-only")
        for table, _ in records:
            if table in (OWN_TABLE, BLOCKS):
                raise ValueError(f"table {table!r} is the store's own")
        self._commit(_encoded(blocks), erased, records)

    def record(self, table: str, key: bytes) -> bytes | None:
        with self.snapshot() as view:
            return view.record(table, key)

    def records(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        with self.snapshot() as view:
            yield from view.records(table)

    def tables(self) -> list[str]:
        with self.snapshot() as view:
            return view.tables()

    def record_keys(self, table: str) -> Iterator[bytes]:
        with self.snapshot() as view:
            yield from view.record_keys(table)

    def block_numbers(self) -> Iterator[int]:
        with self.snapshot() as view:
            yield from view.block_numbers()

    def file_size(self) -> int:
        self._open_env()
        return file_size(self.path)

    def make_room(self) -> bool:
        self._open_env()
        return self._room is not None and self._room.make(self._used(), RESERVE_BYTES)

    def old_reader(self) -> OldReader | None:
        env = self._open_env()
        try:
            env.reader_check()
            last = self.generation
            # A headline, or a sentence that there are none; then pid, thread and commit, or '-'.
            lines = [line.split() for line in env.readers().splitlines()]
        except lmdb.Error as error:
            raise translated(error, self.path) from error
        found = [
            OldReader(int(pid), int(generation))
            for pid, _, generation in (line for line in lines if len(line) == 3)
            if generation.isdigit() and int(generation) < last
        ]
        return min(found, key=lambda reader: reader.generation, default=None)

    @property
    def generation(self) -> int:
        return int(self._open_env().info()["last_txnid"])

    @contextmanager
    def snapshot(self) -> Iterator[LmdbSnapshot]:
        try:
            view = self._snapshot()
        except lmdb.Error as error:
            raise translated(error, self.path) from error
        try:
            yield view
        finally:
            view.close()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._env.close()
            if self._room is not None:
                self._room.close()

    def _open_env(self) -> Any:
        if self._closed:
            raise Closed("the store is closed")
        return self._env

    def _snapshot(self) -> LmdbSnapshot:
        while True:
            env = self._open_env()
            tables = dict(self._tables)
            view = LmdbSnapshot(self.path, env.begin(buffers=True), self._blocks, tables)
            unknown = [table for table in view.tables() if table not in tables]
            if not unknown:
                return view
            # Made by another process since this one looked. A transaction cannot use a database
            # that was opened after it began.
            view.close()
            for table in unknown:
                self._tables[table] = env.open_db(database_name(table), create=False)

    def _commit(
        self,
        blocks: list[tuple[bytes, bytes]],
        erased: Collection[int],
        records: Mapping[tuple[str, bytes], bytes | None],
    ) -> None:
        made: dict[str, Any] = {}
        # LMDB copies the pages of its trees that change.
        size = _PAGE_MARGIN + 2 * sum(len(encoded) for _, encoded in blocks)
        assert self._room is not None
        # Where there is none, the free pages among LMDB's own may do.
        self._room.make(self._used(), size)
        try:
            with self._env.begin(write=True) as txn:
                for block in erased:
                    txn.delete(block_key(block), db=self._blocks)
                for number, encoded in blocks:
                    txn.put(number, encoded, db=self._blocks)
                for (table, key), payload in records.items():
                    handle = self._tables.get(table) or made.get(table)
                    if handle is None and payload is not None:
                        handle = made[table] = self._env.open_db(database_name(table), txn=txn)
                    if payload is not None:
                        txn.put(key, encode_record(table, key, payload), db=handle)
                    elif handle is not None:
                        txn.delete(key, db=handle)
        except (lmdb.Error, OSError) as error:
            raise translated_commit(error, self.path, size) from error
        # Not earlier: the handle of a database that an aborted transaction made is void.
        self._tables.update(made)

    def _create(self) -> None:
        self._blocks = self._env.open_db(database_name(BLOCKS))
        self._commit([], (), {(OWN_TABLE, _LAYOUT_KEY): str(LAYOUT_VERSION).encode()})
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _used(self) -> int:
        """Bytes up to the end of LMDB's last page."""
        return int((self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"])

    def _check_length(self) -> None:
        # Reading a page that the file has lost would be SIGBUS, not an error. Pages at the very
        # end may never have been written, if they were free by the time of the commit: then a
        # short file is a sound one, which only a walk of all pages can tell.
        wanted = self._used()
        found = file_size(self.path)
        if found < wanted and (problems := verify_pages(self.path)):
            raise Corrupt(
                "store",
                str(self.path),
                f"is cut short, {found} of {wanted} bytes: {problems[0]}",
            )

    def _check_layout(self) -> None:
        strange = Corrupt("store", str(self.path), "is not a pool's metadata")
        try:
            self._blocks = self._env.open_db(database_name(BLOCKS), create=False)
        except lmdb.NotFoundError:
            raise strange from None
        layout = self.record(OWN_TABLE, _LAYOUT_KEY)
        if layout is None or not layout.isdigit():
            raise strange
        if int(layout) != LAYOUT_VERSION:
            raise UnsupportedFormat(
                f"{self.path} has layout {int(layout)}; this program knows layout {LAYOUT_VERSION}"
            )


def _open_env(path: Path, create: bool, read_only: bool, alone: bool, map_size: int) -> Any:
    try:
        if path.exists():
            if create:
                raise AlreadyExists(f"{path} exists")
            if path.stat().st_size == 0:  # which LMDB takes for a file to be made
                raise Corrupt("store", str(path), "is empty")
        elif not create:
            raise StoreError(errno.ENOENT, f"there is no {path}")
        if not alone:
            allocate_lock(path, _MAX_READERS)
        return lmdb.open(
            os.fsencode(path),
            subdir=False,
            create=create,
            mode=0o600,
            readonly=read_only,
            lock=not alone,
            map_size=map_size,
            max_dbs=1 + _MAX_TABLES,
            max_readers=_MAX_READERS,
            max_spare_txns=_SPARE_READERS,
        )
    except (lmdb.Error, OSError) as error:
        raise translated(error, path) from error


def _encoded(blocks: Mapping[int, bytes | bytearray]) -> list[tuple[bytes, bytes]]:
    """Keys and values for LMDB, in the order of keys, in which it comes by each page once."""
    encoded = []
    for block in sorted(blocks):
        data = blocks[block]
        if len(data) != BLOCK_SIZE:
            raise ValueError(f"block {block} has {len(data)} bytes")
        encoded.append((block_key(block), codec.encode(block, data)))
    return encoded
