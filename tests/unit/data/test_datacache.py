"""The data cache: against a model, with faults at each transfer, and with threads that meet."""

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.data.rigs import PATIENCE, finish, spin, threads
from thinpoold.datacache import MIN_BYTES, PIECE_BYTES, PORTION_PIECES, DataCache

ALIGN = 512
SLOTS = MIN_BYTES // PIECE_BYTES


class Memory:
    """A device in memory that insists on alignment, holds transfers up, and fails when told."""

    def __init__(self, size: int) -> None:
        self.bytes = bytearray(size)
        self.calls: list[str] = []
        self.fail_at: int | None = None
        self.reached = threading.Event()
        self.go: dict[str, threading.Event] = {}

    def _call(self, name: str, buffers: Sequence[memoryview], offset: int) -> None:
        assert not offset % ALIGN
        assert all(len(buffer) and not len(buffer) % ALIGN for buffer in buffers)
        self.calls.append(name)
        if len(self.calls) - 1 == self.fail_at:
            raise OSError(5, "told to fail")

    def _wait(self, name: str) -> None:
        if name in self.go:
            self.reached.set()
            assert self.go[name].wait(PATIENCE)

    def read_at(self, buffers: Sequence[memoryview], offset: int) -> None:
        self._call("read", buffers, offset)
        content = bytes(self.bytes[offset : offset + sum(map(len, buffers))])
        self._wait("read")
        for buffer in buffers:
            buffer[:] = content[: len(buffer)]
            content = content[len(buffer) :]

    def write_at(self, buffers: Sequence[memoryview], offset: int) -> None:
        self._call("write", buffers, offset)
        self._wait("write")
        self.bytes[offset : offset + sum(map(len, buffers))] = b"".join(buffers)

    @contextmanager
    def holding(self, name: str) -> Iterator[None]:
        """Transfers of this name wait once they have begun, until the context ends."""
        self.reached.clear()
        self.go[name] = threading.Event()
        yield
        self.go.pop(name).set()


def made(pieces: int = 256) -> tuple[Memory, DataCache]:
    memory = Memory(pieces * PIECE_BYTES)
    memory.bytes[:] = random.Random(1).randbytes(len(memory.bytes))
    return memory, DataCache(memory, MIN_BYTES, ALIGN)


def read(cache: DataCache, offset: int, count: int) -> bytes:
    into = bytearray(count)
    cache.read(memoryview(into), offset)
    return bytes(into)


def verify(memory: Memory, cache: DataCache) -> None:
    """What is cached is what the device holds, and every slot is accounted for."""
    slots = sorted([*cache._free, *cache._slot_of.values()])
    assert slots == list(range(SLOTS))
    for piece, slot in cache._slot_of.items():
        assert cache._piece_of[slot] == piece
        start = piece * PIECE_BYTES
        assert cache._view(slot) == memory.bytes[start : start + PIECE_BYTES]
    assert not cache._loads
    assert not cache._changes


SIZE = 24 * PIECE_BYTES
OFFSETS = st.one_of(
    st.integers(0, SIZE - 1),
    st.integers(0, SIZE // PIECE_BYTES - 1).map(lambda piece: piece * PIECE_BYTES),
    st.integers(0, SIZE // ALIGN - 1).map(lambda sector: sector * ALIGN),
)
COUNTS = st.one_of(
    st.sampled_from([1, ALIGN, 4096, PIECE_BYTES, 3 * PIECE_BYTES]), st.integers(1, SIZE)
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["read", "write", "parts", "change", "prefetch", "age"]), OFFSETS, COUNTS
    ),
    max_size=30,
)


@given(STEPS, st.none() | st.integers(0, 20), st.randoms(use_true_random=False))
def test_against_a_model(
    steps: list[tuple[str, int, int]], fail_at: int | None, rng: random.Random
) -> None:
    memory, cache = made(SIZE // PIECE_BYTES)
    model = bytearray(memory.bytes)
    memory.fail_at = fail_at
    for step, offset, wanted in steps:
        count = min(wanted, SIZE - offset)
        data = rng.randbytes(count)
        before = bytes(memory.bytes)
        try:
            if step == "read":
                assert read(cache, offset, count) == model[offset : offset + count]
            elif step == "write":
                cache.write([data], offset)
            elif step == "parts":
                cut = rng.randint(0, count)
                cache.write([data[:cut], b"", memoryview(data)[cut:]], offset)
            elif step == "change":
                with cache.change(offset, count):
                    memory.bytes[offset : offset + count] = data
            elif step == "prefetch":
                cache.prefetch(offset, count)
            else:
                cache.age()
        except OSError:
            assert memory.fail_at == len(memory.calls) - 1
            assert memory.bytes == before
        else:
            if step in ("write", "parts", "change"):
                model[offset : offset + count] = data
        assert memory.bytes == model
        verify(memory, cache)


def test_each_transfer_fails_in_turn() -> None:
    def scenario(cache: DataCache) -> None:
        cache.write([b"a" * 100], PIECE_BYTES - 50)
        read(cache, 0, 5 * PIECE_BYTES)
        cache.write([b"b" * PIECE_BYTES * 3], 1000)
        read(cache, 0, 70 * PIECE_BYTES)
        cache.write([b"c" * PIECE_BYTES * 70], 700)

    memory, cache = made()
    scenario(cache)
    assert len(memory.calls) > 8
    for fail_at in range(len(memory.calls)):
        memory, cache = made()
        memory.fail_at = fail_at
        with pytest.raises(OSError, match="told"):
            scenario(cache)
        verify(memory, cache)
        assert read(cache, 0, len(memory.bytes)) == memory.bytes


def test_what_was_read_is_not_read_again() -> None:
    memory, cache = made()
    first = read(cache, 5000, 4096)
    assert read(cache, 5000, 4096) == first
    assert read(cache, 0, PIECE_BYTES) == memory.bytes[:PIECE_BYTES]
    assert memory.calls == ["read"]
    # What is missing at both sides is read, and what is there is not.
    read(cache, 0, 3 * PIECE_BYTES)
    assert memory.calls == ["read", "read"]


def test_a_write_is_on_the_device_and_in_the_cache() -> None:
    memory, cache = made()
    cache.write([b"x" * PIECE_BYTES], 3 * PIECE_BYTES)
    assert memory.bytes[3 * PIECE_BYTES : 4 * PIECE_BYTES] == b"x" * PIECE_BYTES
    cache.write([b"y" * ALIGN], 3 * PIECE_BYTES + ALIGN)
    expected = b"x" * ALIGN + b"y" * ALIGN + b"x" * ALIGN
    assert read(cache, 3 * PIECE_BYTES, 3 * ALIGN) == expected
    assert memory.calls == ["write", "write"]


def test_part_of_a_sector_is_written_beside_what_is_there() -> None:
    memory, cache = made()
    before = bytes(memory.bytes)
    cache.write([b"z"], PIECE_BYTES + 5)
    assert memory.calls == ["read", "write"]
    assert memory.bytes == before[: PIECE_BYTES + 5] + b"z" + before[PIECE_BYTES + 6 :]
    cache.write([b"z"], PIECE_BYTES + 7)
    assert memory.calls == ["read", "write", "write"]
    verify(memory, cache)


def test_memory_is_bounded_and_what_is_used_twice_stays() -> None:
    memory, cache = made(SLOTS + 100)
    read(cache, 0, PIECE_BYTES)
    read(cache, 0, PIECE_BYTES)
    for piece in range(1, SLOTS + 100):
        read(cache, piece * PIECE_BYTES, PIECE_BYTES)
        assert cache.resident_bytes <= cache.limit_bytes == MIN_BYTES
    memory.calls.clear()
    read(cache, 0, PIECE_BYTES)
    assert memory.calls == []
    # The run went through in its order.
    read(cache, PIECE_BYTES, PIECE_BYTES)
    assert memory.calls == ["read"]


def test_what_is_idle_for_long_goes() -> None:
    memory, cache = made()
    read(cache, 0, 2 * PIECE_BYTES)
    for _ in range(30):
        cache.age()
        read(cache, 0, 10)
    assert cache.resident_bytes == PIECE_BYTES
    verify(memory, cache)


def test_a_write_during_a_read_is_not_hidden_by_what_was_read() -> None:
    memory, cache = made()
    with threads() as pool:
        with memory.holding("read"):
            reading = pool.submit(read, cache, 0, 2 * PIECE_BYTES)
            assert memory.reached.wait(PATIENCE)
            cache.write([b"new!" * 1024], 512)
        finish(reading)
        assert read(cache, 512, 4096) == b"new!" * 1024
    verify(memory, cache)


def test_a_read_during_a_change_is_not_kept() -> None:
    memory, cache = made()
    with cache.change(0, PIECE_BYTES):
        old = read(cache, 0, 10)
        memory.bytes[:10] = b"0123456789"
    assert old != read(cache, 0, 10) == b"0123456789"
    verify(memory, cache)


def test_one_read_serves_all_who_wait_for_it() -> None:
    memory, cache = made()
    with threads() as pool:
        with memory.holding("read"):
            first = pool.submit(read, cache, 0, PIECE_BYTES)
            assert memory.reached.wait(PATIENCE)
            others = [pool.submit(read, cache, at, 100) for at in (0, 50, 5000)]
            spin(lambda: len(cache._changed._waiters) == 3)  # type: ignore[attr-defined]
        finish(first, *others)
    assert memory.calls == ["read"]


def test_writes_to_one_piece_take_turns() -> None:
    memory, cache = made()
    with threads() as pool:
        with memory.holding("write"):
            first = pool.submit(cache.write, [b"a" * ALIGN], 0)
            assert memory.reached.wait(PATIENCE)
            second = pool.submit(cache.write, [b"b" * ALIGN], 0)
            spin(lambda: len(cache._cells._line) == 2)
            assert memory.calls == ["write"]
        finish(first, second)
    assert memory.bytes[:ALIGN] == b"b" * ALIGN
    verify(memory, cache)


def test_more_requests_than_there_is_memory_for() -> None:
    size = PORTION_PIECES * PIECE_BYTES
    memory, cache = made(24 * PORTION_PIECES)
    with threads(24) as pool:
        with memory.holding("read"):
            reads = [pool.submit(read, cache, at * size, size) for at in range(24)]
            spin(lambda: cache._free == [] and len(cache._changed._waiters) == 8)  # type: ignore[attr-defined]
            writing = pool.submit(cache.write, [b"w" * PIECE_BYTES], 0)
        finish(*reads, writing)
    verify(memory, cache)
    assert memory.bytes[:PIECE_BYTES] == b"w" * PIECE_BYTES


def test_threads_that_read_write_and_forget() -> None:
    """Each thread owns a sector of every piece, and sees in it what it wrote last."""
    count, pieces = 4, 2 * SLOTS
    memory, cache = made(pieces)

    def work(own: int) -> None:
        rng = random.Random(own)
        last: dict[int, bytes] = {}
        for _ in range(600):
            piece = rng.choice((rng.randrange(4), rng.randrange(pieces)))
            at = piece * PIECE_BYTES + own * ALIGN
            what = rng.random()
            if what < 0.4:
                last[at] = rng.randbytes(ALIGN)
                cut = rng.randint(1, ALIGN - 1)
                cache.write([last[at][:cut]], at)
                cache.write([last[at][cut:]], at + cut)
            elif what < 0.5:
                last[at] = rng.randbytes(ALIGN)
                with cache.change(at, ALIGN):
                    memory.bytes[at : at + ALIGN] = last[at]
            else:
                first = max(0, piece - 1) * PIECE_BYTES
                got = read(cache, first, min(3 * PIECE_BYTES, len(memory.bytes) - first))
                if at in last:
                    assert got[at - first : at - first + ALIGN] == last[at]

    with threads(count) as pool:
        finish(*[pool.submit(work, own) for own in range(count)])
    verify(memory, cache)


def test_bounds_that_make_no_sense_are_refused() -> None:
    memory = Memory(PIECE_BYTES)
    for limit, align in ((MIN_BYTES - 1, 512), (MIN_BYTES, 2 * PIECE_BYTES)):
        with pytest.raises(ValueError, match="data cache of"):
            DataCache(memory, limit, align)
