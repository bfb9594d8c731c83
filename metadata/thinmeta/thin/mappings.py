"""What is mapped where: looking up, listing, and telling what is shared.

A mapping as old as, or younger than, its device's last snapshot belongs to the device alone.  An
older one is shared if a node on its path has more than one parent, or its data block more than one
owner; so a block whose other owners have gone is the device's own again.

Thread safety: the caller holds the metadata lock.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from thinmeta.btree import Tree
from thinmeta.btree.lookup import LeafRange, find, path_shared
from thinmeta.errors import Corrupt
from thinmeta.format.node import KEYS_WORD, VALUES_WORD
from thinmeta.format.values import MAPPING_SIZE, MAX_TIME, TIME_BITS
from thinmeta.spacemap import DataSpaceMap
from thinmeta.thin.devices import Device
from thinmeta.thin.values import data_runs
from thinmeta.transaction import U32, TransactionManager


class Mapping(NamedTuple):
    """Where a virtual block is; `shared`: it must be copied before it is written."""

    data_block: int
    shared: bool


class Run(NamedTuple):
    """`length` virtual blocks from `begin` on, in consecutive data blocks from `data_begin` on."""

    begin: int
    data_begin: int
    length: int
    shared: bool


def lookup(
    tm: TransactionManager, data: DataSpaceMap, device: Device, block: int
) -> Mapping | None:
    """The mapping of one virtual block, or None."""
    found = find(tm, device.root, block)
    if found is None:
        return None
    leaf, at = found
    if leaf.words[3] & U32 != MAPPING_SIZE:
        raise Corrupt("node", f"block {leaf.block}", "not a leaf of mappings")
    value = leaf.words[VALUES_WORD + at]
    data_block = value >> TIME_BITS
    shared = (value & MAX_TIME) < device.snapshotted_time and (
        data.count(data_block) > 1 or path_shared(tm, device.root, block)
    )
    return Mapping(data_block, shared)


def runs(
    tree: Tree[int], data: DataSpaceMap, device: Device, begin: int, end: int
) -> Iterator[Run]:
    """The mapped runs within begin..end-1, ascending, as long as can be."""
    held: Run | None = None
    for leaf_range in tree.leaves(device.root, begin, end):
        for run in _leaf_runs(data, device, leaf_range):
            if held is None:
                held = run
            elif (
                run.begin == held.begin + held.length
                and run.data_begin == held.data_begin + held.length
                and run.shared == held.shared
            ):
                held = held._replace(length=held.length + run.length)
            else:
                yield held
                held = run
    if held is not None:
        yield held


def exclusive_blocks(tree: Tree[int], data: DataSpaceMap, device: Device) -> int:
    """How many data blocks this device alone uses."""
    total = 0
    for leaf, begin, end, shared in tree.leaves(device.root):
        if not shared:
            for first, stop in data_runs(leaf, begin, end):
                total += data.once_counted(first, stop)
    return total


def _leaf_runs(data: DataSpaceMap, device: Device, leaf_range: LeafRange) -> Iterator[Run]:
    leaf, begin, end, path = leaf_range
    keys = leaf.words[KEYS_WORD + begin : KEYS_WORD + end].tolist()
    values = leaf.words[VALUES_WORD + begin : VALUES_WORD + end].tolist()
    count = end - begin
    key, value = keys[0], values[0]
    step = 1 << TIME_BITS
    if keys[-1] == key + count - 1 and values == list(range(value, value + count * step, step)):
        block = value >> TIME_BITS
        old = (value & MAX_TIME) < device.snapshotted_time
        if not old or path or data.once_counted(block, block + count) == count:
            yield Run(key, block, count, old and path)
            return
    for key, value in zip(keys, values, strict=True):
        block = value >> TIME_BITS
        old = (value & MAX_TIME) < device.snapshotted_time
        yield Run(key, block, 1, old and (path or data.count(block) > 1))
