"""Moving entries about within and between btree nodes.

A `Layout` knows where the values of its size lie in a node.  Its functions keep a node's count
right and the bytes behind the last entry zero; they know nothing of trees.  Entry numbers start
at 0.  Buffers must be dirty already.

Thread safety: the caller holds the metadata lock.
"""

from __future__ import annotations

from typing import Final

from thinmeta.buffers import Buffer
from thinmeta.format.node import (
    CHILD_SIZE,
    ENTRIES_WORD,
    HEADER_SIZE,
    INTERNAL,
    KEYS_WORD,
    LEAF,
    init_node,
    max_entries,
    min_entries,
    values_at,
)

U32: Final = 0xFFFFFFFF
KEY_BYTES: Final = 8


def entries_in(buffer: Buffer) -> int:
    """How many entries the node holds."""
    return buffer.words[ENTRIES_WORD] & U32


def is_leaf(buffer: Buffer) -> bool:
    """Whether the node is a leaf."""
    return buffer.words[0] >> 32 == LEAF


class Layout:
    """Nodes whose values have `value_size` bytes."""

    __slots__ = ("max_entries", "min_entries", "value_size", "values_at")

    def __init__(self, value_size: int) -> None:
        self.value_size = value_size
        self.max_entries = max_entries(value_size)
        self.min_entries = min_entries(value_size)
        self.values_at = values_at(value_size)

    def init(self, buffer: Buffer, flags: int) -> None:
        """Make the buffer an empty node; `flags` is INTERNAL or LEAF."""
        init_node(buffer.data, flags, self.value_size)

    def open_gap(self, buffer: Buffer, at: int, count: int) -> None:
        """Make room for `count` entries before entry `at`; the node must have that room."""
        words, octets = buffer.words, buffer.octets
        have = words[ENTRIES_WORD] & U32
        if at < have:
            words[KEYS_WORD + at + count : KEYS_WORD + have + count] = words[
                KEYS_WORD + at : KEYS_WORD + have
            ]
            size, base = self.value_size, self.values_at
            octets[base + (at + count) * size : base + (have + count) * size] = octets[
                base + at * size : base + have * size
            ]
        words[ENTRIES_WORD] += count

    def erase(self, buffer: Buffer, begin: int, end: int) -> None:
        """Take out entries begin..end-1."""
        words, octets = buffer.words, buffer.octets
        have = words[ENTRIES_WORD] & U32
        size, base = self.value_size, self.values_at
        keep = have - (end - begin)
        if end < have:
            words[KEYS_WORD + begin : KEYS_WORD + keep] = words[KEYS_WORD + end : KEYS_WORD + have]
            octets[base + begin * size : base + keep * size] = octets[
                base + end * size : base + have * size
            ]
        first = HEADER_SIZE + keep * KEY_BYTES
        octets[first : HEADER_SIZE + have * KEY_BYTES] = bytes((have - keep) * KEY_BYTES)
        octets[base + keep * size : base + have * size] = bytes((have - keep) * size)
        words[ENTRIES_WORD] -= end - begin

    def move(self, source: Buffer, begin: int, end: int, target: Buffer, at: int) -> None:
        """Move entries begin..end-1 of `source` to before entry `at` of `target`."""
        count = end - begin
        self.open_gap(target, at, count)
        target.words[KEYS_WORD + at : KEYS_WORD + at + count] = source.words[
            KEYS_WORD + begin : KEYS_WORD + end
        ]
        size, base = self.value_size, self.values_at
        target.octets[base + at * size : base + (at + count) * size] = source.octets[
            base + begin * size : base + end * size
        ]
        self.erase(source, begin, end)


CHILDREN: Final = Layout(CHILD_SIZE)
"""The layout of every internal node."""

__all__ = ["CHILDREN", "INTERNAL", "KEYS_WORD", "LEAF", "Layout", "entries_in", "is_leaf"]
