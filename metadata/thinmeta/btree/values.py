"""What a tree's leaves hold, and who else must know when values come and go.

Values that stand for something counted (a data block, the root of another tree) have an owner in
each leaf that holds them.  A tree tells its `Values` when a leaf was copied, so that each of its
values has one owner more, and when values left it.

Thread safety: the caller holds the metadata lock.
"""

from __future__ import annotations

from struct import Struct
from typing import Generic, TypeVar

from thinmeta.btree.layout import Layout
from thinmeta.buffers import Buffer

V = TypeVar("V")


class Values(Generic[V]):
    """Values of a fixed size that nobody counts; subclasses say how they are packed."""

    def __init__(self, value_size: int) -> None:
        self.layout = Layout(value_size)

    def pack(self, value: V) -> bytes:
        """The value's bytes."""
        raise NotImplementedError

    def unpack(self, octets: memoryview) -> V:
        """The value of these bytes."""
        raise NotImplementedError

    def copied(self, leaf: Buffer, begin: int, end: int) -> None:
        """Entries begin..end-1 of the leaf now stand in one leaf more."""

    def dropped(self, leaf: Buffer, begin: int, end: int) -> None:
        """Entries begin..end-1 of the leaf are about to go, or to be replaced."""


class IntValues(Values[int]):
    """Unsigned little-endian integers of 4 or 8 bytes that nobody counts."""

    def __init__(self, value_size: int) -> None:
        super().__init__(value_size)
        self._struct = Struct({4: "<I", 8: "<Q"}[value_size])

    def pack(self, value: int) -> bytes:
        return self._struct.pack(value)

    def unpack(self, octets: memoryview) -> int:
        value: int = self._struct.unpack(octets)[0]
        return value
