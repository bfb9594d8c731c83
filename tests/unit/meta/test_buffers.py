"""The buffer cache: bounded, held, dirty, aged, prefetched, and shared by its clients."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinmeta.buffers import BUFFER_BYTES, BufferCache, BufferClient, Pressure
from thinmeta.format.block import BLOCK_SIZE, Kind


class Source:
    """Blocks that hold their own number, and how often each was read."""

    def __init__(self) -> None:
        self.reads: list[int] = []
        self.fail = False

    def fetch(self, block: int) -> bytearray:
        if self.fail:
            raise OSError("no such luck")
        self.reads.append(block)
        return bytearray(block.to_bytes(8, "little") * (BLOCK_SIZE // 8))


class Clock:
    """A clock that stands still until told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def cache_of(buffers: int, clock: Clock | None = None) -> BufferCache:
    return BufferCache(buffers * BUFFER_BYTES, clock=clock or Clock())


def cached(client: BufferClient, block: int) -> bool:
    buffer = client.get(block)
    if buffer is not None:
        client.release(buffer)
    return buffer is not None


def test_a_second_read_needs_no_io() -> None:
    source = Source()
    client = cache_of(4).client(source.fetch)
    first = client.borrow(7)
    assert client.borrow(7) is first
    assert source.reads == [7]
    assert first.words[0] == 7


def test_a_failed_read_leaves_nothing_behind() -> None:
    source = Source()
    cache = cache_of(4)
    client = cache.client(source.fetch)
    source.fail = True
    with pytest.raises(OSError, match="luck"):
        client.borrow(7)
    assert cache.resident_bytes == 0
    source.fail = False
    assert client.borrow(7).words[0] == 7


def test_the_bound_holds_and_the_longest_idle_goes_first() -> None:
    source = Source()
    cache = cache_of(3)
    client = cache.client(source.fetch)
    for block in range(3):
        client.borrow(block)
    client.borrow(3)  # clears all marks, then block 0 is first in line
    assert cache.resident_bytes == 3 * BUFFER_BYTES
    client.borrow(1)
    client.borrow(4)
    assert [block for block in range(5) if cached(client, block)] == [1, 3, 4]


def test_a_held_buffer_stays() -> None:
    client = cache_of(2).client(Source().fetch)
    held = client.read(0)
    for block in range(1, 20):
        client.borrow(block)
    assert client.get(0) is held
    client.release(held)
    client.release(held)
    with pytest.raises(ValueError, match="more often"):
        client.release(held)
    for block in range(1, 20):
        client.borrow(block)
    assert not cached(client, 0)


def test_dirty_buffers_stay_until_written_and_may_exceed_the_bound() -> None:
    source = Source()
    cache = cache_of(2)
    client = cache.client(source.fetch)
    for block in range(10):
        client.new(block).words[0] = 100 + block
    assert cache.resident_bytes == 10 * BUFFER_BYTES
    batch = client.start_writing()
    assert [(block, data[0]) for block, _, data in batch] == [(n, 100 + n) for n in range(10)]
    assert cache.resident_bytes == 10 * BUFFER_BYTES
    client.written()
    client.borrow(50)
    client.borrow(51)
    assert cache.resident_bytes <= 2 * BUFFER_BYTES
    assert source.reads == [50, 51]


def test_what_is_being_written_does_not_change() -> None:
    client = cache_of(4).client(Source().fetch)
    buffer = client.new(1, Kind.NODE)
    buffer.words[0] = 1
    [(block, kind, data)] = client.start_writing()
    client.make_dirty(buffer)
    buffer.words[0] = 2
    assert (block, kind, data[0]) == (1, Kind.NODE, 1)
    client.written()
    [(_, _, data)] = client.start_writing()
    assert data[0] == 2
    client.written()
    assert not client.has_dirty
    assert client.borrow(1) is buffer


def test_one_batch_is_written_at_a_time() -> None:
    client = cache_of(4).client(Source().fetch)
    client.new(1)
    client.start_writing()
    with pytest.raises(RuntimeError, match="still being written"):
        client.start_writing()


def test_an_evicted_buffer_comes_back_when_changed() -> None:
    source = Source()
    client = cache_of(1).client(source.fetch)
    buffer = client.borrow(1)
    for block in range(2, 6):
        client.borrow(block)
    assert not cached(client, 1)
    client.make_dirty(buffer)
    buffer.words[0] = 99
    assert client.borrow(1).words[0] == 99
    assert [block for block, _, _ in client.start_writing()] == [1]


def test_forgetting_drops_changes() -> None:
    cache = cache_of(4)
    client = cache.client(Source().fetch)
    client.new(1)
    client.make_dirty(client.borrow(2))
    client.forget(1)
    assert [block for block, _, _ in client.start_writing()] == [2]
    client.forget_all()
    assert cache.resident_bytes == 0
    assert client.start_writing() == []
    assert client.borrow(2).words[0] == 2


def test_prefetch_reads_ahead_as_far_as_there_is_room() -> None:
    source = Source()
    cache = cache_of(3)
    client = cache.client(source.fetch)
    client.prefetch([5, 6, 5])
    assert source.reads == [5, 6]
    client.prefetch(range(10, 20))
    assert source.reads == [5, 6, 10]
    client.borrow(6)
    assert source.reads == [5, 6, 10]


def test_idle_buffers_age() -> None:
    clock = Clock()
    cache = cache_of(10, clock)
    client = cache.client(Source().fetch)
    client.borrow(1)
    client.borrow(2)
    client.new(3)
    assert cache.age(60) == 0  # clears the marks of their first use
    clock.now = 61
    client.borrow(2)
    assert cache.age(60) == 1
    assert [block for block in (1, 2, 3) if cached(client, block)] == [2, 3]


def test_clients_share_one_bound() -> None:
    cache = cache_of(4)
    old, new = cache.client(Source().fetch), cache.client(Source().fetch)
    for block in range(4):
        old.borrow(block)
    for block in range(20):
        new.borrow(block)
    assert len(old) + len(new) == 4
    assert len(old) == 0
    cache.detach(new)
    assert cache.resident_bytes == 0
    old.borrow(1)
    assert cache.resident_bytes == BUFFER_BYTES


def test_pressure_rises_with_what_is_dirty_or_being_written() -> None:
    cache = BufferCache(100 * BUFFER_BYTES, dirty_limit_bytes=4 * BUFFER_BYTES)
    client = cache.client(Source().fetch)
    seen = []
    for block in range(4):
        client.new(block)
        seen.append(cache.pressure(client))
    assert seen == [Pressure.NONE, Pressure.SOON, Pressure.SOON, Pressure.WAIT]
    client.start_writing()
    assert cache.pressure(client) is Pressure.WAIT
    client.written()
    assert cache.pressure(client) is Pressure.NONE


def test_a_bound_below_one_buffer_is_refused() -> None:
    with pytest.raises(ValueError, match="at least"):
        BufferCache(BUFFER_BYTES - 1)


@given(st.lists(st.tuples(st.sampled_from(["read", "dirty", "write"]), st.integers(0, 12))))
def test_no_change_is_ever_lost(steps: list[tuple[str, int]]) -> None:
    disk: dict[int, int] = {}
    model: dict[int, int] = {}

    def fetch(block: int) -> bytearray:
        return bytearray(disk.get(block, 0).to_bytes(8, "little") * (BLOCK_SIZE // 8))

    cache = cache_of(3)
    client = cache.client(fetch)
    for action, block in steps:
        if action == "read":
            assert client.borrow(block).words[0] == model.get(block, 0)
        elif action == "dirty":
            buffer = client.borrow(block)
            client.make_dirty(buffer)
            buffer.words[0] += 1
            model[block] = model.get(block, 0) + 1
        else:
            for number, _, data in client.start_writing():
                disk[number] = int.from_bytes(data[:8], "little")
            client.written()
            assert cache.resident_bytes <= cache.limit_bytes
    for block in range(13):
        assert client.borrow(block).words[0] == model.get(block, 0)
