"""The thin metadata against dicts: devices, snapshots, mappings, commits, crashes.

The model of a device is a dict of virtual block -> data block; a data block's owners are the
devices that map it. A crash at any point is the store's last commit, opened anew.
"""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.support.thin import thin_dump
from tests.unit.meta.rigs import complaints, write_image
from thinmeta.btree import Cursor, portions
from thinmeta.btree.tree import MAX_KEY
from thinmeta.buffers import BUFFER_BYTES, Buffer
from thinmeta.errors import AlreadyExists, NoDataSpace, NoMetadataSpace, NotFound, StoreError
from thinmeta.format.block import Kind
from thinmeta.format.values import MAX_DEVICE_ID
from thinmeta.store.memory import MemoryStore
from thinmeta.thin.mappings import Run
from thinmeta.thin.metadata import ThinMetadata
from thinmeta.transaction import FrozenTransaction, TransactionManager

DATA_BLOCKS = 4000
MOST_DEVICES = 6
SMALL_CACHE = 5 * BUFFER_BYTES


@pytest.fixture(autouse=True)
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices of a test are deleted in many portions."""
    monkeypatch.setattr(portions, "PORTION", 300)
    monkeypatch.setattr(portions, "LEFT", 2)


Devices = dict[int, dict[int, int]]
Records = dict[bytes, bytes]


@dataclass
class State:
    """All that a commit keeps."""

    devices: Devices = field(default_factory=dict)
    records: Records = field(default_factory=dict)
    transaction_id: int = 0
    needs_check: bool = False
    data_blocks: int = DATA_BLOCKS

    def copy(self) -> "State":
        devices = {dev: dict(mappings) for dev, mappings in self.devices.items()}
        return State(
            devices, dict(self.records), self.transaction_id, self.needs_check, self.data_blocks
        )

    def owners(self) -> Counter[int]:
        return Counter(b for mappings in self.devices.values() for b in mappings.values())


class Pool:
    """The metadata, its model now and at the last commit, and the data blocks held back."""

    def __init__(self, cache_bytes: int = 1 << 20) -> None:
        self.cache_bytes = cache_bytes
        self.store = MemoryStore()
        self.metadata = ThinMetadata.create(
            self.store, data_block_sectors=128, data_blocks=DATA_BLOCKS, cache_bytes=cache_bytes
        )
        self.now = State()
        self.committed = State()
        self.reserved: list[tuple[int, int]] = []
        self.freed: set[int] = set()
        self.frozen: tuple[FrozenTransaction, State, set[int]] | None = None
        self.durable: list[list[tuple[int, int]]] = []

    # Changes

    def create_thin(self, dev: int) -> None:
        if dev in self.now.devices:
            with pytest.raises(AlreadyExists):
                self.metadata.create_thin(dev)
            return
        self.metadata.create_thin(dev)
        self.now.devices[dev] = {}

    def snapshot(self, origin: int, dev: int) -> None:
        if dev in self.now.devices:
            with pytest.raises(AlreadyExists):
                self.metadata.create_snapshot(dev, origin)
            return
        self.metadata.create_snapshot(dev, origin)
        self.now.devices[dev] = dict(self.now.devices[origin])

    def delete(self, dev: int) -> None:
        with self._freeing():
            self.metadata.delete_device(dev)
            del self.now.devices[dev]

    def delete_some(self, dev: int, steps: int) -> None:
        """Begin to delete a device; it may stop on the way, with fewer mappings."""
        mappings = self.now.devices[dev]
        at: Cursor | None = Cursor()
        for _ in range(steps):
            assert at is not None
            with self._freeing():
                at = self.metadata.delete_some(dev, at)
                if at is None:
                    del self.now.devices[dev]
                    return
                left = {
                    run.begin + n
                    for run in self.metadata.runs(dev, 0, MAX_KEY + 1)
                    for n in range(run.length)
                }
                assert left <= mappings.keys()
                for block in mappings.keys() - left:
                    del mappings[block]

    def write(self, dev: int, begin: int, count: int) -> None:
        """As the data path does: whatever is unmapped or shared gets new blocks."""
        mappings = self.now.devices[dev]
        block, end = begin, begin + count
        while block < end:
            try:
                data, got = self.metadata.reserve(end - block)
            except NoDataSpace:
                assert self.available() == 0
                return
            self._check_reserved(data, got)
            with self._freeing():
                self.metadata.insert(dev, block, data, got)
                mappings.update({block + n: data + n for n in range(got)})
            block += got

    def break_sharing(self, dev: int, begin: int, end: int) -> None:
        """New blocks for shared mappings alone."""
        for run in list(self.metadata.runs(dev, begin, end)):
            if run.shared:
                self.write(dev, run.begin, run.length)

    def remove(self, dev: int, begin: int, end: int) -> None:
        with self._freeing():
            removed = self.metadata.remove(dev, begin, end)
            mappings = self.now.devices[dev]
            gone = [block for block in mappings if begin <= block < end]
            assert removed == len(gone)
            for block in gone:
                del mappings[block]

    def reserve(self, count: int) -> None:
        """Blocks whose data is being written."""
        try:
            begin, got = self.metadata.reserve(count)
        except NoDataSpace:
            assert self.available() == 0
            return
        self._check_reserved(begin, got)
        self.reserved.append((begin, got))

    def reserve_these(self, begin: int, count: int) -> None:
        """Just these blocks, if all of them are free."""
        blocks = set(range(begin, begin + count))
        taken = self.held_back() | set(self.now.owners())
        free = begin + count <= self.now.data_blocks and not blocks & taken
        assert self.metadata.reserve_these(begin, count) == free
        if free:
            self._check_reserved(begin, count)
            self.reserved.append((begin, count))

    def settle(self, dev: int, block: int, pick: int, keep: bool) -> None:
        """Those blocks are written: mapped, or given back."""
        if not self.reserved:
            return
        begin, count = self.reserved.pop(pick % len(self.reserved))
        if not keep:
            self.metadata.unreserve(begin, count)
            return
        with self._freeing():
            self.metadata.insert(dev, block, begin, count)
            self.now.devices[dev].update({block + n: begin + n for n in range(count)})

    def resize(self, blocks: int) -> None:
        self.metadata.resize_data(self.now.data_blocks + blocks)
        self.now.data_blocks += blocks

    def put_record(self, key: bytes, value: bytes | None) -> None:
        self.metadata.put_record("volumes", key, value)
        if value is None:
            self.now.records.pop(key, None)
        else:
            self.now.records[key] = value

    def set_transaction_id(self, number: int) -> None:
        self.metadata.set_transaction_id(number)
        self.now.transaction_id = number

    def set_needs_check(self, needed: bool) -> None:
        self.metadata.set_needs_check(needed)
        self.now.needs_check = needed

    # Commits and crashes

    def freeze(self) -> None:
        if self.frozen is None:
            frozen = self.metadata.freeze()
            self.frozen = (frozen, self.now.copy(), self.freed)
            self.freed = set()

    def finish(self) -> None:
        """The frozen transaction becomes durable, whatever was changed since."""
        if self.frozen is None:
            return
        frozen, state, freed = self.frozen
        self.frozen = None
        self.metadata.write(frozen)
        ranges = self.metadata.committed(frozen)
        self.committed = state
        assert {b for begin, count in ranges for b in range(begin, begin + count)} == freed
        if ranges:
            self.durable.append(ranges)

    def commit(self) -> None:
        self.finish()
        self.freeze()
        self.finish()

    def release(self) -> None:
        if self.durable:
            self.metadata.release(self.durable.pop(0))

    def fail(self, error: Exception) -> None:
        """A commit that fails: everything since the last one is dropped, and all goes on."""
        self.finish()
        self.freeze()
        assert self.frozen is not None
        frozen, _, _ = self.frozen
        self.store.fail_next_commit = error
        with pytest.raises(type(error)):
            self.metadata.write(frozen)
        self.abandon()

    def abandon(self) -> None:
        self.metadata.abandon()
        self.frozen = None
        self.freed.clear()
        self.now = self.committed.copy()

    def crash(self) -> None:
        """The process is gone, with all that was reserved or withheld in memory."""
        self.frozen = None
        self.freed.clear()
        self.durable.clear()
        self.reserved.clear()
        self.now = self.committed.copy()
        self.metadata = ThinMetadata.open(self.store, cache_bytes=self.cache_bytes)

    # Comparisons

    def held_back(self) -> set[int]:
        out = set(self.freed)
        if self.frozen is not None:
            out |= self.frozen[2]
        for begin, count in [*self.reserved, *(r for ranges in self.durable for r in ranges)]:
            out |= set(range(begin, begin + count))
        return out

    def available(self) -> int:
        return self.now.data_blocks - len(self.now.owners()) - len(self.held_back())

    def _check_reserved(self, begin: int, count: int) -> None:
        blocks = set(range(begin, begin + count))
        assert not blocks & self.held_back(), "handed out while held back"
        assert not blocks & set(self.now.owners()), "handed out while mapped"
        # Not even the last commit may point at it: a crash would show another's data.
        assert not blocks & set(self.committed.owners()), "handed out while the last commit has it"

    class _Freeing:
        def __init__(self, pool: "Pool") -> None:
            self.pool = pool
            self.before = set(pool.now.owners())

        def __enter__(self) -> None:
            pass

        def __exit__(self, *_: object) -> None:
            self.pool.freed |= self.before - set(self.pool.now.owners())

    def _freeing(self) -> "Pool._Freeing":
        """Notes which data blocks lose their last owner."""
        return Pool._Freeing(self)

    def compare_device(self, dev: int, begin: int, end: int) -> None:
        mappings, owners = self.now.devices[dev], self.now.owners()
        expected = [
            (block, data, owners[data] > 1)
            for block, data in sorted(mappings.items())
            if begin <= block < end
        ]
        found = [
            (run.begin + n, run.data_begin + n, run.shared)
            for run in self.metadata.runs(dev, begin, end)
            for n in range(run.length)
        ]
        assert found == expected
        assert not (expected and self.metadata.lacks(dev, begin, end))
        for block, data, shared in expected[:3]:
            mapping = self.metadata.lookup(dev, block)
            assert mapping is not None
            assert (mapping.data_block, mapping.shared) == (data, shared)
        for block in (begin, end):
            assert (self.metadata.lookup(dev, block) is None) == (block not in mappings)

    def compare(self) -> None:
        """Everything the metadata says of itself."""
        now, metadata = self.now, self.metadata
        owners = now.owners()
        assert metadata.device_ids() == sorted(now.devices)
        for dev, mappings in now.devices.items():
            assert metadata.details(dev).mapped_blocks == len(mappings)
            self.compare_device(dev, 0, 1 << 40)
            exclusive = sum(owners[data] == 1 for data in mappings.values())
            assert metadata.exclusive_blocks(dev) == exclusive
        assert metadata.data_blocks == now.data_blocks
        assert metadata.data_used == len(owners)
        assert metadata.data_free == self.available()
        assert metadata.transaction_id == now.transaction_id
        assert metadata.needs_check == now.needs_check
        assert dict(metadata.records("volumes")) == now.records

    def check(self, image: Path) -> None:
        """Commits; then the kernel's checker is silent and its dump shows the model."""
        self.commit()
        self.compare()
        needs_check, self.now.needs_check = self.now.needs_check, False
        if needs_check:  # thin_check would refuse to say more.
            self.set_needs_check(False)
            self.commit()
        assert complaints(self.store, image) == []
        dumped = thin_dump(write_image(self.store, image))
        assert {dev: d.mappings for dev, d in dumped.devices.items()} == self.now.devices


blocks = st.one_of(st.integers(0, 600), st.integers(0, (1 << 40) - 2000))
counts = st.one_of(st.integers(1, 4), st.integers(1, 700))
picks = st.integers(0, 1000)


def machine_for(image: Path) -> type[RuleBasedStateMachine]:
    """A state machine class that keeps its exports in `image`."""

    class ThinMachine(RuleBasedStateMachine):
        pool: Pool

        @initialize(cache=st.sampled_from([SMALL_CACHE, 1 << 20]))
        def begin(self, cache: int) -> None:
            self.pool = Pool(cache)
            self.pool.create_thin(0)
            self.pool.commit()

        def dev(self, number: int) -> int:
            devices = sorted(self.pool.now.devices)
            return devices[number % len(devices)]

        def some(self) -> bool:
            return bool(self.pool.now.devices)

        @rule(dev=st.sampled_from([0, 1, 2, 7, (1 << 24) - 1]))
        def create_thin(self, dev: int) -> None:
            self.pool.create_thin(dev)

        @precondition(some)
        @rule(pick=picks)
        def snapshot(self, pick: int) -> None:
            if len(self.pool.now.devices) < MOST_DEVICES:
                self.pool.snapshot(self.dev(pick), self.pool.metadata.new_device_id())

        @precondition(some)
        @rule(pick=picks)
        def delete(self, pick: int) -> None:
            self.pool.delete(self.dev(pick))

        @precondition(some)
        @rule(pick=picks, steps=st.sampled_from([1, 2, 1000]))
        def delete_some(self, pick: int, steps: int) -> None:
            self.pool.delete_some(self.dev(pick), steps)

        @precondition(some)
        @rule(pick=picks, begin=blocks, count=counts)
        def write(self, pick: int, begin: int, count: int) -> None:
            self.pool.write(self.dev(pick), begin, count)

        @precondition(some)
        @rule(pick=picks, begin=blocks, count=counts)
        def break_sharing(self, pick: int, begin: int, count: int) -> None:
            self.pool.break_sharing(self.dev(pick), begin, begin + count)

        @precondition(some)
        @rule(pick=picks, begin=blocks, count=counts)
        def remove(self, pick: int, begin: int, count: int) -> None:
            self.pool.remove(self.dev(pick), begin, begin + count)

        @rule(count=counts)
        def reserve(self, count: int) -> None:
            self.pool.reserve(count)

        @rule(begin=st.integers(0, DATA_BLOCKS + 10), count=st.integers(1, 40))
        def reserve_these(self, begin: int, count: int) -> None:
            self.pool.reserve_these(begin, count)

        @precondition(some)
        @rule(pick=picks, block=blocks, which=picks, keep=st.booleans())
        def settle(self, pick: int, block: int, which: int, keep: bool) -> None:
            self.pool.settle(self.dev(pick), block, which, keep)

        @precondition(some)
        @rule(pick=picks, begin=blocks, count=counts)
        def look(self, pick: int, begin: int, count: int) -> None:
            self.pool.compare_device(self.dev(pick), begin, begin + count)

        @rule(key=st.binary(min_size=1, max_size=3), value=st.none() | st.binary(max_size=40))
        def put_record(self, key: bytes, value: bytes | None) -> None:
            self.pool.put_record(key, value)

        @rule(number=st.integers(0, (1 << 64) - 1), needed=st.booleans())
        def set_facts(self, number: int, needed: bool) -> None:
            self.pool.set_transaction_id(number)
            self.pool.set_needs_check(needed)

        @rule(count=st.integers(1, 20_000))
        def resize(self, count: int) -> None:
            if self.pool.now.data_blocks < 40_000:
                self.pool.resize(count)

        @rule()
        def freeze(self) -> None:
            self.pool.freeze()

        @rule()
        def finish(self) -> None:
            self.pool.finish()

        @rule()
        def commit(self) -> None:
            self.pool.commit()

        @rule()
        def release(self) -> None:
            self.pool.release()

        @rule(error=st.sampled_from([NoMetadataSpace("full"), StoreError(5, "EIO")]))
        def fail(self, error: Exception) -> None:
            self.pool.fail(error)

        @rule()
        def abandon(self) -> None:
            self.pool.abandon()

        @rule()
        def crash(self) -> None:
            self.pool.crash()

        @rule()
        def compare(self) -> None:
            self.pool.compare()

        def teardown(self) -> None:
            if hasattr(self, "pool"):
                self.pool.check(image)

    return ThinMachine


def test_thin_metadata_equals_dicts(tmp_path: Path) -> None:
    run_state_machine_as_test(
        machine_for(tmp_path / "image"),
        settings=settings(max_examples=40, stateful_step_count=40),
    )


def draws(rng: random.Random, pool: Pool) -> Iterator[str]:
    """Operations with weights, and what they are called."""
    weights = {
        "write": 40,
        "break": 8,
        "remove": 14,
        "reserve": 4,
        "reserve these": 3,
        "settle": 4,
        "look": 6,
        "snapshot": 4,
        "delete": 1,
        "delete some": 2,
        "create": 1,
        "record": 2,
        "commit": 5,
        "freeze": 3,
        "finish": 3,
        "release": 6,
        "fail": 1,
        "abandon": 1,
        "crash": 1,
    }
    while True:
        yield rng.choices(list(weights), list(weights.values()))[0]


def random_run(seed: int, steps: int, check_each: int, image: Path) -> Pool:
    rng = random.Random(seed)
    pool = Pool(cache_bytes=rng.choice((SMALL_CACHE, 200_000, 4 << 20)))
    names = draws(rng, pool)
    for step in range(1, steps + 1):
        kind = next(names)
        if not pool.now.devices:
            pool.create_thin(rng.randrange(9))
        dev = rng.choice(sorted(pool.now.devices))
        begin, count = rng.randrange(1500), rng.choice((1, 1, 2, 5, 60, 300))
        if kind == "write":
            pool.write(dev, begin, count)
        elif kind == "break":
            pool.break_sharing(dev, begin, begin + count)
        elif kind == "remove":
            pool.remove(dev, begin, begin + count)
        elif kind == "reserve":
            pool.reserve(count)
        elif kind == "reserve these":
            pool.reserve_these(rng.randrange(pool.now.data_blocks + 10), rng.choice((1, 1, 3, 40)))
        elif kind == "settle":
            pool.settle(dev, begin, rng.getrandbits(20), rng.random() < 0.7)
        elif kind == "look":
            pool.compare_device(dev, begin, begin + count)
        elif kind == "snapshot" and len(pool.now.devices) < MOST_DEVICES:
            pool.snapshot(dev, pool.metadata.new_device_id())
        elif kind == "delete":
            pool.delete(dev)
        elif kind == "delete some":
            pool.delete_some(dev, rng.choice((1, 2, 1000)))
        elif kind == "create" and len(pool.now.devices) < MOST_DEVICES:
            pool.create_thin(rng.randrange(1 << 24))
        elif kind == "record":
            pool.put_record(rng.randbytes(1), rng.randbytes(9) if rng.random() < 0.7 else None)
        elif kind == "fail":
            pool.fail(NoMetadataSpace("full"))
        elif kind in ("commit", "freeze", "finish", "release", "abandon", "crash"):
            getattr(pool, kind)()
        if step % check_each == 0:
            pool.check(image)
    pool.check(image)
    return pool


def test_random_run(seed: int, tmp_path: Path) -> None:
    random_run(seed, 1200, 200, tmp_path / "image")


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(5))
def test_long_random_run(seed: int, turn: int, tmp_path: Path) -> None:
    random_run(seed + turn, 20_000, 1000, tmp_path / "image")


def test_deleting_every_device_frees_every_block(seed: int, tmp_path: Path) -> None:
    pool = random_run(seed, 600, 300, tmp_path / "image")
    empty = Pool().metadata.metadata_used
    while pool.reserved:
        pool.settle(0, 0, 0, keep=False)
    for dev in list(pool.now.devices):
        pool.delete_some(dev, 1000)
    pool.check(tmp_path / "image")
    while pool.durable:
        pool.release()
    assert pool.metadata.data_used == 0
    assert pool.metadata.data_free == pool.now.data_blocks
    assert pool.metadata.metadata_used == empty


def test_the_id_of_a_removed_device_is_not_given_again() -> None:
    metadata = Pool().metadata
    for expected in (0, 1):
        assert metadata.new_device_id() == expected
        metadata.create_thin(expected)
    metadata.delete_device(1)
    assert metadata.new_device_id() == 2
    metadata.commit()
    metadata.create_thin((1 << 24) - 1)
    assert metadata.new_device_id() == 1


def test_free_ids_are_found_below_the_highest_one_once_that_is_in_use() -> None:
    metadata = Pool().metadata
    metadata.create_thin(MAX_DEVICE_ID)
    for expected in (0, 1, 2):
        assert metadata.new_device_id() == expected
        metadata.create_thin(expected)
    metadata.delete_device(1)
    metadata.create_thin(3)
    assert [metadata.new_device_id(), metadata.device_ids()] == [1, [0, 2, 3, MAX_DEVICE_ID]]


@pytest.mark.parametrize("highest", [False, True], ids=["ascending", "below-the-highest"])
def test_a_new_device_costs_no_more_among_many(
    highest: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = [0]
    read = TransactionManager.read

    def counted(self: TransactionManager, block: int, kind: Kind) -> Buffer:
        reads[0] += 1
        return read(self, block, kind)

    monkeypatch.setattr(TransactionManager, "read", counted)
    metadata = Pool().metadata
    if highest:
        metadata.create_thin(MAX_DEVICE_ID)
    costs = []
    for upto in (100, 2000):
        while metadata.new_device_id() < upto:
            metadata.create_thin(metadata.new_device_id())
        before = reads[0]
        metadata.check_room(devices=1, snapshots=0)
        metadata.create_thin(metadata.new_device_id())
        costs.append(reads[0] - before)
    # A tree is a level or two higher by then; of 2,000 devices it has 20 leaves.
    assert costs[1] <= costs[0] + 8


def test_what_is_not_there_is_not_found() -> None:
    metadata = Pool().metadata
    for call in (metadata.details, metadata.delete_device, metadata.exclusive_blocks):
        with pytest.raises(NotFound):
            call(5)
    with pytest.raises(NotFound):
        metadata.delete_some(5, Cursor())
    with pytest.raises(NotFound):
        metadata.lookup(5, 0)
    with pytest.raises(NotFound):
        metadata.create_snapshot(6, 5)
    with pytest.raises(NotFound):
        metadata.insert(5, 0, 0)
    with pytest.raises(NotFound):
        metadata.remove(5, 0, 1)


def test_a_reader_of_a_snapshot_sees_one_commit() -> None:
    """While it reads, the writer goes on and commits."""
    pool = Pool()
    pool.create_thin(1)
    pool.write(1, 0, 500)
    pool.commit()
    with pool.store.snapshot() as view:
        reader = ThinMetadata.open(view)
        before = list(reader.runs(1, 0, 1000))
        pool.remove(1, 0, 500)
        pool.commit()
        pool.release()
        pool.write(1, 0, 100)
        pool.commit()
        assert list(reader.runs(1, 0, 1000)) == before
        assert reader.data_used == 500


def test_runs_are_as_long_as_they_can_be() -> None:
    """One answer for what is consecutive on both sides, over the edges of leaves."""
    pool = Pool()
    pool.create_thin(1)
    pool.write(1, 0, 2000)
    runs = list(pool.metadata.runs(1, 0, 5000))
    joined = [list(group) for _, group in groupby(enumerate(runs), lambda item: item[1].data_begin)]
    assert sum(run.length for run in runs) == 2000
    assert len(joined) == len(runs)
    assert all(isinstance(run, Run) for run in runs)
