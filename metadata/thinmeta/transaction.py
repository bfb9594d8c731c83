"""The transaction manager: which blocks may be changed in place, and what makes up a commit.

Everything between two commits is one transaction.  A block with one owner is changed in place; a
block with more is shadowed: copied to a new block for the parent that wants to change it, while
the others keep the old one (after the kernel's dm-transaction-manager; on-disk-format.md tells why
nothing else needs a copy here).

Invariants

1. A node in `owned` has one owner and is dirty in the open transaction, so it may be changed with
   no further look-up.  Whatever raises its count, frees it or closes the transaction takes it out.
2. Blocks freed in a transaction are erased from the store by that transaction's commit, and their
   numbers are not used again before it (the space map sees to that).
3. `freeze` cuts one transaction from the next; `write` makes the frozen one durable, all of it or
   nothing.  At most one transaction is frozen at a time.
4. After any exception out of a changing call the open transaction may be half done: the caller
   must `abandon` it.

Thread safety: every call is made under the metadata lock, but `write`, which touches nothing but
the frozen transaction and the store.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from thinmeta.buffers import Buffer, BufferCache, BufferClient, Pressure
from thinmeta.errors import Corrupt
from thinmeta.format.block import BLOCK_SIZE, Kind, seal, verify
from thinmeta.format.node import INTERNAL, LEAF, max_entries
from thinmeta.store.protocol import BlockStore

U32 = 0xFFFFFFFF


class BlockCounts(Protocol):
    """What the transaction manager needs of the metadata's space map."""

    def count(self, block: int) -> int:
        """How many parents point at the block."""
        ...

    def increment(self, begin: int, end: int) -> None:
        """One owner more for each block in begin..end-1."""
        ...

    def decrement(self, begin: int, end: int) -> None:
        """One owner less for each block in begin..end-1."""
        ...

    def new_block(self) -> int:
        """A free block, counted once from now on."""
        ...


@dataclass(frozen=True, slots=True)
class FrozenTransaction:
    """What one commit writes: blocks as (number, kind, bytes), blocks to erase, records to put."""

    blocks: list[tuple[int, Kind | None, bytearray]]
    erased: list[int]
    records: dict[tuple[str, bytes], bytes | None]


class TransactionManager:
    """Metadata blocks of one store, read and changed within transactions."""

    def __init__(self, store: BlockStore, cache: BufferCache) -> None:
        self.store = store
        self.owned: dict[int, Buffer] = {}
        self._cache = cache
        self._client: BufferClient = cache.client(store.read)
        self._counts: BlockCounts | None = None
        self._records: dict[tuple[str, bytes], bytes | None] = {}
        self._frozen_records: dict[tuple[str, bytes], bytes | None] = {}

    # --- blocks ---------------------------------------------------------------------------------

    @property
    def counts(self) -> BlockCounts:
        """The metadata's space map."""
        if self._counts is None:
            raise RuntimeError("no metadata space map yet")
        return self._counts

    def use_counts(self, counts: BlockCounts) -> None:
        """Say which space map allocates and counts this store's blocks."""
        self._counts = counts

    def read(self, block: int, kind: Kind) -> Buffer:
        """The block, verified to be of this kind, for reading.  Raises `Corrupt`, `StoreError`."""
        buffer = self._client.borrow(block)
        if buffer.kind is not kind:
            self._accept(buffer, kind)
        return buffer

    def modify(self, block: int, kind: Kind) -> Buffer:
        """The block for changing in place: only for blocks that have one owner by construction."""
        buffer = self.read(block, kind)
        self._client.make_dirty(buffer)
        return buffer

    def new(self, kind: Kind) -> Buffer:
        """A newly allocated block of zeros.  Raises `NoMetadataSpace`."""
        block = self.counts.new_block()
        buffer = self._client.new(block, kind)
        if kind is Kind.NODE:
            self.owned[block] = buffer
        return buffer

    def new_at(self, block: int, kind: Kind) -> Buffer:
        """A block of zeros at a place that the caller counts itself."""
        return self._client.new(block, kind)

    def shadow(self, block: int) -> tuple[Buffer, bool]:
        """A btree node for one of its parents to change, and whether it is a copy.

        If it is, the parent must point at the copy from now on, and the caller raises the counts
        of what the node points at.
        """
        buffer = self.owned.get(block)
        if buffer is not None:
            return buffer, False
        count = self.counts.count(block)
        if count == 1:
            buffer = self.modify(block, Kind.NODE)
            self.owned[block] = buffer
            return buffer, False
        if count == 0:
            raise Corrupt("node", f"block {block}", "a tree points at it, but it counts as free")
        source = self.read(block, Kind.NODE)
        copy = self.new(Kind.NODE)
        copy.octets[:] = source.octets
        self.counts.decrement(block, block + 1)
        return copy, True

    def increment(self, block: int) -> None:
        """One more parent points at the block."""
        self.owned.pop(block, None)
        self.counts.increment(block, block + 1)

    def decrement(self, block: int) -> int:
        """One parent less points at the block; its count now.  At 0 it is gone."""
        count = self.counts.count(block)
        self.counts.decrement(block, block + 1)
        if count == 1:
            self.owned.pop(block, None)
            self._client.forget(block)
        return count - 1

    def prefetch(self, blocks: Iterable[int]) -> None:
        """Bring blocks into the cache that will be read soon."""
        self._client.prefetch(blocks)

    def pressure(self) -> Pressure:
        """Whether there is so much to commit that it should be done soon, or waited for."""
        return self._cache.pressure(self._client)

    # --- records --------------------------------------------------------------------------------

    def put_record(self, table: str, key: bytes, value: bytes | None) -> None:
        """Put a record, or erase it with None, as part of the open transaction."""
        self._records[table, key] = value

    def record(self, table: str, key: bytes) -> bytes | None:
        """The record as the open transaction has it."""
        for layer in (self._records, self._frozen_records):
            if (table, key) in layer:
                return layer[table, key]
        return self.store.record(table, key)

    def records(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        """All records of a table as the open transaction has them, in the order of their keys."""
        found: dict[bytes, bytes | None] = dict(self.store.records(table))
        for layer in (self._frozen_records, self._records):
            found.update({key: value for (name, key), value in layer.items() if name == table})
        for key in sorted(found):
            value = found[key]
            if value is not None:
                yield key, value

    # --- commit ---------------------------------------------------------------------------------

    @property
    def dirty(self) -> bool:
        """Whether the open transaction holds anything to commit."""
        return self._client.has_dirty or bool(self._records)

    def freeze(self, erased: list[int]) -> FrozenTransaction:
        """Close the open transaction; what is changed from now on belongs to the next."""
        self.owned.clear()
        self._frozen_records, self._records = self._records, {}
        return FrozenTransaction(self._client.start_writing(), erased, self._frozen_records)

    def write(self, frozen: FrozenTransaction) -> None:
        """Make a frozen transaction durable, in one transaction of the store.

        Raises `NoMetadataSpace` or `StoreError`; then the last commit stands, and the caller must
        `abandon`.  No lock is needed (buffers' invariant 2).
        """
        blocks = {}
        for block, kind, data in frozen.blocks:
            if kind is None:
                raise RuntimeError(f"block {block} was changed without ever being verified")
            seal(data, kind, block)
            blocks[block] = data
        self.store.commit(blocks, frozen.erased, frozen.records)

    def committed(self) -> None:
        """The frozen transaction is durable."""
        self._frozen_records = {}
        self._client.written()

    def abandon(self) -> None:
        """Drop all that is not durable: the caller loads its roots from the store again."""
        self.owned.clear()
        self._records.clear()
        self._frozen_records = {}
        self._client.forget_all()

    def close(self) -> None:
        """Give the memory back.  Does not commit."""
        self.owned.clear()
        self._cache.detach(self._client)

    def _accept(self, buffer: Buffer, kind: Kind) -> None:
        """Verify a block that has just come from the store; one that is damaged is not kept."""
        try:
            if buffer.kind is not None:
                message = f"is a {buffer.kind}, where a {kind} should be"
                raise Corrupt(str(kind), f"block {buffer.block}", message)
            verify(buffer.data, kind, buffer.block)
            if kind is Kind.NODE:
                _check_node(buffer)
        except Corrupt:
            if buffer.kind is None:
                self._client.forget(buffer.block)
            raise
        buffer.kind = kind


def _check_node(buffer: Buffer) -> None:
    """What hot code relies on and the checksum cannot know: the header makes sense."""
    words = buffer.words
    flags, entries, room = words[0] >> 32, words[2] & U32, words[2] >> 32
    value_size = words[3] & U32
    wrong = None
    if flags not in (INTERNAL, LEAF):
        wrong = f"flags are {flags}"
    elif not 0 < value_size <= BLOCK_SIZE // 8 or room != max_entries(value_size):
        wrong = f"room for {room} values of {value_size} bytes"
    elif entries > room:
        wrong = f"{entries} entries where {room} fit"
    elif flags == INTERNAL and entries == 0:
        wrong = "an internal node without children"
    if wrong:
        raise Corrupt("node", f"block {buffer.block}", wrong)
