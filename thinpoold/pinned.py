"""Readers of old commits, in other processes: what they cost, and when that is too much.

While a process reads an old commit, the store uses nothing again of what that commit has, and its
file grows with each commit. One that died is forgotten; one that was stopped, or is slow, is not.

Invariants

1. What a reader has cost is how much the file has grown since it was first seen to be behind.
2. When that is more than `MOST_BYTES`, and more than the file had, the pool takes no more new
   blocks until the reader has ended.

Thread-safety: `look` from one thread at a time; attributes may be read by any.
"""

from __future__ import annotations

from typing import Final

from thinmeta.store.protocol import OldReader
from thinmeta.thin import ThinMetadata

MOST_BYTES: Final = 1 << 30
"""How much the file may grow for one reader in any case."""


class Pinned:
    """The oldest reader that was seen, if there is any, and its cost in bytes."""

    def __init__(self) -> None:
        self.reader: OldReader | None = None
        self.cost = 0
        self._size = 0

    def look(self, metadata: ThinMetadata) -> None:
        """Look who reads an old commit, and forget who died. Raises `StoreError`."""
        reader, size = metadata.old_reader(), metadata.file_size()
        if reader != self.reader:
            self.reader, self._size = reader, size
        self.cost = max(0, size - self._size) if reader is not None else 0

    def why(self) -> str:
        """Say what to do when that is too much; empty when it is not."""
        if self.reader is None or self.cost <= max(MOST_BYTES, self._size):
            return ""
        return (
            f"process {self.reader.pid} reads an old commit, and metadata.lmdb has grown by "
            f"{self.cost >> 20} MiB for it: let it go on, or end it"
        )
