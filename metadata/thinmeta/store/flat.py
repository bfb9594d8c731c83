"""The kernel's own metadata device, or an image of one, as a store to read from.

Block n lies at byte n * 4096. There are no records, and every block that fits is there, in use or
not: which ones are, only the metadata space map can tell.

Thread safety: any thread; nobody may write to the device meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from thinmeta.errors import Closed, Corrupt, ReadOnlyStore, StoreError
from thinmeta.format.block import BLOCK_SIZE
from thinmeta.store.protocol import OldReader


class FlatStore:
    """A read-only `BlockStore` over a file or block device. Raises `StoreError`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _store_error(error, path) from error
        # Seeking tells the size of a block device as well.
        self._size = os.lseek(self._fd, 0, os.SEEK_END)

    def read(self, block: int) -> bytearray:
        data = bytearray(BLOCK_SIZE)
        # Compared first: an offset past 2**63 would be an OverflowError.
        if block >= self._size // BLOCK_SIZE:
            raise Corrupt("missing", f"block {block}", f"is past the end of {self.path}")
        try:
            read = os.preadv(self._open_fd(), [data], block * BLOCK_SIZE)
        except OSError as error:
            raise _store_error(error, self.path) from error
        if read != BLOCK_SIZE:
            raise Corrupt("missing", f"block {block}", f"{self.path} was cut short")
        return data

    def commit(
        self,
        blocks: Mapping[int, bytes | bytearray],
        erased: Collection[int],
        records: Mapping[tuple[str, bytes], bytes | None],
    ) -> None:
        raise ReadOnlyStore("a kernel metadata device is read, never written")

    def record(self, table: str, key: bytes) -> bytes | None:
        self._open_fd()
        return None

    def records(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        self._open_fd()
        return iter(())

    def tables(self) -> list[str]:
        self._open_fd()
        return []

    def record_keys(self, table: str) -> Iterator[bytes]:
        self._open_fd()
        return iter(())

    def block_numbers(self) -> Iterator[int]:
        self._open_fd()
        return iter(range(self._size // BLOCK_SIZE))

    def make_room(self) -> bool:
        self._open_fd()
        return False

    def old_reader(self) -> OldReader | None:
        return None

    def file_size(self) -> int:
        self._open_fd()
        return self._size

    @property
    def generation(self) -> int:
        self._open_fd()
        return 0

    @contextmanager
    def snapshot(self) -> Iterator[FlatStore]:
        self._open_fd()
        yield self

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open_fd(self) -> int:
        if self._fd < 0:
            raise Closed("the store is closed")
        return self._fd


def _store_error(error: OSError, path: Path) -> StoreError:
    return StoreError(error.errno or 0, f"{path}: {error.strerror}")
