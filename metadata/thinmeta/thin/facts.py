"""What the thin metadata says of itself without a walk, and its superblock's marks.

Thread safety: the caller holds the metadata lock.
"""

from __future__ import annotations

from thinmeta.buffers import BufferCache, Pressure
from thinmeta.format.superblock import NEEDS_CHECK_FLAG
from thinmeta.spacemap import DataSpaceMap, MetadataSpaceMap
from thinmeta.store.protocol import BlockStore
from thinmeta.transaction import TransactionManager


class Facts:
    """The part of `ThinMetadata` that only looks at what is in memory."""

    _store: BlockStore
    _cache: BufferCache
    _tm: TransactionManager
    _metadata: MetadataSpaceMap
    _data: DataSpaceMap
    _superblock_changed: bool
    _flags: int
    _time: int
    _transaction_id: int
    _data_block_sectors: int

    @property
    def data_block_sectors(self) -> int:
        """Size of a data block in 512-byte sectors."""
        return self._data_block_sectors

    @property
    def time(self) -> int:
        """Goes up by one with each snapshot."""
        return self._time

    @property
    def transaction_id(self) -> int:
        """The user's number of the last change it made; nothing here depends on it."""
        return self._transaction_id

    def set_transaction_id(self, transaction_id: int) -> None:
        """Set the user's number, as part of the open transaction."""
        self._transaction_id = transaction_id
        self._superblock_changed = True

    @property
    def needs_check(self) -> bool:
        """Whether the metadata must be checked before it is used for writing."""
        return bool(self._flags & NEEDS_CHECK_FLAG)

    def set_needs_check(self, needed: bool) -> None:
        """Set or clear the flag, as part of the open transaction."""
        self._flags = self._flags & ~NEEDS_CHECK_FLAG | (NEEDS_CHECK_FLAG if needed else 0)
        self._superblock_changed = True

    @property
    def data_blocks(self) -> int:
        """Size of the data device, in data blocks."""
        return self._data.nr_blocks

    @property
    def data_used(self) -> int:
        """Data blocks that are mapped by some device."""
        return self._data.nr_used

    @property
    def data_free(self) -> int:
        """Data blocks that `reserve` can hand out now."""
        return self._data.nr_available

    @property
    def data_freed(self) -> bool:
        """Whether there are data blocks that a commit and `release` will make free."""
        return self._data.withheld.freed

    @property
    def metadata_blocks(self) -> int:
        """Metadata blocks that the space map covers."""
        return self._metadata.nr_blocks

    @property
    def metadata_used(self) -> int:
        """Metadata blocks in use."""
        return self._metadata.nr_allocated

    @property
    def generation(self) -> int:
        """Number of the last commit, one more than that of the commit before."""
        return self._store.generation

    @property
    def dirty(self) -> bool:
        """Whether there is anything to commit."""
        return self._superblock_changed or self._tm.dirty

    @property
    def pressure(self) -> Pressure:
        """Whether so much is uncommitted that a commit should come soon, or be waited for."""
        return self._tm.pressure()

    def memory_bytes(self) -> int:
        """Memory of the buffer cache in use."""
        return self._cache.resident_bytes

    @property
    def memory_limit(self) -> int:
        """Most bytes of memory for the buffer cache, while not all of it is dirty or held."""
        return self._cache.limit_bytes

    def age(self, idle_s: float) -> None:
        """Let go of cached metadata that was not used for `idle_s` seconds."""
        self._cache.age(idle_s)
