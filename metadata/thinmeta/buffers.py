"""The buffer cache: a bounded set of 4096-byte blocks in memory, after the kernel's dm-bufio.

A `BufferCache` is the process's one pool of memory; each block source (the metadata store, the
data device) is a `BufferClient` of it.  Eviction is least-recently-used over all clients, in the
second-chance approximation: a hit only sets a mark, and a marked buffer is passed over once.

Invariants

1. Only a clean buffer without holds is ever evicted.  A dirty one is the sole copy of its content.
2. The bytes of a buffer that is being written never change: `make_dirty` gives the buffer a fresh
   copy first, so that a commit writes exactly what was frozen.
3. Clean buffers hold the cache within `limit_bytes` whenever that can be done by evicting; dirty
   and held ones may exceed it.  `pressure` is the back-pressure that callers must heed.
4. A buffer that was evicted while somebody still used it keeps its bytes, and `make_dirty` enters
   it again; so within one critical section a buffer needs no hold.

Thread safety: each client is used under its owner's lock.  What is shared (the resident count, the
ring of clients and eviction) is guarded by the cache's own lock, which is taken on a miss, never on
a hit.  Removing a buffer from a client's dict is one atomic dict operation, so a hit in one client
is safe beside an eviction by another.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from enum import IntEnum

from thinmeta.format.block import BLOCK_SIZE, Kind

BUFFER_OVERHEAD = 640
"""Bytes of Python objects around a block's 4096, counted into the bound."""

BUFFER_BYTES = BLOCK_SIZE + BUFFER_OVERHEAD

EVICTION_SCAN = 128
"""How many buffers one eviction looks at before it gives up."""


class State(IntEnum):
    """Where a buffer stands in the cycle clean -> dirty -> writing -> clean."""

    CLEAN = 0
    DIRTY = 1
    WRITING = 2


class Pressure(IntEnum):
    """How much of the dirty limit is used: go on, commit soon, wait for a commit."""

    NONE = 0
    SOON = 1
    WAIT = 2


class Buffer:
    """One cached block.

    `data`, `octets` and `words` are the same 4096 bytes as a bytearray, as a memoryview of bytes
    and as one of little-endian u64.  `kind` is what the content was verified as, None before.
    """

    __slots__ = ("block", "data", "holds", "kind", "octets", "stamp", "state", "touched", "words")

    def __init__(self, block: int, data: bytearray, kind: Kind | None = None) -> None:
        self.block = block
        self.holds = 0
        self.kind = kind
        self.stamp = 0.0
        self.state = State.CLEAN
        self.touched = True
        self.attach(data)

    def attach(self, data: bytearray) -> None:
        """Make `data` (4096 bytes) the content."""
        self.data = data
        self.octets = memoryview(data)
        self.words = self.octets.cast("Q")


class BufferClient:
    """The buffers of one block source.

    `fetch(block)` returns the block's bytes as a fresh bytearray, or raises; nothing is cached
    then.
    """

    def __init__(self, cache: BufferCache, fetch: Callable[[int], bytearray]) -> None:
        self._cache = cache
        self._fetch = fetch
        self._buffers: OrderedDict[int, Buffer] = OrderedDict()
        self._dirty: dict[int, Buffer] = {}
        self._writing: dict[int, Buffer] = {}

    def __len__(self) -> int:
        return len(self._buffers)

    @property
    def has_dirty(self) -> bool:
        """Whether anything was changed since the last `start_writing`."""
        return bool(self._dirty)

    @property
    def dirty_bytes(self) -> int:
        """Bytes of buffers that are dirty or being written."""
        return (len(self._dirty) + len(self._writing)) * BUFFER_BYTES

    def borrow(self, block: int) -> Buffer:
        """The block's buffer, read if need be, without a hold.

        Good until the caller gives up the lock that guards this client (invariant 4).
        """
        buffer = self._buffers.get(block)
        if buffer is not None:
            buffer.touched = True
            return buffer
        return self._enter(Buffer(block, self._fetch(block)))

    def read(self, block: int) -> Buffer:
        """The block's buffer, read if need be, held until `release`."""
        buffer = self.borrow(block)
        buffer.holds += 1
        return buffer

    def get(self, block: int) -> Buffer | None:
        """The block's buffer, held, if it is cached; no I/O."""
        buffer = self._buffers.get(block)
        if buffer is not None:
            buffer.touched = True
            buffer.holds += 1
        return buffer

    def new(self, block: int, kind: Kind | None = None) -> Buffer:
        """A dirty buffer of zeros for a block whose old content does not matter; no I/O."""
        self.forget(block)
        buffer = Buffer(block, bytearray(BLOCK_SIZE), kind)
        buffer.state = State.DIRTY
        self._dirty[block] = buffer
        return self._enter(buffer)

    def release(self, buffer: Buffer) -> None:
        """Give up one hold."""
        if buffer.holds <= 0:
            raise ValueError(f"block {buffer.block}: released more often than held")
        buffer.holds -= 1

    def make_dirty(self, buffer: Buffer) -> None:
        """Call before changing a buffer: from here on it is dirty (invariant 2)."""
        if buffer.state is State.DIRTY:
            return
        if buffer.state is State.WRITING:
            buffer.attach(bytearray(buffer.data))
        buffer.state = State.DIRTY
        self._dirty[buffer.block] = buffer
        if self._buffers.get(buffer.block) is not buffer:
            self._enter(buffer)

    def start_writing(self) -> list[tuple[int, Kind | None, bytearray]]:
        """Turn all dirty buffers into writing ones: (block, kind, bytes) of each.

        One batch at a time: `written` or `forget_all` must come before the next.
        """
        if self._writing:
            raise RuntimeError("the last batch of dirty buffers is still being written")
        self._writing, self._dirty = self._dirty, {}
        for buffer in self._writing.values():
            buffer.state = State.WRITING
        return [(b.block, b.kind, b.data) for b in self._writing.values()]

    def written(self) -> None:
        """The batch is durable: what was not changed since is clean."""
        for buffer in self._writing.values():
            if buffer.state is State.WRITING:
                buffer.state = State.CLEAN
        self._writing = {}
        self._cache.shrink()

    def prefetch(self, blocks: Iterable[int]) -> None:
        """Read those of `blocks` that are not cached, as far as the bound has room."""
        for block in blocks:
            if self._cache.resident_bytes + BUFFER_BYTES > self._cache.limit_bytes:
                return
            if block not in self._buffers:
                self._enter(Buffer(block, self._fetch(block)))

    def forget(self, block: int) -> None:
        """Drop the block's buffer, dirty or not: its content no longer matters."""
        if self._buffers.pop(block, None) is not None:
            self._dirty.pop(block, None)
            self._cache.left(1)

    def forget_all(self) -> None:
        """Drop everything, changes included."""
        self._cache.left(len(self._buffers))
        self._buffers.clear()
        self._dirty.clear()
        self._writing.clear()

    def evict_one(self) -> bool:
        """Evict the buffer that was idle longest; False when none is found (invariant 1).

        Looks at no more than `EVICTION_SCAN` buffers, so that a cache full of dirty ones does not
        make each miss a walk over all of them; those passed over go to the end of the line.
        """
        buffers = self._buffers
        for _ in range(min(2 * len(buffers), EVICTION_SCAN)):
            block, buffer = next(iter(buffers.items()))
            if buffer.state is not State.CLEAN or buffer.holds or buffer.touched:
                buffer.touched = False
                buffer.stamp = self._cache.now()
                buffers.move_to_end(block)
                continue
            del buffers[block]
            return True
        return False

    def evict_idle(self, before: float) -> int:
        """Evict clean, unheld buffers that were not used since `before`; how many."""
        count = 0
        for block, buffer in list(self._buffers.items()):
            if buffer.touched:
                buffer.touched = False
                buffer.stamp = self._cache.now()
            elif buffer.stamp <= before and buffer.state is State.CLEAN and not buffer.holds:
                del self._buffers[block]
                count += 1
        return count

    def oldest(self) -> float:
        """When the first buffer in line was last seen in use (seconds of the cache's clock)."""
        for buffer in self._buffers.values():
            return buffer.stamp
        return float("inf")

    def _enter(self, buffer: Buffer) -> Buffer:
        buffer.stamp = self._cache.now()
        self._buffers[buffer.block] = buffer
        self._cache.entered()
        return buffer


class BufferCache:
    """All buffers of the process, within `limit_bytes`.

    `dirty_limit_bytes` is what a client may keep dirty before `pressure` asks its users to wait.
    """

    def __init__(
        self,
        limit_bytes: int,
        *,
        dirty_limit_bytes: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if limit_bytes < BUFFER_BYTES:
            raise ValueError(f"a buffer cache needs at least {BUFFER_BYTES} bytes")
        self.limit_bytes = limit_bytes
        self.dirty_limit_bytes = dirty_limit_bytes or limit_bytes // 2
        self.now = clock
        self._lock = threading.Lock()
        self._clients: list[BufferClient] = []  # guarded by _lock
        self._resident = 0  # guarded by _lock

    @property
    def resident_bytes(self) -> int:
        """Bytes in use by all clients."""
        return self._resident * BUFFER_BYTES

    def client(self, fetch: Callable[[int], bytearray]) -> BufferClient:
        """A new client, whose blocks come from `fetch`."""
        client = BufferClient(self, fetch)
        with self._lock:
            self._clients.append(client)
        return client

    def detach(self, client: BufferClient) -> None:
        """The client's buffers go, and it takes no more part."""
        client.forget_all()
        with self._lock:
            self._clients.remove(client)

    def pressure(self, client: BufferClient) -> Pressure:
        """Whether the client's users should go on, commit soon, or wait for a commit."""
        dirty = client.dirty_bytes
        if dirty < self.dirty_limit_bytes // 2:
            return Pressure.NONE
        return Pressure.SOON if dirty < self.dirty_limit_bytes else Pressure.WAIT

    def entered(self) -> None:
        """A client took in one buffer; makes room for it."""
        with self._lock:
            self._resident += 1
        if self.resident_bytes > self.limit_bytes:
            self.shrink()

    def left(self, count: int) -> None:
        """A client dropped `count` buffers of its own accord."""
        with self._lock:
            self._resident -= count

    def shrink(self) -> None:
        """Evict, oldest first, until the bound holds or nothing more can go."""
        with self._lock:
            stuck: set[int] = set()
            while self.resident_bytes > self.limit_bytes and len(stuck) < len(self._clients):
                candidates = [c for c in self._clients if id(c) not in stuck]
                client = min(candidates, key=BufferClient.oldest)
                if client.evict_one():
                    self._resident -= 1
                else:
                    stuck.add(id(client))

    def age(self, idle_s: float) -> int:
        """Evict what was not used for `idle_s` seconds (dm-bufio's max_age); how many buffers.

        The first call after a use only clears its mark, so the ageing thread calls repeatedly.
        """
        with self._lock:
            count = sum(c.evict_idle(self.now() - idle_s) for c in self._clients)
            self._resident -= count
        return count
