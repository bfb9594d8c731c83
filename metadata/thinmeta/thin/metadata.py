"""The thin metadata: devices, their mappings, and the data blocks behind them, in one pool.

It puts the trees and space maps together as the kernel's dm-thin-metadata does, and adds reserved
data blocks, records, and the two-phase commit.

A commit has two phases, so that data I/O and other changes go on during it:

    under the lock       frozen = metadata.freeze()
    without the lock     (flush the data device, then)  metadata.write(frozen)
    under the lock       freed = metadata.committed(frozen)
    without the lock     (wait for readers of freed blocks, punch them)
    under the lock       metadata.release(freed)

Invariants

1. Whatever is committed is sound: reference counts are exact, and no block is counted and unused.
2. A data block freed is handed out again only after `release`.
3. An exception out of a changing call, other than `NotFound`, `AlreadyExists`, `NoDataSpace` and
   `ValueError`, leaves the open transaction half done: `abandon` it.

Thread safety: none of its own.  The caller holds one lock, the metadata lock, for every call but
`write`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from thinmeta.btree import Cursor, Tree, next_portion
from thinmeta.buffers import BufferCache
from thinmeta.errors import NoMetadataSpace
from thinmeta.format.block import Kind
from thinmeta.format.superblock import SUPERBLOCK_BLOCK, Superblock
from thinmeta.format.values import (
    MAX_TIME,
    TIME_BITS,
    DeviceDetails,
    check_data_block_sectors,
)
from thinmeta.spacemap import DataSpaceMap, MetadataSpaceMap
from thinmeta.spacemap.withheld import Range, Withheld
from thinmeta.store.protocol import BlockStore, OldReader
from thinmeta.thin import mappings
from thinmeta.thin.devices import Device, Devices
from thinmeta.thin.facts import Facts
from thinmeta.thin.mappings import Mapping, Run
from thinmeta.thin.values import MappingValues, pack_run
from thinmeta.transaction import FrozenTransaction, TransactionManager

DEFAULT_CACHE_BYTES = 64 << 20


class ThinMetadata(Facts):
    """The metadata of one pool.  Use `create` or `open`."""

    def __init__(self, store: BlockStore, cache: BufferCache) -> None:
        self._store = store
        self._cache = cache
        self._tm = TransactionManager(store, cache)
        self._superblock_changed = False
        self._flags = self._time = self._transaction_id = self._held_root = 0
        self._data_block_sectors = 0
        self.uuid = bytes(16)
        # Called with the generation of each commit when it is durable; must not raise.
        self.on_durable: Callable[[int], None] = lambda generation: None

    @classmethod
    def create(
        cls,
        store: BlockStore,
        *,
        data_block_sectors: int,
        data_blocks: int,
        uuid: bytes = bytes(16),
        cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> ThinMetadata:
        """Make new metadata in an empty store, and commit it.

        Raises `ValueError` for a block size or number of blocks that the format does not allow.
        """
        check_data_block_sectors(data_block_sectors)
        self = cls(store, BufferCache(cache_bytes))
        self.uuid = uuid
        self._data_block_sectors = data_block_sectors
        self._metadata = MetadataSpaceMap(self._tm, None)
        self._data = DataSpaceMap(self._tm, None)
        self._data.resize(data_blocks)
        self._devices = Devices(self._tm)
        self._mappings = Tree(self._tm, MappingValues(self._data))
        self.commit()
        return self

    @classmethod
    def open(cls, store: BlockStore, *, cache_bytes: int = DEFAULT_CACHE_BYTES) -> ThinMetadata:
        """The metadata of the store's last commit; reads the superblock alone.

        With a store's snapshot as `store` it is for reading, whatever is committed meanwhile.
        Raises `Corrupt`, `UnsupportedFormat`, `StoreError`.
        """
        self = cls(store, BufferCache(cache_bytes))
        self._load(None)
        return self

    def warm(self) -> None:
        """Read what the first allocation would have to: the index of the data space map, which for
        100 TiB is 100,000 entries.  Raises `Corrupt`, `StoreError`."""
        self._data.warm()

    # --- devices --------------------------------------------------------------------------------

    def device_ids(self) -> list[int]:
        """All device ids, ascending."""
        return self._devices.ids()

    def new_device_id(self) -> int:
        """A device id that is not in use."""
        return self._devices.unused_id()

    def details(self, dev_id: int) -> DeviceDetails:
        """The device's details.  Raises `NotFound`."""
        return self._devices.get(dev_id).details()

    def check_room(self, *, devices: int, snapshots: int) -> None:
        """Raise `NoMetadataSpace` unless the format has room for so many more of each."""
        if self._time + snapshots > MAX_TIME:
            raise NoMetadataSpace(f"the format allows {MAX_TIME} snapshots in a pool's life")
        if devices:
            self._devices.check_room(devices)

    def make_room(self) -> bool:
        """Have room in the store for some commits that delete or discard; False if there is none.

        While no commit is written. Raises `StoreError`.
        """
        return self._store.make_room()

    def old_reader(self) -> OldReader | None:
        """Who keeps the store from using again what an old commit has; see `BlockStore`."""
        return self._store.old_reader()

    def file_size(self) -> int:
        """Bytes of the store's file."""
        return self._store.file_size()

    def create_thin(self, dev_id: int) -> None:
        """A new device without mappings.  Raises `AlreadyExists`, `ValueError`."""
        self._devices.check_unused(dev_id)
        self._devices.add(
            Device(
                dev_id,
                root=self._mappings.empty(),
                mapped_blocks=0,
                transaction_id=self._transaction_id,
                creation_time=self._time,
                snapshotted_time=self._time,
            )
        )

    def create_snapshot(self, dev_id: int, origin_id: int) -> None:
        """A new device with the origin's content.  Takes the same time at any size.

        Raises `AlreadyExists`, `NotFound`, `ValueError`.
        """
        self._devices.check_unused(dev_id)
        self.check_room(devices=0, snapshots=1)
        origin = self._devices.for_change(origin_id)
        self._time += 1
        self._tm.increment(origin.root)
        origin.snapshotted_time = self._time
        self._devices.add(
            Device(
                dev_id,
                root=origin.root,
                mapped_blocks=origin.mapped_blocks,
                transaction_id=self._transaction_id,
                creation_time=self._time,
                snapshotted_time=self._time,
            )
        )

    def delete_device(self, dev_id: int) -> None:
        """Delete a device and free what it alone used.  Raises `NotFound`."""
        self._mappings.delete(self._devices.remove(dev_id).root)

    def delete_some(self, dev_id: int, at: Cursor) -> Cursor | None:
        """Take one portion of deleting a device, from the cursor that the last one returned.

        Begin with `Cursor()`, after which the device must not be used.  None: it is deleted.  Until
        then it is a device with ever fewer mappings.  Raises `NotFound`.
        """
        ranges, cursor = next_portion(self._tm, self._devices.for_change(dev_id).root, at)
        for begin, end in ranges:
            self.remove(dev_id, begin, end)
        if cursor is None:
            self.delete_device(dev_id)
        return cursor

    # --- mappings -------------------------------------------------------------------------------

    def lookup(self, dev_id: int, block: int) -> Mapping | None:
        """Where the device's virtual block is, or None.  Raises `NotFound`."""
        return mappings.lookup(self._tm, self._data, self._devices.get(dev_id), block)

    def lacks(self, dev_id: int, begin: int, end: int) -> bool:
        """Whether none of the virtual blocks begin..end-1 is mapped; quicker than `runs`.

        False may also mean that `runs` has to tell.  Raises `NotFound`.
        """
        return self._mappings.lacks(self._devices.get(dev_id).root, begin, end)

    def runs(self, dev_id: int, begin: int, end: int) -> Iterator[Run]:
        """The mapped runs of virtual blocks begin..end-1; nothing may change meanwhile."""
        device = self._devices.get(dev_id)
        return mappings.runs(self._mappings, self._data, device, begin, end)

    def prefetch(self, dev_id: int, begin: int, end: int) -> None:
        """Bring the metadata of virtual blocks begin..end-1 into the cache.  Raises `NotFound`."""
        self._mappings.prefetch(self._devices.get(dev_id).root, begin, end)

    def exclusive_blocks(self, dev_id: int) -> int:
        """Data blocks that this device alone uses: what deleting it would free."""
        return mappings.exclusive_blocks(self._mappings, self._data, self._devices.get(dev_id))

    def reserve(self, count: int) -> tuple[int, int]:
        """Up to `count` consecutive data blocks as (first, how many), for `insert`.

        Raises `NoDataSpace`; if `data_freed` then, a commit will make some free.
        """
        return self._data.reserve(count)

    def reserve_these(self, begin: int, count: int) -> bool:
        """Take just these data blocks, for `insert`; False if one is not free, or not there."""
        return self._data.reserve_these(begin, count)

    def unreserve(self, begin: int, count: int) -> None:
        """Give back reserved blocks that were not inserted."""
        self._data.unreserve(begin, count)

    def insert(self, dev_id: int, block: int, data_block: int, count: int = 1) -> None:
        """Map `count` virtual blocks from `block` on to reserved data blocks from `data_block` on.

        What they were mapped to before has one owner less.  Raises `NotFound`.
        """
        device = self._devices.for_change(dev_id)
        packed = pack_run(data_block << TIME_BITS | self._time, count)
        device.root, replaced = self._mappings.insert_run(device.root, block, packed, count)
        self._data.claim(data_block, count)
        device.mapped_blocks += count - replaced

    def remove(self, dev_id: int, begin: int, end: int) -> int:
        """Unmap the virtual blocks begin..end-1; how many were mapped.  Raises `NotFound`."""
        device = self._devices.for_change(dev_id)
        device.root, removed = self._mappings.remove_range(device.root, begin, end)
        device.mapped_blocks -= removed
        return removed

    def resize_data(self, data_blocks: int) -> None:
        """The data device has grown.

        Raises `ValueError` if it would shrink, or is larger than the format allows.
        """
        self._data.resize(data_blocks)

    # --- records --------------------------------------------------------------------------------

    def put_record(self, table: str, key: bytes, value: bytes | None) -> None:
        """Put a record, or erase it with None, as part of the open transaction."""
        self._tm.put_record(table, key, value)

    def record(self, table: str, key: bytes) -> bytes | None:
        """A record as the open transaction has it."""
        return self._tm.record(table, key)

    def committed_record(self, table: str, key: bytes) -> bytes | None:
        """A record as the last commit has it."""
        return self._store.record(table, key)

    def records(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        """All records of a table as the open transaction has them, in the order of their keys."""
        return self._tm.records(table)

    # --- commit ---------------------------------------------------------------------------------

    def freeze(self) -> FrozenTransaction:
        """Close the open transaction.  `write` and `committed`, or `abandon`, must follow."""
        self._devices.save()
        self._data.save()
        self._metadata.save()
        superblock = self._tm.modify(SUPERBLOCK_BLOCK, Kind.SUPERBLOCK)
        superblock.octets[:] = self._superblock().pack()
        self._superblock_changed = False
        self._data.withheld.freeze()
        self._metadata.withheld.freeze()
        freed = self._metadata.withheld.frozen()
        return self._tm.freeze([n for begin, count in freed for n in range(begin, begin + count)])

    def write(self, frozen: FrozenTransaction) -> None:
        """Make the frozen transaction durable; needs no lock.

        Raises `NoMetadataSpace` or `StoreError`: then `abandon`; the last commit stands.
        """
        self._tm.write(frozen)
        self.on_durable(self._store.generation)

    def committed(self, frozen: FrozenTransaction) -> list[Range]:
        """The frozen transaction is durable.

        Returns the data blocks it freed, as (first, how many); they stay withheld until `release`.
        """
        del frozen
        self._tm.committed()
        self._metadata.release(self._metadata.withheld.committed())
        return self._data.withheld.committed()

    def release(self, freed: list[Range]) -> None:
        """Blocks that `committed` returned may be handed out again."""
        self._data.release(freed)

    def commit(self) -> None:
        """All phases of a commit, for callers without a data device in use."""
        frozen = self.freeze()
        try:
            self.write(frozen)
        except BaseException:
            self.abandon()
            raise
        self.release(self.committed(frozen))

    def abandon(self) -> None:
        """Go back to the last commit.

        Reserved data blocks stay reserved: those who hold them may still be writing.
        Raises what `open` raises; then the metadata cannot be used any more.
        """
        self._tm.abandon()
        self._data.disclaim()
        self._data.withheld.abandon()
        self._load(self._data.withheld)

    def close(self) -> None:
        """Give the memory back.  Does not commit, and leaves the store open."""
        self._tm.close()

    def _load(self, withheld: Withheld | None) -> None:
        superblock = Superblock.unpack(self._tm.read(SUPERBLOCK_BLOCK, Kind.SUPERBLOCK).data)
        self.uuid = superblock.uuid
        self._data_block_sectors = superblock.data_block_sectors
        self._time = superblock.time
        self._transaction_id = superblock.transaction_id
        self._flags = superblock.flags
        self._held_root = superblock.held_root
        self._superblock_changed = False
        self._metadata = MetadataSpaceMap(self._tm, superblock.metadata_space_map)
        self._data = DataSpaceMap(self._tm, superblock.data_space_map, withheld)
        self._devices = Devices(self._tm, superblock.mapping_root, superblock.details_root)
        self._mappings = Tree(self._tm, MappingValues(self._data))

    def _superblock(self) -> Superblock:
        return Superblock(
            data_space_map=self._data.root(),
            metadata_space_map=self._metadata.root(),
            mapping_root=self._devices.roots,
            details_root=self._devices.details,
            data_block_sectors=self._data_block_sectors,
            metadata_nr_blocks=self._metadata.nr_blocks,
            uuid=self.uuid,
            flags=self._flags,
            time=self._time,
            transaction_id=self._transaction_id,
            held_root=self._held_root,
        )
