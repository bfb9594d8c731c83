"""Making the nodes on a path this tree's own.

Thread safety: the caller holds the metadata lock.
"""

from __future__ import annotations

from typing import Any

from thinmeta.btree.layout import entries_in, is_leaf
from thinmeta.btree.values import Values
from thinmeta.buffers import Buffer
from thinmeta.format.node import VALUES_WORD
from thinmeta.transaction import TransactionManager


def shadow_root(tm: TransactionManager, values: Values[Any], root: int) -> Buffer:
    """The root for changing; it has a new block number if it was shared."""
    buffer = tm.owned.get(root)
    if buffer is None:
        buffer, copied = tm.shadow(root)
        if copied:
            _count_copy(tm, values, buffer)
    return buffer


def shadow_child(tm: TransactionManager, values: Values[Any], parent: Buffer, child: int) -> Buffer:
    """Child number `child` of `parent` for changing; `parent` points at it afterwards."""
    buffer, copied = tm.shadow(parent.words[VALUES_WORD + child])
    if copied:
        _count_copy(tm, values, buffer)
        parent.words[VALUES_WORD + child] = buffer.block
    return buffer


def _count_copy(tm: TransactionManager, values: Values[Any], copy: Buffer) -> None:
    """All that the copied node points at has one owner more."""
    count = entries_in(copy)
    if is_leaf(copy):
        values.copied(copy, 0, count)
    else:
        for block in copy.words[VALUES_WORD : VALUES_WORD + count].tolist():
            tm.increment(block)
