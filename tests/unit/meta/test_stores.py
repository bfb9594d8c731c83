"""One contract, every store that can be written."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from thinmeta.errors import Closed, Corrupt, ReadOnlyStore
from thinmeta.format.block import BLOCK_SIZE
from thinmeta.store.lmdb import LmdbStore
from thinmeta.store.memory import MemoryStore
from thinmeta.store.overlay import OverlayStore
from thinmeta.store.protocol import BlockStore


def overlay(_: Path) -> OverlayStore:
    """One over a store that held something once."""
    below = MemoryStore()
    below.commit({7: bytes([5]) * BLOCK_SIZE}, (), {("volumes", b"x"): b"x", ("t", b"b"): b"b"})
    store = OverlayStore(below)
    store.commit({}, {7}, {("volumes", b"x"): None, ("t", b"b"): None})
    return store


Maker = Callable[[Path], BlockStore]
MAKERS: dict[str, Maker] = {
    "overlay": overlay,
    "memory": lambda _: MemoryStore(),
    "lmdb": lambda directory: LmdbStore(directory / "metadata.lmdb", create=True),
}


@pytest.fixture(params=MAKERS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BlockStore]:
    made = MAKERS[request.param](tmp_path)
    yield made
    made.close()


def filled(byte: int) -> bytearray:
    return bytearray([byte]) * BLOCK_SIZE


def test_a_new_store_is_empty(store: BlockStore) -> None:
    assert list(store.block_numbers()) == []
    assert list(store.records("volumes")) == []
    assert store.record("volumes", b"x") is None
    with pytest.raises(Corrupt) as caught:
        store.read(0)
    assert caught.value.kind == "missing"
    assert caught.value.where == "block 0"


def test_an_overlay_leaves_the_store_below_alone() -> None:
    below = MemoryStore()
    below.commit({1: filled(1), 2: filled(2)}, (), {("t", b"a"): b"1", ("t", b"b"): b"2"})
    store = OverlayStore(below)
    assert store.generation == below.generation
    store.commit({2: filled(9), 3: filled(3)}, {1}, {("t", b"a"): None, ("t", b"c"): b"3"})
    assert (list(store.block_numbers()), list(below.block_numbers())) == ([2, 3], [1, 2])
    assert list(store.records("t")) == [(b"b", b"2"), (b"c", b"3")]
    assert list(below.records("t")) == [(b"a", b"1"), (b"b", b"2")]
    assert (store.read(2), below.read(2)) == (filled(9), filled(2))
    assert store.generation == below.generation + 1
    store.close()
    with pytest.raises(Closed):
        below.read(1)


def test_what_is_committed_is_there(store: BlockStore) -> None:
    store.commit({7: filled(1), 0: bytes(filled(2))}, (), {("volumes", b"k"): b"v"})
    assert store.read(7) == filled(1)
    assert store.read(0) == filled(2)
    assert store.record("volumes", b"k") == b"v"
    assert list(store.block_numbers()) == [0, 7]


def test_each_commit_has_the_next_number(store: BlockStore) -> None:
    before = store.generation
    store.commit({7: filled(1)}, (), {})
    with store.snapshot() as view:
        store.commit({7: filled(2)}, (), {("fresh", b"k"): b"v"})
        assert view.generation == before + 1
    store.commit({7: filled(2)}, {7}, {})
    assert store.generation == before + 3


def test_read_hands_out_a_buffer_of_ones_own(store: BlockStore) -> None:
    data = filled(1)
    store.commit({1: data}, (), {})
    data[0] = 9
    first = store.read(1)
    assert isinstance(first, bytearray)
    first[0] = 8
    assert store.read(1) == filled(1)


def test_block_numbers_ascend_as_numbers(store: BlockStore) -> None:
    numbers = [0, 1, 255, 256, 65536, 1 << 32, (1 << 64) - 1]
    store.commit({number: filled(1) for number in reversed(numbers)}, (), {})
    assert list(store.block_numbers()) == numbers


def test_erasing(store: BlockStore) -> None:
    store.commit({1: filled(1), 2: filled(2)}, (), {("volumes", b"k"): b"v"})
    store.commit({}, {1, 99}, {("volumes", b"k"): None, ("nowhere", b"k"): None})
    assert list(store.block_numbers()) == [2]
    assert store.record("volumes", b"k") is None
    assert list(store.records("volumes")) == []


def test_written_wins_over_erased(store: BlockStore) -> None:
    store.commit({1: filled(1)}, {1}, {})
    assert store.read(1) == filled(1)


def test_records_come_in_the_order_of_their_keys(store: BlockStore) -> None:
    keys = [b"b", b"a", b"\xff", b"ab", b"\0"]
    store.commit({}, (), {("t", key): key * 3 for key in keys})
    store.commit({}, (), {("other", b"a"): b""})
    assert list(store.records("t")) == [(key, key * 3) for key in sorted(keys)]
    assert list(store.record_keys("t")) == sorted(keys)
    assert store.record("other", b"a") == b""
    assert {"t", "other"} <= set(store.tables())


def test_a_bad_block_spoils_the_whole_commit(store: BlockStore) -> None:
    store.commit({1: filled(1)}, (), {})
    with pytest.raises(ValueError, match="block 2 has 3 bytes"):
        store.commit({1: filled(9), 2: b"123"}, {1}, {("t", b"k"): b"v"})
    assert store.read(1) == filled(1)
    assert store.record("t", b"k") is None


def test_a_snapshot_stays_as_it_was(store: BlockStore) -> None:
    store.commit({1: filled(1), 2: filled(2)}, (), {("t", b"k"): b"old"})
    with store.snapshot() as view:
        store.commit({1: filled(9), 3: filled(3)}, {2}, {("t", b"k"): b"new", ("u", b"k"): b"u"})
        assert view.read(1) == filled(1)
        assert view.read(2) == filled(2)
        assert list(view.block_numbers()) == [1, 2]
        assert view.record("t", b"k") == b"old"
        assert list(view.records("t")) == [(b"k", b"old")]
        assert view.record("u", b"k") is None
        assert list(view.records("u")) == []
        assert "u" not in view.tables()
        with view.snapshot() as same:
            assert same.read(1) == filled(1)
        with pytest.raises(ReadOnlyStore):
            view.commit({1: filled(5)}, (), {})
    assert store.read(1) == filled(9)
    assert store.record("u", b"k") == b"u"
    with pytest.raises(Closed):
        view.read(1)


def test_iterations_are_of_one_commit(store: BlockStore) -> None:
    store.commit({n: filled(1) for n in range(4)}, (), {("t", b"%d" % n): b"" for n in range(4)})
    numbers, records = store.block_numbers(), store.records("t")
    assert (next(numbers), next(records)) == (0, (b"0", b""))
    store.commit({9: filled(9)}, {1, 2}, {("t", b"1"): None, ("t", b"9"): b""})
    assert list(numbers) == [1, 2, 3]
    assert [key for key, _ in records] == [b"1", b"2", b"3"]


def test_a_closed_store_says_so(store: BlockStore) -> None:
    store.commit({1: filled(1)}, (), {("t", b"k"): b"v"})
    store.close()
    store.close()
    calls: list[Callable[[], object]] = [
        lambda: store.read(1),
        lambda: store.commit({}, (), {}),
        lambda: store.record("t", b"k"),
        lambda: list(store.records("t")),
        lambda: list(store.block_numbers()),
        store.tables,
        store.file_size,
        store.make_room,
    ]
    for call in calls:
        with pytest.raises(Closed):
            call()
    with pytest.raises(Closed), store.snapshot():
        pass


def test_readers_of_other_threads_see_whole_commits(store: BlockStore) -> None:
    store.commit({n: filled(0) for n in range(8)}, (), {})
    stop = threading.Event()
    torn: list[object] = []

    def look() -> None:
        try:
            while not stop.is_set():
                with store.snapshot() as view:
                    seen = {view.read(n)[0] for n in range(8)}
                if len(seen) != 1:
                    torn.append(seen)
        except Exception as error:
            torn.append(error)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for byte in range(1, 60):
        store.commit({n: filled(byte) for n in range(8)}, (), {})
    stop.set()
    for thread in threads:
        thread.join()
    assert torn == []


BLOCK_BYTES = st.binary(max_size=64).map(lambda start: start.ljust(BLOCK_SIZE, b"\0"))
NUMBERS = st.integers(0, 12)
KEYS = st.tuples(st.sampled_from(["volumes", "pool"]), st.sampled_from([b"a", b"b", b"c" * 16]))


@pytest.mark.parametrize("kind", MAKERS)
def test_against_a_model(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    class Machine(RuleBasedStateMachine):
        @initialize()
        def make(self) -> None:
            self.store = MAKERS[kind](tmp_path_factory.mktemp("store"))
            self.blocks: dict[int, bytes] = {}
            self.records: dict[tuple[str, bytes], bytes] = {}

        @rule(
            blocks=st.dictionaries(NUMBERS, BLOCK_BYTES),
            erased=st.sets(NUMBERS),
            records=st.dictionaries(KEYS, st.none() | st.binary(max_size=40)),
        )
        def commit(
            self,
            blocks: dict[int, bytes],
            erased: set[int],
            records: dict[tuple[str, bytes], bytes | None],
        ) -> None:
            self.store.commit(blocks, erased, records)
            for number in erased:
                self.blocks.pop(number, None)
            self.blocks |= blocks
            for at, payload in records.items():
                if payload is None:
                    self.records.pop(at, None)
                else:
                    self.records[at] = payload

        @rule()
        def compare(self) -> None:
            assert {n: bytes(self.store.read(n)) for n in self.store.block_numbers()} == self.blocks
            for table in ("volumes", "pool"):
                wanted = sorted((k, v) for (t, k), v in self.records.items() if t == table)
                assert list(self.store.records(table)) == wanted

        def teardown(self) -> None:
            if hasattr(self, "store"):
                self.store.close()

    run_state_machine_as_test(Machine)
