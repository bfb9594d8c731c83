"""Space maps against a plain list of counts, and what may be handed out when."""

import random
import struct
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.support import audit
from tests.unit.meta.rigs import Rig
from thinmeta.errors import Corrupt, NoDataSpace
from thinmeta.spacemap import DataSpaceMap

picks = st.integers(0, 1 << 30)


@dataclass
class Blocks:
    """A data space map and the list it must equal."""

    rig: Rig = field(default_factory=Rig)
    counts: list[int] = field(default_factory=list)
    reserved: list[tuple[int, int]] = field(default_factory=list)
    freed: set[int] = field(default_factory=set)
    durable: list[list[tuple[int, int]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.map = DataSpaceMap(self.rig.tm, None)

    def grow(self, blocks: int) -> None:
        self.map.resize(len(self.counts) + blocks)
        self.counts += [0] * blocks

    def withheld(self) -> set[int]:
        """What is not counted and yet not free."""
        out = set(self.freed)
        for begin, count in self.reserved:
            out |= set(range(begin, begin + count))
        for ranges in self.durable:
            for begin, count in ranges:
                out |= set(range(begin, begin + count))
        return out

    def available(self) -> int:
        return self.counts.count(0) - len(self.withheld())

    def reserve(self, count: int) -> None:
        try:
            begin, got = self.map.reserve(count)
        except NoDataSpace:
            assert self.available() == 0
            return
        assert 0 < got <= count
        assert not any(self.counts[begin : begin + got])
        assert not self.withheld() & set(range(begin, begin + got))
        self.reserved.append((begin, got))

    def claim(self, pick: int) -> None:
        if self.reserved:
            begin, count = self.reserved.pop(pick % len(self.reserved))
            self.map.claim(begin, count)
            for block in range(begin, begin + count):
                self.counts[block] = 1

    def unreserve(self, pick: int) -> None:
        if self.reserved:
            self.map.unreserve(*self.reserved.pop(pick % len(self.reserved)))

    def counted_run(self, pick: int, most: int) -> tuple[int, int] | None:
        """A run of blocks that are all counted."""
        counted = [block for block, count in enumerate(self.counts) if count]
        if not counted:
            return None
        begin = end = counted[pick % len(counted)]
        while end < len(self.counts) and self.counts[end] and end - begin < most:
            end += 1
        return begin, end

    def increment(self, pick: int, most: int) -> None:
        run = self.counted_run(pick, most)
        if run:
            self.map.increment(*run)
            for block in range(*run):
                self.counts[block] += 1

    def decrement(self, pick: int, most: int) -> None:
        run = self.counted_run(pick, most)
        if run:
            self.map.decrement(*run)
            for block in range(*run):
                self.counts[block] -= 1
                if self.counts[block] == 0:
                    self.freed.add(block)

    def commit(self) -> None:
        self.map.save()
        self.map.withheld.freeze()
        self.rig.commit()
        ranges = self.map.withheld.committed()
        blocks = {block for begin, count in ranges for block in range(begin, begin + count)}
        assert blocks == self.freed
        self.freed.clear()
        if ranges:
            self.durable.append(ranges)

    def release(self) -> None:
        if self.durable:
            self.map.release(self.durable.pop(0))

    def compare(self, begin: int, end: int) -> None:
        assert [self.map.count(block) for block in range(begin, end)] == self.counts[begin:end]
        assert self.map.once_counted(begin, end) == self.counts[begin:end].count(1)
        assert self.map.nr_used == len(self.counts) - self.counts.count(0)
        assert self.map.nr_available == self.available()
        assert self.map.withheld.freed == bool(self.freed or self.durable)

    def check(self) -> None:
        """Commits, and reads every count from the store without the library."""
        self.commit()
        root = self.map.root()
        walked = audit.Trees(self.rig.store.read)
        entries = [value for _, value in walked.walk(root.bitmap_root, 16)]
        overflow = {
            key: struct.unpack("<I", value)[0] for key, value in walked.walk(root.ref_count_root, 4)
        }
        counts, bitmaps = audit.space_map_counts(
            self.rig.store.read, root.nr_blocks, entries, overflow
        )
        assert counts == self.counts
        assert root.nr_allocated == len(counts) - counts.count(0)
        self.rig.audit(walked, set(bitmaps))


class SpaceMachine(RuleBasedStateMachine):
    """Any operations in any order."""

    blocks: Blocks

    @initialize(size=st.sampled_from([1, 100, 16320, 16321, 40_000]))
    def begin(self, size: int) -> None:
        self.blocks = Blocks()
        self.blocks.grow(size)

    @rule(count=st.one_of(st.integers(1, 5), st.integers(1, 20_000)))
    def reserve(self, count: int) -> None:
        self.blocks.reserve(count)

    @rule(pick=picks)
    def claim(self, pick: int) -> None:
        self.blocks.claim(pick)

    @rule(count=st.one_of(st.integers(1, 5), st.integers(1, 20_000)))
    def take(self, count: int) -> None:
        before = len(self.blocks.reserved)
        self.blocks.reserve(count)
        if len(self.blocks.reserved) > before:
            self.blocks.claim(before)

    @rule(pick=picks)
    def unreserve(self, pick: int) -> None:
        self.blocks.unreserve(pick)

    @rule(pick=picks, most=st.sampled_from([1, 1, 7, 5000]))
    def increment(self, pick: int, most: int) -> None:
        self.blocks.increment(pick, most)

    @rule(pick=picks, most=st.sampled_from([1, 1, 7, 5000]))
    def decrement(self, pick: int, most: int) -> None:
        self.blocks.decrement(pick, most)

    @rule(blocks=st.one_of(st.integers(1, 100), st.integers(1, 17_000)))
    def grow(self, blocks: int) -> None:
        if len(self.blocks.counts) < 80_000:
            self.blocks.grow(blocks)

    @rule()
    def commit(self) -> None:
        self.blocks.commit()

    @rule()
    def release(self) -> None:
        self.blocks.release()

    @rule(pick=picks, length=st.integers(1, 200))
    def compare(self, pick: int, length: int) -> None:
        begin = pick % len(self.blocks.counts)
        self.blocks.compare(begin, min(begin + length, len(self.blocks.counts)))

    def teardown(self) -> None:
        if hasattr(self, "blocks"):
            self.blocks.check()


def test_space_map_equals_a_list() -> None:
    run_state_machine_as_test(
        SpaceMachine, settings=settings(max_examples=40, stateful_step_count=30)
    )


def random_run(seed: int, size: int, steps: int, check_each: int) -> None:
    rng = random.Random(seed)
    blocks = Blocks()
    blocks.grow(size)
    for step in range(steps):
        kind = rng.random()
        pick = rng.getrandbits(30)
        most = rng.choice((1, 1, 1, 3, 40))
        if kind < 0.2:
            blocks.reserve(rng.choice((1, 1, 3, 60)))
        elif kind < 0.4:
            blocks.claim(pick)
        elif kind < 0.42:
            blocks.unreserve(pick)
        elif kind < 0.65:
            blocks.increment(pick, most)
        elif kind < 0.96:
            blocks.decrement(pick, most)
        elif kind < 0.98:
            blocks.commit()
        elif kind < 0.995:
            blocks.release()
        elif size < 60_000:
            blocks.grow(rng.randrange(1, 50))
        if step % check_each == 0:
            blocks.compare(0, min(300, len(blocks.counts)))
            blocks.check()
    blocks.check()


def test_random_run(seed: int) -> None:
    random_run(seed, 200, 4000, 500)


@pytest.mark.slow
@pytest.mark.parametrize("size", [50, 1000, 33_000])
def test_long_random_run(seed: int, size: int) -> None:
    random_run(seed, size, 40_000 if size < 10_000 else 4000, 2000)


def test_metadata_space_map_grows_by_bitmaps() -> None:
    """The map that counts itself: over two bitmaps' worth of blocks, and back."""
    rig = Rig(cache_blocks=5000)
    taken = [rig.counts.new_block() for _ in range(2 * audit.ENTRIES_PER_BITMAP)]
    assert len(set(taken)) == len(taken)
    assert rig.counts.nr_blocks == 3 * audit.ENTRIES_PER_BITMAP
    for block in taken:
        rig.tm.decrement(block)
    rig.commit()
    rig.audit(audit.Trees(rig.store.read), set())
    # Freed by a durable commit, they serve again before the map grows any further.
    for _ in range(2 * audit.ENTRIES_PER_BITMAP):
        rig.counts.new_block()
    assert rig.counts.nr_blocks == 3 * audit.ENTRIES_PER_BITMAP


def test_high_counts_go_up_and_down() -> None:
    blocks = Blocks()
    blocks.grow(600)
    blocks.reserve(600)
    blocks.claim(0)
    for _ in range(5):
        blocks.increment(0, 600)
    blocks.check()
    for _ in range(6):
        blocks.compare(0, 600)
        blocks.decrement(0, 600)
    blocks.check()
    assert blocks.map.nr_allocated == 0


def test_what_nobody_has_cannot_be_freed() -> None:
    blocks = Blocks()
    blocks.grow(10)
    with pytest.raises(Corrupt):
        blocks.map.decrement(3, 4)
    with pytest.raises(Corrupt):
        blocks.map.count(10)
