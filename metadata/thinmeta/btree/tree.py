"""A btree with values of one kind, by its operations.

A tree is known by its root's block number alone, and one `Tree` serves any number of trees of its
kind: operations that change one take its root and return the root it has afterwards.  The two
levels of the mapping tree are two such kinds, the upper one's values being the lower one's roots.

Thread safety: the caller holds the metadata lock.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from thinmeta.btree import insert, lookup, remove
from thinmeta.btree.drop import count_entries, drop_subtree
from thinmeta.btree.lookup import LeafRange
from thinmeta.btree.values import Values
from thinmeta.errors import Corrupt
from thinmeta.format.block import Kind
from thinmeta.format.node import KEYS_WORD, LEAF
from thinmeta.transaction import U32, TransactionManager

V = TypeVar("V")

MAX_KEY = (1 << 64) - 1


class Tree(Generic[V]):
    """All trees of one kind in one store."""

    def __init__(self, tm: TransactionManager, values: Values[V]) -> None:
        self._tm = tm
        self._values = values

    def empty(self) -> int:
        """The root of a new tree without keys."""
        buffer = self._tm.new(Kind.NODE)
        self._values.layout.init(buffer, LEAF)
        return buffer.block

    def lookup(self, root: int, key: int) -> V | None:
        """The value of `key`, or None."""
        found = lookup.find(self._tm, root, key)
        if found is None:
            return None
        leaf, at = found
        layout = self._values.layout
        if leaf.words[3] & U32 != layout.value_size:
            raise Corrupt("node", f"block {leaf.block}", "a leaf of another kind of tree")
        begin = layout.values_at + at * layout.value_size
        return self._values.unpack(leaf.octets[begin : begin + layout.value_size])

    def lacks(self, root: int, begin: int, end: int) -> bool:
        """Whether none of the keys begin..end-1 is there; False where that takes a second leaf."""
        return lookup.lacks(self._tm, root, begin, end)

    def insert(self, root: int, key: int, value: V) -> int:
        """Insert or replace one key; the new root."""
        return insert.insert_run(self._tm, self._values, root, key, self._values.pack(value), 1)[0]

    def insert_run(self, root: int, key: int, packed: bytes, count: int) -> tuple[int, int]:
        """Insert or replace `count` keys from `key` on; the new root, and how many were there.

        `packed` holds the values one after the other.
        """
        return insert.insert_run(self._tm, self._values, root, key, packed, count)

    def remove(self, root: int, key: int) -> int:
        """Remove one key, if it is there; the new root."""
        return self.remove_range(root, key, key + 1)[0]

    def remove_range(self, root: int, begin: int, end: int) -> tuple[int, int]:
        """Remove the keys begin..end-1; the new root, and how many there were."""
        return remove.remove_range(self._tm, self._values, root, begin, end)

    def delete(self, root: int) -> None:
        """Let go of a whole tree."""
        drop_subtree(self._tm, self._values, root)

    def count(self, root: int) -> int:
        """How many keys the tree holds; reads all of it."""
        return count_entries(self._tm, root)

    def prefetch(self, root: int, begin: int, end: int) -> None:
        """Bring the nodes for keys begin..end-1 into the cache, as far as it has room."""
        lookup.prefetch(self._tm, root, begin, end)

    def leaves(self, root: int, begin: int = 0, end: int = MAX_KEY + 1) -> Iterator[LeafRange]:
        """The leaves with keys in begin..end-1; the tree must not change meanwhile."""
        return lookup.leaves(self._tm, root, begin, end)

    def last_key(self, root: int) -> int | None:
        """The highest key, or None of an empty tree."""
        return lookup.last_key(self._tm, root)

    def keys(self, root: int, begin: int = 0) -> Iterator[int]:
        """The keys from `begin` on, ascending; the tree must not change meanwhile."""
        for leaf, first, last, _shared in self.leaves(root, begin):
            yield from leaf.words[KEYS_WORD + first : KEYS_WORD + last].tolist()

    def items(self, root: int, begin: int = 0, end: int = MAX_KEY + 1) -> Iterator[tuple[int, V]]:
        """Keys and values in begin..end-1, ascending; the tree must not change meanwhile."""
        layout = self._values.layout
        size = layout.value_size
        for leaf, first, last, _shared in self.leaves(root, begin, end):
            for at in range(first, last):
                base = layout.values_at + at * size
                yield (
                    leaf.words[KEYS_WORD + at],
                    self._values.unpack(leaf.octets[base : base + size]),
                )
