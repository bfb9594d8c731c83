"""The checker: silent on what is sound, and exact about what is not."""

import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.tools import run
from tests.unit.meta.workbench import (
    DATA_BLOCKS,
    Bench,
    copied,
    load,
    make_pool,
    restore,
    restored_devices,
    set_word,
)
from thinmeta.check import CheckResult, Problem, check
from thinmeta.check.counts import ReferenceCounts, count_at, entries_of, used_pairs
from thinmeta.check.result import MAX_PROBLEMS, Findings
from thinmeta.errors import Closed, StoreError
from thinmeta.format import bitmap, index, node
from thinmeta.format.block import BLOCK_SIZE, Kind, seal
from thinmeta.format.superblock import SUPERBLOCK_BLOCK
from thinmeta.format.values import DeviceDetails, pack_mapping
from thinmeta.store.flat import FlatStore
from thinmeta.store.memory import MemoryStore


@pytest.fixture(scope="module")
def pool() -> MemoryStore:
    """Never changed: `bench` works on a copy."""
    store = MemoryStore()
    make_pool(store)
    return store


@pytest.fixture
def bench(pool: MemoryStore) -> Bench:
    return Bench(copied(pool))


def problems(result: CheckResult) -> list[tuple[str, str]]:
    return [(problem.kind, problem.where) for problem in result.errors]


def only(result: CheckResult) -> Problem:
    assert len(result.errors) == 1, [str(error) for error in result.errors]
    assert not result.ok
    return result.errors[0]


# --- sound metadata ------------------------------------------------------------------------------


def test_silent_on_a_pool_of_ours(pool: MemoryStore) -> None:
    result = check(pool)
    assert result.errors == []
    assert result.ok
    assert result.complete
    assert result.devices == 7
    assert result.data_blocks == DATA_BLOCKS
    assert (result.leaked_blocks, result.leaked_metadata_blocks) == (0, 0)
    assert result.metadata_used == len(list(pool.block_numbers()))
    bench = Bench(pool)
    assert result.mappings == sum(
        len(parsed["keys"])
        for root in bench.device_roots().values()
        for _, parsed in bench.leaves(root)
    )


def test_silent_on_an_empty_pool() -> None:
    from thinmeta.thin import ThinMetadata

    store = MemoryStore()
    ThinMetadata.create(store, data_block_sectors=2048, data_blocks=1)
    result = check(store)
    assert result.errors == []
    assert (result.devices, result.mappings, result.data_blocks) == (0, 0, 1)


@pytest.mark.parametrize("devices", ["", restored_devices()], ids=["empty", "three"])
def test_silent_on_metadata_of_the_kernels_tools(tmp_path: Path, devices: str) -> None:
    store = FlatStore(restore(tmp_path, devices))
    result = check(store, foreign=True)
    store.close()
    assert result.errors == []
    assert result.complete
    assert result.devices == devices.count("<device ")
    assert result.data_blocks == 20000
    assert result.transaction_id == 7


def test_sums_that_hide_free_blocks_are_a_fault_of_ours_alone(tmp_path: Path) -> None:
    """thin_restore frees a metadata block that it leaves counted in sum and index.

    That of version 1 does not, and nothing is wrong with what it writes.
    """
    store = load(restore(tmp_path, ""))
    assert check(store, foreign=True).ok
    version = run("thin_restore", "--version").stdout.split()[-1]
    wrong = {"index", "count", "orphan"} if version.startswith("0.") else set()
    assert {kind for kind, _ in problems(check(store))} == wrong


def test_silent_on_a_metadata_snapshot(bench: Bench) -> None:
    """What `reserve_metadata_snap` of the kernel leaves: a superblock that holds the roots."""
    superblock = bench.superblock
    held = bench.store.read(SUPERBLOCK_BLOCK)
    held[64:320] = bytes(256)
    number = 9000
    seal(held, Kind.SUPERBLOCK, number)
    bench.put(number, held)
    bench.put_superblock(replace(superblock, held_root=number))
    recount(bench, {number: 1, superblock.mapping_root: 2, superblock.details_root: 2})
    assert check(bench.store).errors == []
    bench.flip(number, 12345)
    assert only(check(bench.store)).where == f"block {number}"


def recount(bench: Bench, counts: dict[int, int]) -> None:
    """Set counts of metadata blocks in bitmap and index, as a space map would."""
    [entry] = bench.metadata_index()
    before = bench.store.read(entry.blocknr)
    gained = sum((bitmap.get(before, block) == 0) for block in counts)

    def change(data: bytearray) -> None:
        for block, count in counts.items():
            bitmap.put(data, block, count)

    bench.edit(entry.blocknr, change, Kind.BITMAP)
    new = replace(entry, nr_free=entry.nr_free - gained, none_free_before=0)
    bench.edit(
        bench.superblock.metadata_space_map.bitmap_root,
        lambda data: data.__setitem__(slice(16, 32), new.pack()),
        Kind.INDEX,
    )
    root = bench.superblock.metadata_space_map
    root = replace(root, nr_allocated=root.nr_allocated + gained)
    bench.put_superblock(replace(bench.superblock, metadata_space_map=root))


def test_progress_ends_with_everything_done(pool: MemoryStore) -> None:
    told: list[tuple[int, int]] = []
    check(pool, progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] == check(pool).metadata_used
    assert told == sorted(told)


def test_result_as_json(bench: Bench) -> None:
    assert check(bench.store).to_json()["ok"] is True
    bench.flip(SUPERBLOCK_BLOCK, 999)
    told = check(bench.store).to_json()
    assert told["ok"] is False
    assert told["leaked_blocks"] == 0
    assert told["errors"][0].keys() == {"kind", "where", "message"}


# --- damage that a checksum tells ----------------------------------------------------------------


def test_a_flipped_bit_in_any_block_is_told_with_its_place(pool: MemoryStore, seed: int) -> None:
    rnd = random.Random(seed)
    for block, name in Bench(pool).kinds().items():
        bench = Bench(copied(pool))
        bit = rnd.randrange(BLOCK_SIZE * 8)
        bench.flip(block, bit)
        result = check(bench.store)
        found = only(result)
        assert (found.kind, found.where) == ("checksum", f"block {block}"), f"bit {bit}"
        assert f"lost: {name}" in found.message
        assert not result.complete or "bitmap" in name


def test_every_loss_of_a_shared_node_is_told(bench: Bench) -> None:
    roots = bench.device_roots()
    below = {device: dict(bench.leaves(root)) for device, root in roots.items()}
    block = next(b for b in below[2] if b in below[6])
    keys = below[2][block]["keys"]
    bench.flip(block, 4000)
    message = only(check(bench.store)).message
    for device in (2, 6):
        assert f"mappings of device {device}, virtual blocks {keys[0]}.." in message


def test_the_key_range_that_is_lost_is_told(bench: Bench) -> None:
    leaves = bench.leaves(bench.device_roots()[8])
    (_, _), (block, parsed), (_, after) = leaves[:3]
    bench.flip(block, 77)
    assert only(check(bench.store)).message.endswith(
        f"virtual blocks {parsed['keys'][0]}..{after['keys'][0] - 1}"
    )


def test_a_missing_block_is_told(bench: Bench) -> None:
    block, _ = bench.leaves(bench.device_roots()[8])[0]
    bench.store.commit({}, {block}, {})
    assert only(check(bench.store)).kind == "missing"


def test_a_block_at_a_wrong_place_is_told(bench: Bench) -> None:
    (one, _), (other, _) = bench.leaves(bench.device_roots()[8])[:2]
    bench.put(other, bench.store.read(one))
    found = only(check(bench.store))
    assert (found.kind, found.where) == ("blocknr", f"block {other}")


def test_a_block_of_another_kind_is_told(bench: Bench) -> None:
    block, _ = bench.leaves(bench.device_roots()[8])[0]
    bench.edit(block, lambda data: None, Kind.BITMAP)
    assert "is a bitmap, not a node" in only(check(bench.store)).message


def test_the_rest_is_still_looked_at(bench: Bench) -> None:
    roots = bench.device_roots()
    first, second = bench.leaves(roots[8])[0][0], bench.data_index()[1].blocknr
    bench.flip(first, 800)
    bench.flip(second, 800)
    result = check(bench.store)
    assert {where for _, where in problems(result)} == {f"block {first}", f"block {second}"}
    assert result.devices == 7


# --- damage that no checksum tells ---------------------------------------------------------------

Change = Callable[[bytearray], None]


def a_leaf(bench: Bench) -> tuple[int, list[int]]:
    """A leaf of device 8, whose nodes nobody shares; not its first."""
    block, parsed = bench.leaves(bench.device_roots()[8])[2]
    return block, list(parsed["keys"])


def swap_keys(data: bytearray) -> None:
    data[40:56] = data[48:56] + data[40:48]


def header(offset: int, value: int) -> Change:
    return lambda data: struct.pack_into("<I", data, offset, value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (header(4, 3), "flags 0x3"),
        (header(4, 0), "flags 0x0"),
        (header(4, node.INTERNAL), "lost: "),  # its values lead nowhere
        (header(24, 16), "values of 16 bytes"),
        (header(20, 249), "room for 249"),
        (header(16, 253), "253 entries in room for 252"),
    ],
)
def test_a_node_that_is_none_is_told(bench: Bench, change: Change, says: str) -> None:
    block, _ = a_leaf(bench)
    bench.edit(block, change)
    result = check(bench.store)
    assert not result.complete
    assert {kind for kind, _ in problems(result)} == {"node"}
    assert any(says in error.message for error in result.errors)


def test_keys_out_of_order_are_told(bench: Bench) -> None:
    block, _ = a_leaf(bench)
    bench.edit(block, swap_keys)
    found = only(check(bench.store))
    assert (found.kind, found.where) == ("node", f"mappings of device 8, block {block}")


def test_keys_outside_the_parents_are_told(bench: Bench) -> None:
    block, keys = a_leaf(bench)
    bench.edit(block, lambda data: set_word(data, node.KEYS_WORD, keys[0] - 1))
    assert "its parent starts at" in only(check(bench.store)).message


def test_keys_beyond_the_next_nodes_are_told(bench: Bench) -> None:
    block, keys = a_leaf(bench)
    bench.edit(block, lambda data: set_word(data, node.KEYS_WORD + len(keys) - 1, 1 << 40))
    assert "its parent ends before" in only(check(bench.store)).message


def test_a_node_with_too_few_entries_is_told(bench: Bench) -> None:
    block, keys = a_leaf(bench)
    bench.edit(block, header(16, 83))
    told = {error.message for error in check(bench.store).errors if error.kind == "node"}
    assert told == {"has 83 entries, of 84 at least"}
    assert len(keys) >= 84


def test_leaves_of_different_depth_are_told(bench: Bench) -> None:
    root = bench.device_roots()[8]
    leaf, keys = a_leaf(bench)
    # An internal node with one child between root and leaf.
    data = bytearray(BLOCK_SIZE)
    node.init_node(data, node.INTERNAL, 8)
    struct.pack_into("<I", data, 16, 1)
    set_word(data, node.KEYS_WORD, keys[0])
    set_word(data, node.VALUES_WORD, leaf)
    seal(data, Kind.NODE, 9000)
    bench.put(9000, data)
    place = list(bench.node(root)["values"]).index(leaf.to_bytes(8, "little"))
    bench.edit(root, lambda data: set_word(data, node.VALUES_WORD + place, 9000))
    recount(bench, {9000: 1})
    told = {error.message for error in check(bench.store).errors}
    assert "children are of different heights" in told


def test_a_cycle_is_told_and_ends(bench: Bench) -> None:
    root = bench.device_roots()[8]
    bench.edit(root, lambda data: set_word(data, node.VALUES_WORD + 1, root))
    recount(bench, {root: 2})
    assert any("is below itself" in error.message for error in check(bench.store).errors)
    recount(bench, {root: 1})
    assert ("count", f"metadata block {root}") in problems(check(bench.store))


def test_a_tree_without_end_is_told(bench: Bench) -> None:
    """A chain of nodes with one child each, all of them well-formed."""
    chain = range(9000, 9600)
    for block in chain:
        data = bytearray(BLOCK_SIZE)
        node.init_node(data, node.INTERNAL, 8)
        struct.pack_into("<I", data, 16, 1)
        set_word(data, node.VALUES_WORD, block + 1)
        seal(data, Kind.NODE, block)
        bench.put(block, data)
    recount(bench, dict.fromkeys(chain, 1))
    bench.put_superblock(replace(bench.superblock, mapping_root=chain[0]))
    told = [error.message for error in check(bench.store).errors]
    assert any("is 13 levels below its root" in message for message in told)


def test_a_tree_within_another_is_told(bench: Bench) -> None:
    superblock = bench.superblock
    bench.put_superblock(replace(superblock, mapping_root=superblock.details_root))
    recount(bench, {superblock.details_root: 2})
    told = {(error.where, error.message) for error in check(bench.store).errors}
    where = f"mapping tree, block {superblock.details_root}"
    assert (where, "is of another tree, details tree") in told


def test_a_child_past_the_end_is_told(bench: Bench) -> None:
    root = bench.device_roots()[8]
    bench.edit(root, lambda data: set_word(data, node.VALUES_WORD, 1 << 60))
    found = only(check(bench.store))
    assert (found.kind, found.where) == ("node", f"block {1 << 60}")


def test_a_mapping_past_the_end_is_told(bench: Bench) -> None:
    block, keys = a_leaf(bench)
    value = pack_mapping(DATA_BLOCKS, 0)
    bench.edit(block, lambda data: set_word(data, node.VALUES_WORD + 5, value))
    result = check(bench.store)
    # The block that it pointed at has lost its owner as well.
    assert [kind for kind, _ in problems(result)] == ["mapping", "leak"]
    assert f"virtual block {keys[5]} is mapped to data block 40000" in result.errors[0].message
    assert result.leaked_blocks == 1


def test_a_mapping_of_the_future_is_told(bench: Bench) -> None:
    block, keys = a_leaf(bench)
    time = bench.superblock.time + 1
    old = int.from_bytes(bench.node(block)["values"][3], "little")
    value = pack_mapping(old >> 24, time)
    bench.edit(block, lambda data: set_word(data, node.VALUES_WORD + 3, value))
    found = only(check(bench.store))
    assert found.kind == "mapping"
    assert f"virtual block {keys[3]} is mapped at time {time}" in found.message


def edit_details(bench: Bench, device: int, details: DeviceDetails) -> None:
    block, parsed = bench.leaves(bench.superblock.details_root)[0]
    at = node.values_at(24) + 24 * list(parsed["keys"]).index(device)
    bench.edit(block, lambda data: data.__setitem__(slice(at, at + 24), details.pack()))


def details_of(bench: Bench, device: int) -> DeviceDetails:
    _, parsed = bench.leaves(bench.superblock.details_root)[0]
    return DeviceDetails.unpack(parsed["values"][list(parsed["keys"]).index(device)])


def test_a_wrong_number_of_mapped_blocks_is_told(bench: Bench) -> None:
    details = details_of(bench, 4)
    edit_details(bench, 4, replace(details, mapped_blocks=details.mapped_blocks + 1))
    found = only(check(bench.store))
    assert (found.kind, found.where) == ("device", "device 4")
    assert f"but has {details.mapped_blocks}" in found.message


def test_a_device_of_the_future_is_told(bench: Bench) -> None:
    details = details_of(bench, 4)
    edit_details(bench, 4, replace(details, creation_time=99, snapshotted_time=98))
    told = [error.message for error in check(bench.store).errors]
    assert [message[:21] for message in told] == ["was created at time 9", "was snapshotted at ti"]


@pytest.mark.parametrize(
    ("tree", "says"),
    [("details_root", "has details, but no"), ("mapping_root", "has a mapping tree, but no")],
)
def test_a_device_in_one_tree_only_is_told(bench: Bench, tree: str, says: str) -> None:
    root = getattr(bench.superblock, tree)
    entries = bench.node(root).header.nr_entries
    bench.edit(root, lambda data: set_word(data, node.KEYS_WORD + entries - 1, 1 << 24))
    result = check(bench.store)
    told = {error.where: error.message for error in result.errors}
    assert told.keys() == {"device 8", f"device {1 << 24}"}
    assert any(error.message.startswith(says) for error in result.errors if "24" not in error.where)
    assert any("is above" in error.message for error in result.errors)


# --- space maps ----------------------------------------------------------------------------------


def edit_count(bench: Bench, number: int, entry: int, count: int) -> None:
    """Change one count of the data space map, and nothing else."""
    block = bench.data_index()[number].blocknr
    bench.edit(block, lambda data: bitmap.put(data, entry, count), Kind.BITMAP)


def some_used(bench: Bench, wanted: int) -> int:
    data = bench.store.read(bench.data_index()[0].blocknr)
    return next(e for e in range(bitmap.ENTRIES_PER_BITMAP) if bitmap.get(data, e) == wanted)


def test_a_count_too_high_is_told(bench: Bench) -> None:
    entry = some_used(bench, 1)
    edit_count(bench, 0, entry, 2)
    found = only(check(bench.store))
    assert (found.kind, found.where) == ("count", f"data block {entry}")
    assert found.message == "counted 2 times, found 1 times"


def test_a_count_of_a_block_in_use_that_says_free_is_told(bench: Bench) -> None:
    entry = some_used(bench, 1)
    edit_count(bench, 0, entry, 0)
    result = check(bench.store)
    assert ("count", f"data block {entry}") in problems(result)
    assert {error.message.split(",")[0] for error in result.errors} == {
        "counted 0 times",
        f"says {result.data_used} blocks are allocated",
        f"says {bench.data_index()[0].nr_free} are free",
        f"says none is free before {bench.data_index()[0].none_free_before}",
    }


def test_leaked_blocks_are_told_as_a_range(bench: Bench) -> None:
    for entry in (10, 11, 12):
        edit_count(bench, 2, entry, 1)
    first = 2 * bitmap.ENTRIES_PER_BITMAP + 10
    result = check(bench.store)
    assert ("leak", f"data blocks {first}..{first + 2}") in problems(result)
    assert result.leaked_blocks == 3


def test_a_leaked_metadata_block_is_told(bench: Bench) -> None:
    recount(bench, {9000: 1})
    result = check(bench.store)
    assert problems(result) == [("leak", "metadata block 9000")]
    assert result.leaked_metadata_blocks == 1


def test_an_orphan_is_told(bench: Bench) -> None:
    bench.put(9000, bytes(BLOCK_SIZE))
    bench.put(1 << 40, bytes(BLOCK_SIZE))
    result = check(bench.store)
    assert problems(result) == [("orphan", "block 9000"), ("orphan", f"block {1 << 40}")]
    assert check(bench.store, foreign=True).ok


def test_counts_are_told_while_something_is_lost_only_if_certain(bench: Bench) -> None:
    """With mappings out of reach, a count too high is no news, and one too low is."""
    block, _ = a_leaf(bench)
    entry = next(e for e in range(3000) if count_of(bench, e) == 1)
    bench.flip(block, 5000)
    edit_count(bench, 0, entry, 2)
    assert problems(check(bench.store)) == [("checksum", f"block {block}")]
    shared = next(e for e in range(3000) if count_of(bench, e) == 2 and e != entry)
    edit_count(bench, 0, shared, 1)
    assert ("count", f"data block {shared}") in problems(check(bench.store))


def count_of(bench: Bench, entry: int) -> int:
    return bitmap.get(bench.store.read(bench.data_index()[0].blocknr), entry)


def test_the_overflow_tree_must_have_what_the_bitmap_says(tmp_path: Path) -> None:
    bench = Bench(load(restore(tmp_path, restored_devices())))
    root = bench.superblock.data_space_map.ref_count_root
    [(leaf, parsed)] = bench.leaves(root)[:1]
    block, count = parsed["keys"][4], int.from_bytes(parsed["values"][4], "little")
    assert count >= 3
    at = node.values_at(4) + 16
    bench.edit(leaf, lambda data: struct.pack_into("<I", data, at, count + 1))
    found = only(check(bench.store, foreign=True))
    assert (found.kind, found.where) == ("count", f"data block {block}")
    assert found.message == f"counted {count + 1} times, found {count} times"


def test_a_stray_count_in_the_overflow_tree_is_told(tmp_path: Path) -> None:
    bench = Bench(load(restore(tmp_path, restored_devices())))
    [(leaf, parsed)] = bench.leaves(bench.superblock.data_space_map.ref_count_root)[-1:]
    last = len(parsed["keys"]) - 1
    stray = parsed["keys"][last] + 1
    bench.edit(leaf, lambda data: set_word(data, node.KEYS_WORD + last, stray))
    told = [error.message for error in check(bench.store, foreign=True).errors]
    assert told == [
        f"block {stray - 1} has no count in the overflow tree",
        f"block {stray} has a count in the overflow tree to no purpose",
    ]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"nr_free": 5}, "says 5 are free"),
        ({"none_free_before": 16000}, "says none is free before 16000"),
        ({"none_free_before": 20000}, "says none is free before 20000"),
    ],
)
def test_wrong_index_entries_are_told(bench: Bench, change: dict[str, int], says: str) -> None:
    entry = replace(bench.data_index()[0], **change)
    leaf, _ = bench.leaves(bench.superblock.data_space_map.bitmap_root)[0]
    at = node.values_at(16)
    bench.edit(leaf, lambda data: data.__setitem__(slice(at, at + 16), entry.pack()))
    found = only(check(bench.store))
    assert (found.kind, found.where) == ("index", "data space map, index entry 0")
    assert found.message.startswith(says)


def test_counts_past_the_end_are_told(bench: Bench) -> None:
    edit_count(bench, 2, DATA_BLOCKS - 2 * bitmap.ENTRIES_PER_BITMAP, 1)
    assert ("bitmap", "data space map") in problems(check(bench.store))


def test_a_wrong_sum_is_told(bench: Bench) -> None:
    root = replace(bench.superblock.data_space_map, nr_allocated=1)
    bench.put_superblock(replace(bench.superblock, data_space_map=root))
    found = only(check(bench.store))
    assert (found.kind, found.where) == ("count", "data space map")


def test_impossible_sizes_are_told(bench: Bench) -> None:
    superblock = bench.superblock
    for size in (0, 1 << 63):
        bench.put_superblock(
            replace(
                superblock,
                data_space_map=replace(superblock.data_space_map, nr_blocks=size),
                metadata_space_map=replace(superblock.metadata_space_map, nr_blocks=size),
            )
        )
        result = check(bench.store)
        assert not result.ok
        assert len(result.errors) <= MAX_PROBLEMS + 1


def test_a_missing_bitmap_is_told(bench: Bench) -> None:
    [leaf] = [block for block, _ in bench.leaves(bench.superblock.data_space_map.bitmap_root)]
    bench.edit(leaf, header(16, 2))
    result = check(bench.store)
    assert ("index", "data space map, index") in problems(result)


def test_the_metadata_index_is_not_trusted(bench: Bench) -> None:
    block = bench.superblock.metadata_space_map.bitmap_root
    bench.edit(block, lambda data: set_word(data, 2, 1 << 50), Kind.INDEX)
    found = only(check(bench.store))
    assert (found.kind, found.where) == ("index", f"block {1 << 50}")
    assert "lost: metadata space map, bitmap 0, counts of blocks 0.." in found.message
    assert len(bench.metadata_index()) < index.INDEX_ENTRIES


# --- the store itself ----------------------------------------------------------------------------


def test_a_superblock_of_another_version_is_told(bench: Bench) -> None:
    bench.edit(SUPERBLOCK_BLOCK, header(40, 9), Kind.SUPERBLOCK)
    found = only(check(bench.store))
    assert (found.kind, found.where) == ("superblock", "block 0")
    assert "version 9" in found.message


class Failing(MemoryStore):
    """A store whose disk has a bad spot."""

    def __init__(self, store: MemoryStore, bad: int) -> None:
        super().__init__()
        self.store = store
        self.bad = bad

    def read(self, block: int) -> bytearray:
        if block == self.bad:
            raise StoreError(5)
        return self.store.read(block)

    def block_numbers(self) -> Iterator[int]:
        return self.store.block_numbers()

    def snapshot(self) -> "Failing":  # type: ignore[override]
        return self

    def __enter__(self) -> "Failing":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_a_block_that_cannot_be_read_is_told(pool: MemoryStore) -> None:
    for block in Bench(pool).kinds():
        found = only(check(Failing(pool, block)))
        assert (found.kind, found.where) == ("io", f"block {block}")


def test_a_closed_store_is_the_callers_mistake() -> None:
    store = MemoryStore()
    store.close()
    with pytest.raises(Closed):
        check(store)


def test_an_empty_store_has_no_superblock() -> None:
    assert only(check(MemoryStore())).kind == "missing"


def test_problems_are_bounded() -> None:
    findings = Findings()
    for number in range(MAX_PROBLEMS + 5):
        findings.add("leak", f"block {number}", "x")
    assert len(findings.problems()) == MAX_PROBLEMS + 1
    assert findings.problems()[-1].message == "and 5 problems more"


# --- counting ------------------------------------------------------------------------------------


def test_counts_go_as_high_as_they_must() -> None:
    counts = ReferenceCounts(10)
    assert counts.add(3)
    assert not counts.add(3)
    assert counts.add_all([3] * 300 + [4, 10, 99] + [5] * 256 + [3]) == 2
    assert [counts[block] for block in range(10)] == [0, 0, 0, 303, 1, 256, 0, 0, 0, 0]
    for _ in range(300):
        counts.add(6)
    assert counts[6] == 300
    with pytest.raises(IndexError):
        counts.add(10)
    assert counts.add_run(4, 3) == 0
    assert counts.add_run(7, 5) == 2
    assert [counts[block] for block in range(10)] == [0, 0, 0, 303, 2, 257, 301, 1, 1, 1]


def test_counts_as_a_bitmap() -> None:
    counts = ReferenceCounts(bitmap.ENTRIES_PER_BITMAP + 50)
    wanted = {0: 1, 1: 2, 2: 3, 7: 200, 16319: 1, 16320: 2, 16369: 1}
    data = bytearray(BLOCK_SIZE)
    for block, count in wanted.items():
        counts.add_all([block] * count)
        if block < bitmap.ENTRIES_PER_BITMAP:
            bitmap.put(data, block, min(count, 3))
    pairs = counts.pairs(0, bitmap.ENTRIES_PER_BITMAP)
    assert pairs == int.from_bytes(data[16:], "little")
    assert list(entries_of(used_pairs(pairs))) == [0, 1, 2, 7, 16319]
    assert [count_at(pairs, entry) for entry in (0, 1, 2, 3, 7)] == [1, 2, 3, 0, 3]
    rest = counts.pairs(bitmap.ENTRIES_PER_BITMAP, bitmap.ENTRIES_PER_BITMAP + 50)
    assert list(entries_of(used_pairs(rest))) == [0, 49]
