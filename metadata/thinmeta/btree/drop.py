"""Letting go of a whole subtree, and counting what is in one.

Reference counts are lazy: a node's count is the number of its parents, and what a node points at
is counted once for that node, however many parents it has.  So when a parent lets go of a shared
node, nothing below it changes.

Thread safety: the caller holds the metadata lock.
"""

from __future__ import annotations

from typing import Any

from thinmeta.btree.layout import entries_in, is_leaf
from thinmeta.btree.values import Values
from thinmeta.format.block import Kind
from thinmeta.format.node import VALUES_WORD
from thinmeta.transaction import TransactionManager


def drop_subtree(tm: TransactionManager, values: Values[Any], block: int) -> None:
    """One parent lets go of `block`: free all below that nobody else holds."""
    stack = [block]
    while stack:
        block = stack.pop()
        if block not in tm.owned and tm.counts.count(block) > 1:
            tm.decrement(block)
            continue
        buffer = tm.read(block, Kind.NODE)
        count = entries_in(buffer)
        if is_leaf(buffer):
            values.dropped(buffer, 0, count)
        else:
            stack.extend(buffer.words[VALUES_WORD : VALUES_WORD + count].tolist())
        tm.decrement(block)


def count_entries(tm: TransactionManager, block: int) -> int:
    """How many keys there are at and below `block`."""
    total = 0
    stack = [block]
    while stack:
        buffer = tm.read(stack.pop(), Kind.NODE)
        count = entries_in(buffer)
        if is_leaf(buffer):
            total += count
        else:
            stack.extend(buffer.words[VALUES_WORD : VALUES_WORD + count].tolist())
    return total
