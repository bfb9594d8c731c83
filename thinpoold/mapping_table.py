"""A volume's mapping table: virtual block -> data block, flat in memory.

One u64 for each virtual block, in an anonymous mapping that costs nothing where it was never
touched. It is a cache and a narrow interface: the C filter reads the same memory.

    0           unknown: ask the metadata
    otherwise   bit 0 (PRESENT), bit 1 (WRITABLE: may be written in place), bits 8.. the data block

Invariants

1. An entry, when there is one, is what the metadata says; WRITABLE only while the data block is the
   volume's alone and the pool takes writes, and it becomes so only where no other request's cell
   covers the block. 'Unknown' is always right.
2. Entries are stored under the metadata lock, together with the look-up or change they come from,
   so an older answer never overwrites a newer one. They are read without any lock, inside the gate.
3. Where C reads, C stores (`store`): each entry at once. Python's own stores of several entries
   are a memcpy, which owes nobody that; for readers in Python the interpreter's lock does it. Whole
   pages go by madvise, which leaves no entry half there.

Thread-safety: reads and stores of one entry are atomic; who may store is invariant 2.
"""

from __future__ import annotations

import ctypes
import mmap
from array import array
from typing import Final, Protocol

from thinpoold.errors import NoSpace

PRESENT: Final = 1
WRITABLE: Final = 2
IN_PLACE: Final = PRESENT | WRITABLE
DATA_SHIFT: Final = 8

ENTRY_BYTES: Final = 8
_MAP_NORESERVE: Final = 0x4000
_STEP: Final = 1 << DATA_SHIFT
_ZEROES: Final = memoryview(bytes(mmap.PAGESIZE)).cast("Q")
_PAGE_ENTRIES: Final = mmap.PAGESIZE // ENTRY_BYTES

# mincore(2), which Python's mmap lacks: which pages are in memory, a byte for each.
_AT_A_TIME: Final = 4 << 30
_LOOKED_AT: Final = 256 << 30
_mincore = ctypes.CDLL(None).mincore
_mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]


class Store(Protocol):
    """Stores value, value + step, ... into `count` entries at an address."""

    def __call__(self, address: int, count: int, value: int, step: int) -> object: ...


class MappingTable:
    """The table of a volume of `blocks` virtual blocks. Raises `NoSpace` without address space.

    `store` is the C filter's, if it reads the table at `address`.
    """

    def __init__(self, blocks: int, store: Store | None = None) -> None:
        self.blocks = blocks
        self._store = store
        length = max(blocks, 1) * ENTRY_BYTES
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        try:
            self._memory = mmap.mmap(-1, length, flags=flags)
        except (OSError, ValueError, OverflowError) as error:
            raise NoSpace(
                f"no address space for the mapping table of {blocks} blocks: {error}"
            ) from None
        self._length = length
        self.entries = memoryview(self._memory).cast("Q")
        # Not kept: it would keep the memory from being closed.
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))

    @property
    def limit_bytes(self) -> int:
        """Bytes of memory when every page was touched."""
        return -(-self._length // mmap.PAGESIZE) * mmap.PAGESIZE

    def resident_bytes(self) -> int:
        """Bytes of memory that the table takes now: whole pages, if only zeroes were read there.

        Looks at no more than the first 256 GiB, which 2 PiB of blocks of 64 KiB have.
        """
        touched = 0
        length = min(self._length, _LOOKED_AT)
        for offset in range(0, length, _AT_A_TIME):
            pages = -(-min(length - offset, _AT_A_TIME) // mmap.PAGESIZE)
            found = ctypes.create_string_buffer(pages)
            if _mincore(self.address + offset, pages * mmap.PAGESIZE, found):
                return self.limit_bytes
            touched += found.raw.count(b"\1")
        return touched * mmap.PAGESIZE

    def set_run(self, begin: int, data_begin: int, count: int, *, writable: bool) -> None:
        """Virtual blocks from `begin` on are in `count` consecutive data blocks."""
        value = data_begin << DATA_SHIFT | (IN_PLACE if writable else PRESENT)
        if self._store is not None:
            self._check(begin, begin + count)
            self._store(self.address + begin * ENTRY_BYTES, count, value, _STEP)
        elif count == 1:
            self.entries[begin] = value
        else:
            run = array("Q", range(value, value + count * _STEP, _STEP))
            self.entries[begin : begin + count] = memoryview(run)

    def drop(self) -> None:
        """Forget everything."""
        self._memory.madvise(mmap.MADV_DONTNEED)

    def drop_range(self, begin: int, end: int) -> None:
        """Forget the virtual blocks begin..end-1."""
        self._check(begin, end)
        # Whole pages go back to the kernel; what is left at both ends is overwritten.
        first = -(-begin // _PAGE_ENTRIES) * _PAGE_ENTRIES
        last = end // _PAGE_ENTRIES * _PAGE_ENTRIES
        if first >= last:
            self._clear(begin, end)
            return
        self._clear(begin, first)
        self._clear(last, end)
        start = first * ENTRY_BYTES
        self._memory.madvise(mmap.MADV_DONTNEED, start, last * ENTRY_BYTES - start)

    def close(self) -> None:
        """Give the memory back. Nobody may use `entries` any more."""
        self.entries.release()
        self._memory.close()
        self._length = 0

    def _check(self, begin: int, end: int) -> None:
        if not 0 <= begin <= end <= self.blocks:
            raise IndexError(f"blocks {begin} to {end} of a table of {self.blocks}")

    def _clear(self, begin: int, end: int) -> None:
        if self._store is not None:
            self._store(self.address + begin * ENTRY_BYTES, end - begin, 0, 0)
            return
        while begin < end:
            stop = min(end, begin + _PAGE_ENTRIES)
            self.entries[begin:stop] = _ZEROES[: stop - begin]
            begin = stop
