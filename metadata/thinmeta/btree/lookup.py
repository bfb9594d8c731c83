"""Finding keys: one key, or the leaves that hold a range of keys.

Thread safety: the caller holds the metadata lock; nothing is changed.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from thinmeta.btree.layout import KEYS_WORD, U32
from thinmeta.buffers import Buffer
from thinmeta.format.block import Kind
from thinmeta.format.node import ENTRIES_WORD, LEAF, VALUES_WORD
from thinmeta.transaction import TransactionManager


class Place(NamedTuple):
    """Where a key is: entry `at` of `leaf`; `shared` if more than one root leads there."""

    leaf: Buffer
    at: int
    shared: bool


class LeafRange(NamedTuple):
    """Entries begin..end-1 of `leaf`; `shared` if more than one root leads there."""

    leaf: Buffer
    begin: int
    end: int
    shared: bool


def find(tm: TransactionManager, root: int, key: int) -> tuple[Buffer, int] | None:
    """The leaf and entry of `key`, or None."""
    owned = tm.owned
    buffer = owned.get(root) or tm.read(root, Kind.NODE)
    words = buffer.words
    while words[0] >> 32 != LEAF:
        at = bisect_right(words, key, KEYS_WORD, KEYS_WORD + (words[ENTRIES_WORD] & U32))
        if at == KEYS_WORD:
            return None
        block = words[VALUES_WORD + at - KEYS_WORD - 1]
        buffer = owned.get(block) or tm.read(block, Kind.NODE)
        words = buffer.words
    end = KEYS_WORD + (words[ENTRIES_WORD] & U32)
    at = bisect_left(words, key, KEYS_WORD, end)
    if at == end or words[at] != key:
        return None
    return buffer, at - KEYS_WORD


def lacks(tm: TransactionManager, root: int, begin: int, end: int) -> bool:
    """Whether none of the keys begin..end-1 is there, as far as the path to `begin` tells.

    False may also mean that the next leaf would have to be asked.
    """
    owned = tm.owned
    following = end
    buffer = owned.get(root) or tm.read(root, Kind.NODE)
    words = buffer.words
    while words[0] >> 32 != LEAF:
        stop = KEYS_WORD + (words[ENTRIES_WORD] & U32)
        at = bisect_right(words, begin, KEYS_WORD, stop)
        if at < stop:
            following = words[at]
        if at == KEYS_WORD:
            return end <= following
        block = words[VALUES_WORD + at - KEYS_WORD - 1]
        buffer = owned.get(block) or tm.read(block, Kind.NODE)
        words = buffer.words
    stop = KEYS_WORD + (words[ENTRIES_WORD] & U32)
    at = bisect_left(words, begin, KEYS_WORD, stop)
    if at < stop:
        following = words[at]
    return end <= following


def path_shared(tm: TransactionManager, root: int, key: int) -> bool:
    """Whether some node on the path to `key` has more than one parent."""
    block = root
    while True:
        if block not in tm.owned and tm.counts.count(block) > 1:
            return True
        words = tm.read(block, Kind.NODE).words
        if words[0] >> 32 == LEAF:
            return False
        at = bisect_right(words, key, KEYS_WORD, KEYS_WORD + (words[ENTRIES_WORD] & U32))
        block = words[VALUES_WORD + max(at - KEYS_WORD - 1, 0)]


def leaves(tm: TransactionManager, root: int, begin: int, end: int) -> Iterator[LeafRange]:
    """The leaves with keys in begin..end-1, in their order.

    The tree must not be changed meanwhile.
    """
    stack = [(root, False)]
    while stack:
        block, shared = stack.pop()
        shared = shared or (block not in tm.owned and tm.counts.count(block) > 1)
        buffer = tm.read(block, Kind.NODE)
        words = buffer.words
        stop = KEYS_WORD + (words[ENTRIES_WORD] & U32)
        last = bisect_left(words, end, KEYS_WORD, stop) - KEYS_WORD
        if words[0] >> 32 == LEAF:
            first = bisect_left(words, begin, KEYS_WORD, stop) - KEYS_WORD
            if first < last:
                yield LeafRange(buffer, first, last, shared)
        else:
            first = max(bisect_right(words, begin, KEYS_WORD, stop) - KEYS_WORD - 1, 0)
            children = words[VALUES_WORD + first : VALUES_WORD + last].tolist()
            stack.extend((child, shared) for child in reversed(children))


def last_key(tm: TransactionManager, root: int) -> int | None:
    """The highest key, or None of an empty tree."""
    block = root
    while True:
        words = (tm.owned.get(block) or tm.read(block, Kind.NODE)).words
        entries = words[ENTRIES_WORD] & U32
        if not entries:
            return None
        if words[0] >> 32 == LEAF:
            return words[KEYS_WORD + entries - 1]
        block = words[VALUES_WORD + entries - 1]


def prefetch(tm: TransactionManager, root: int, begin: int, end: int) -> None:
    """Bring the nodes that hold the keys begin..end-1 into the cache, as far as it has room."""
    level = [root]
    while level:
        tm.prefetch(level)
        below: list[int] = []
        for block in level:
            words = tm.read(block, Kind.NODE).words
            if words[0] >> 32 == LEAF:
                return
            stop = KEYS_WORD + (words[ENTRIES_WORD] & U32)
            first = max(bisect_right(words, begin, KEYS_WORD, stop) - KEYS_WORD - 1, 0)
            last = bisect_left(words, end, KEYS_WORD, stop) - KEYS_WORD
            below.extend(words[VALUES_WORD + first : VALUES_WORD + last].tolist())
        level = below
