"""The data cache: pieces of the data device in a fixed amount of memory, for a device opened with
O_DIRECT, which the kernel's page cache keeps nothing of.

    read    cached pieces are copied out; those that are missing are read whole, in one call for
            those that adjoin, and kept
    write   to the device before it returns, then into the cache: what was answered outlives the
            process. Pieces that a write covers are kept; of the others, those that are cached
            already are brought up to date

Eviction is by second chance: a hit clears a slot's mark, the hand sets it and evicts what it finds
marked. A piece starts marked, so a long sequential run makes way before what is used twice.

Why not `thinmeta.buffers`: that cache is for blocks of 4096 bytes which many changes gather in
before a commit writes them, under one lock that its user holds. Here no buffer is ever dirty, many
threads wait for the device at once, and memory must be aligned and take several pieces a call.

Invariants

1. A cached piece is what the device holds, unless a write to it is under way, which nobody was
   answered yet.
2. Changes of overlapping pieces are made one at a time: they hold a cell. A piece whose reading
   overlaps a change in time, whichever began first, is handed to its reader but not kept.
3. A slot belongs to a cached piece, or to one read or write under way, or is free. Whoever needs
   slots takes all at once and waits for nothing of this cache while it has them: no deadlock.
4. What failed to be written is not cached: nobody knows what the device holds.

Thread-safety: any thread. `_changed` guards all attributes and what is in the slots of cached
pieces; slots under way belong to their thread. No I/O is done with it held.
"""

from __future__ import annotations

import mmap
import threading
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Protocol, TypeAlias

from thinpoold.cells import Cells

Buffer: TypeAlias = bytes | bytearray | memoryview

PIECE_BYTES: Final = 16 << 10
"""What is read and kept at a time: little more than 4 KiB to read, a quarter of the work for
requests that read on from there."""

PORTION_PIECES: Final = 64
"""The most that one read or write takes of the cache at a time."""

MIN_BYTES: Final = 16 * PORTION_PIECES * PIECE_BYTES
"""Small enough for any machine, and room for many requests at a time."""

_AGED: Final = 10
"""So many rounds of `age` without a hit let a piece go."""


class Source(Protocol):
    """The device under the cache. Both transfer everything or raise; offsets are aligned, and so
    are the buffers' addresses and lengths."""

    def read_at(self, buffers: Sequence[memoryview], offset: int) -> None: ...

    def write_at(self, buffers: Sequence[memoryview], offset: int) -> None: ...


class _Load:
    """Pieces first..last-1 on their way in; `spoiled`: not to be kept."""

    __slots__ = ("first", "last", "slots", "spoiled")

    def __init__(self, first: int, slots: list[int], spoiled: bool) -> None:
        self.first = first
        self.last = first + len(slots)
        self.slots = slots
        self.spoiled = spoiled


class DataCache:
    """At most `limit_bytes` of `source`, whose transfers must be multiples of `align` bytes."""

    def __init__(self, source: Source, limit_bytes: int, align: int = 4096) -> None:
        if limit_bytes < MIN_BYTES or PIECE_BYTES % align:
            raise ValueError(f"a data cache of {limit_bytes} bytes in units of {align}")
        self._source = source
        self._align = align
        self._count = limit_bytes // PIECE_BYTES
        # Private, or giving pages back would give nothing back.
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._memory = mmap.mmap(-1, self._count * PIECE_BYTES, flags=private)
        self._bytes = memoryview(self._memory)
        self._changed = threading.Condition(threading.Lock())
        self._cells = Cells()
        self._slot_of: dict[int, int] = {}
        # By slot: the piece in it, -1 for none, and its mark: 0 after a hit, then rounds without.
        self._piece_of = array("q", [-1]) * self._count
        self._idle = bytearray(self._count)
        self._free = list(range(self._count - 1, -1, -1))
        self._hand = 0
        self._loads: list[_Load] = []
        self._changes: list[tuple[int, int]] = []

    @property
    def limit_bytes(self) -> int:
        return self._count * PIECE_BYTES

    @property
    def resident_bytes(self) -> int:
        """Bytes of slots in use, by pieces or by requests under way."""
        return (self._count - len(self._free)) * PIECE_BYTES

    def close(self) -> None:
        """Give the memory back; no request is under way. Addresses go with the last view."""
        self._memory.madvise(mmap.MADV_DONTNEED)

    # --- requests -------------------------------------------------------------------------------

    def read(self, into: memoryview, offset: int) -> None:
        """Fill `into` from `offset`. Raises what the source does."""
        piece, within = divmod(offset, PIECE_BYTES)
        end = offset + len(into)
        if within + len(into) <= PIECE_BYTES:
            with self._changed:
                if self._copy_out(piece, self._slot_of.get(piece, -1), into, offset, end):
                    return
        for begin, stop in _portions(offset, end):
            self._read(into[begin - offset : stop - offset], begin, stop)

    def write(self, parts: Sequence[Buffer], offset: int) -> None:
        """Write buffers, one behind the other, to the device. Raises what the source does."""
        rest = [memoryview(part) for part in parts]
        for begin, stop in _portions(offset, offset + sum(map(len, rest))):
            self._write(rest, begin, stop)

    def prefetch(self, offset: int, count: int) -> None:
        """Read what is missing of a range."""
        for begin, stop in _portions(offset, offset + count):
            self._read(None, begin, stop)

    @contextmanager
    def change(self, offset: int, count: int) -> Iterator[None]:
        """The context changes a range of the device in another way; the cache forgets it."""
        first, last = offset // PIECE_BYTES, -(-(offset + count) // PIECE_BYTES)
        with self._alone(first, last):
            try:
                yield
            finally:
                with self._changed:
                    self._forget(first, last)

    def age(self) -> None:
        """One round without a hit more for each piece; the memory of those with many goes."""
        with self._changed:
            for piece, slot in list(self._slot_of.items()):
                self._idle[slot] += 1
                if self._idle[slot] > _AGED:
                    self._drop(piece)
                    self._memory.madvise(mmap.MADV_DONTNEED, slot * PIECE_BYTES, PIECE_BYTES)

    # --- reading --------------------------------------------------------------------------------

    def _read(self, into: memoryview | None, begin: int, end: int) -> None:
        """Read bytes begin..end-1, at most a portion; into the cache alone without `into`."""
        first, last = begin // PIECE_BYTES, -(-end // PIECE_BYTES)
        with self._changed:
            while True:
                missing = [
                    piece
                    for piece in range(first, last)
                    if not self._copy_out(piece, self._slot_of.get(piece, -1), into, begin, end)
                ]
                if not missing:
                    return
                slots = None
                if not any(one.first < last and first < one.last for one in self._loads):
                    slots = self._take(len(missing))
                if slots is not None:
                    break
                self._changed.wait()
            loads = self._begin_loads(missing, slots)
        try:
            for load in loads:
                self._source.read_at([self._view(s) for s in load.slots], load.first * PIECE_BYTES)
        except BaseException:
            with self._changed:
                for load in loads:
                    load.spoiled = True
                self._end_loads(loads)
            raise
        with self._changed:
            for load in loads:
                for number, slot in enumerate(load.slots):
                    self._copy_out(load.first + number, slot, into, begin, end)
            self._end_loads(loads)

    def _copy_out(
        self, piece: int, slot: int, into: memoryview | None, begin: int, end: int
    ) -> bool:
        """Copy what `into`, bytes begin..end-1, needs of a piece; False without a slot."""
        if slot < 0:
            return False
        self._idle[slot] = 0
        if into is not None:
            start = piece * PIECE_BYTES
            low, high = max(begin, start), min(end, start + PIECE_BYTES)
            at = slot * PIECE_BYTES - start
            into[low - begin : high - begin] = self._bytes[at + low : at + high]
        return True

    def _begin_loads(self, missing: list[int], slots: list[int]) -> list[_Load]:
        """Enter the pieces to be loaded as runs."""
        loads = []
        while missing:
            run = 1
            while run < len(missing) and missing[run] == missing[0] + run:
                run += 1
            first, last = missing[0], missing[0] + run
            spoiled = any(one[0] < last and first < one[1] for one in self._changes)
            loads.append(_Load(first, slots[:run], spoiled))
            missing, slots = missing[run:], slots[run:]
        self._loads.extend(loads)
        return loads

    def _end_loads(self, loads: list[_Load]) -> None:
        for load in loads:
            self._loads.remove(load)
            for number, slot in enumerate(load.slots):
                if load.spoiled:
                    self._free.append(slot)
                else:
                    self._keep(load.first + number, slot)
        self._changed.notify_all()

    # --- writing --------------------------------------------------------------------------------

    def _write(self, rest: list[memoryview], begin: int, end: int) -> None:
        """Write bytes begin..end-1, at most a portion, from the front of `rest`, and take them."""
        first, last = begin // PIECE_BYTES, -(-end // PIECE_BYTES)
        start = begin - begin % self._align
        stop = end + -end % self._align
        with self._alone(first, last):
            with self._changed:
                while (slots := self._take(last - first)) is None:
                    self._changed.wait()
            # Pieces whose slot holds all of them.
            whole = {p for p in range(first, last) if _covers(begin, end, p)}
            try:
                # What is written beside the request's bytes must be what is there.
                edges = {first} if start < begin else set()
                if stop > end:
                    edges.add(last - 1)
                for piece in edges:
                    self._fetch(piece, slots[piece - first])
                    whole.add(piece)
                self._fill(slots, rest, begin, end)
                views = [self._view(slot) for slot in slots]
                views[-1] = views[-1][: stop - (last - 1) * PIECE_BYTES]
                views[0] = views[0][start - first * PIECE_BYTES :]
                self._source.write_at(views, start)
            except BaseException:
                with self._changed:
                    self._forget(first, last)
                    self._free.extend(slots)
                    self._changed.notify_all()
                raise
            with self._changed:
                for piece, slot in enumerate(slots, first):
                    self._take_over(piece, slot, begin, end, piece in whole)
                self._changed.notify_all()

    def _fetch(self, piece: int, slot: int) -> None:
        """Have all of a piece in a slot of one's own, in a cell."""
        with self._changed:
            cached = self._slot_of.get(piece)
            if cached is not None:
                self._view(slot)[:] = self._view(cached)
                return
        self._source.read_at([self._view(slot)], piece * PIECE_BYTES)

    def _fill(self, slots: list[int], rest: list[memoryview], begin: int, end: int) -> None:
        """Bring bytes begin..end-1 from the front of `rest` into their slots."""
        base = begin // PIECE_BYTES
        at = begin
        while at < end:
            if not rest[0]:
                del rest[0]
                continue
            number, within = at // PIECE_BYTES - base, at % PIECE_BYTES
            count = min(PIECE_BYTES - within, end - at, len(rest[0]))
            self._view(slots[number])[within : within + count] = rest[0][:count]
            rest[0] = rest[0][count:]
            at += count

    def _take_over(self, piece: int, slot: int, begin: int, end: int, whole: bool) -> None:
        """What is in a slot was written, all of the piece or only bytes begin..end-1 of it."""
        cached = self._slot_of.get(piece)
        if whole:
            if cached is not None:
                self._drop(piece)
            self._keep(piece, slot)
            return
        if cached is not None:
            start = piece * PIECE_BYTES
            low, high = max(begin - start, 0), min(end - start, PIECE_BYTES)
            self._view(cached)[low:high] = self._view(slot)[low:high]
        self._free.append(slot)

    @contextmanager
    def _alone(self, first: int, last: int) -> Iterator[None]:
        """Change pieces first..last-1, with no other change of them meanwhile."""
        with self._cells.hold(first, last):
            change = (first, last)
            with self._changed:
                self._changes.append(change)
                for load in self._loads:
                    if load.first < last and first < load.last:
                        load.spoiled = True
            try:
                yield
            finally:
                with self._changed:
                    self._changes.remove(change)

    # --- slots; the lock is held ----------------------------------------------------------------

    def _view(self, slot: int) -> memoryview:
        return self._bytes[slot * PIECE_BYTES : (slot + 1) * PIECE_BYTES]

    def _keep(self, piece: int, slot: int) -> None:
        self._slot_of[piece] = slot
        self._piece_of[slot] = piece
        self._idle[slot] = 1

    def _drop(self, piece: int) -> None:
        slot = self._slot_of.pop(piece)
        self._piece_of[slot] = -1
        self._free.append(slot)

    def _forget(self, first: int, last: int) -> None:
        """Drop what is cached of pieces first..last-1."""
        inside: Iterator[int] = iter(range(first, last))
        if last - first > len(self._slot_of):
            inside = (piece for piece in list(self._slot_of) if first <= piece < last)
        for piece in inside:
            if piece in self._slot_of:
                self._drop(piece)

    def _take(self, count: int) -> list[int] | None:
        """Take so many slots, evicting for them; None when others have to be waited for."""
        free = self._free
        if len(free) < count:
            self._evict(count - len(free))
            if len(free) < count:
                return None
        taken = free[-count:]
        del free[-count:]
        return taken

    def _evict(self, count: int) -> None:
        """Evict `count` pieces, or as many as there are."""
        steps = 2 * self._count
        while count and steps:
            steps -= 1
            slot = self._hand
            self._hand = (slot + 1) % self._count
            piece = self._piece_of[slot]
            if piece < 0:
                continue
            if self._idle[slot]:
                self._drop(piece)
                count -= 1
            else:
                self._idle[slot] = 1


def _portions(offset: int, end: int) -> Iterator[tuple[int, int]]:
    """Cut a range of bytes where portions begin, which is where pieces do."""
    size = PORTION_PIECES * PIECE_BYTES
    while offset < end:
        stop = min(end, (offset // size + 1) * size)
        yield offset, stop
        offset = stop


def _covers(begin: int, end: int, piece: int) -> bool:
    return begin <= piece * PIECE_BYTES and (piece + 1) * PIECE_BYTES <= end
