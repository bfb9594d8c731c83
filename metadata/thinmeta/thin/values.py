"""The values of the thin metadata's trees, and how they are counted.

    mappings   virtual block -> data block and time; each has an owner's count in the data space map
    roots      device id -> root of its mappings; each is a parent of that root
    details    device id -> details; nothing is counted

Thread safety: the caller holds the metadata lock.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from struct import Struct
from typing import Final

from thinmeta.btree import IntValues, Values
from thinmeta.buffers import Buffer
from thinmeta.format.node import VALUES_WORD
from thinmeta.format.values import DETAILS_SIZE, MAPPING_SIZE, ROOT_SIZE, TIME_BITS, DeviceDetails
from thinmeta.spacemap import DataSpaceMap
from thinmeta.transaction import TransactionManager

_DETAILS: Final = Struct("<QQII")
assert _DETAILS.size == DETAILS_SIZE


def pack_run(value: int, count: int) -> bytes:
    """The mappings to `count` data blocks one after the other, of which the first is `value`."""
    if count == 1:
        return value.to_bytes(MAPPING_SIZE, "little")
    step = 1 << TIME_BITS
    return array("Q", range(value, value + count * step, step)).tobytes()


def data_runs(leaf: Buffer, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """The data blocks of a leaf's entries as runs (first, behind the last), in the leaf's order."""
    if begin == end:
        return
    if end - begin == 1:
        block = leaf.words[VALUES_WORD + begin] >> TIME_BITS
        yield block, block + 1
        return
    words = leaf.words[VALUES_WORD + begin : VALUES_WORD + end]
    first, last = words[0] >> TIME_BITS, words[-1] >> TIME_BITS
    blocks = [word >> TIME_BITS for word in words.tolist()]
    if last - first == end - begin - 1 and blocks == list(range(first, last + 1)):
        yield first, last + 1
        return
    start = previous = first
    for block in blocks[1:]:
        if block != previous + 1:
            yield start, previous + 1
            start = block
        previous = block
    yield start, previous + 1


class MappingValues(IntValues):
    """Mappings: a leaf that holds one is an owner of its data block."""

    def __init__(self, data: DataSpaceMap) -> None:
        super().__init__(MAPPING_SIZE)
        self._data = data

    def copied(self, leaf: Buffer, begin: int, end: int) -> None:
        """Each data block has one owner more."""
        for first, stop in data_runs(leaf, begin, end):
            self._data.increment(first, stop)

    def dropped(self, leaf: Buffer, begin: int, end: int) -> None:
        """Each data block has one owner less."""
        for first, stop in data_runs(leaf, begin, end):
            self._data.decrement(first, stop)


class RootValues(IntValues):
    """Roots of the devices' mapping trees: a leaf that holds one is a parent of that root.

    A root that replaces another is its shadow, which has taken over the count; so nothing is done
    when a value goes, and deleting a device lets go of its tree itself.
    """

    def __init__(self, tm: TransactionManager) -> None:
        super().__init__(ROOT_SIZE)
        self._tm = tm

    def copied(self, leaf: Buffer, begin: int, end: int) -> None:
        """Each tree has one parent more."""
        for root in leaf.words[VALUES_WORD + begin : VALUES_WORD + end].tolist():
            self._tm.increment(root)


class DetailsValues(Values[DeviceDetails]):
    """Device details."""

    def __init__(self) -> None:
        super().__init__(DETAILS_SIZE)

    def pack(self, value: DeviceDetails) -> bytes:
        return _DETAILS.pack(
            value.mapped_blocks,
            value.transaction_id,
            value.creation_time,
            value.snapshotted_time,
        )

    def unpack(self, octets: memoryview) -> DeviceDetails:
        return DeviceDetails(*_DETAILS.unpack(octets))
