"""Removing ranges of keys.

One pass takes the keys out: children that lie wholly within the range are dropped unread where
they are shared, and only the two at its borders are entered.  That leaves nodes too empty on the
paths to the borders alone; they are then mended from the root down, one merge or one move between
siblings at a time, until both paths are sound.

Thread safety: the caller holds the metadata lock.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Any

from thinmeta.btree.drop import count_entries, drop_subtree
from thinmeta.btree.layout import CHILDREN, KEYS_WORD, entries_in, is_leaf
from thinmeta.btree.lookup import leaves
from thinmeta.btree.shadow import shadow_child, shadow_root
from thinmeta.btree.values import Values
from thinmeta.buffers import Buffer
from thinmeta.format.block import Kind
from thinmeta.format.node import LEAF, VALUES_WORD
from thinmeta.transaction import TransactionManager

KEY_LIMIT = 1 << 64


def remove_range(
    tm: TransactionManager, values: Values[Any], root: int, begin: int, end: int
) -> tuple[int, int]:
    """Remove the keys begin..end-1.  Returns the new root and how many there were."""
    if begin >= end or next(leaves(tm, root, begin, end), None) is None:
        return root, 0
    top = shadow_root(tm, values, root)
    removed = _take_out(tm, values, top, begin, end, KEY_LIMIT)
    root = top.block
    mended = True
    while mended:
        mended = False
        for border in (begin, end - 1):
            step = _mend(tm, values, root, border)
            while step is not None:
                mended = True
                root = step
                step = _mend(tm, values, root, border)
    return root, removed


def _take_out(
    tm: TransactionManager, values: Values[Any], node: Buffer, begin: int, end: int, upper: int
) -> int:
    """Remove begin..end-1 below `node`, whose keys are all below `upper`; how many there were."""
    words = node.words
    stop = KEYS_WORD + entries_in(node)
    last = bisect_left(words, end, KEYS_WORD, stop) - KEYS_WORD
    if is_leaf(node):
        first = bisect_left(words, begin, KEYS_WORD, stop) - KEYS_WORD
        if first < last:
            values.dropped(node, first, last)
            values.layout.erase(node, first, last)
        return max(last - first, 0)
    removed = 0
    first = max(bisect_right(words, begin, KEYS_WORD, stop) - KEYS_WORD - 1, 0)
    whole: list[int] = []
    for child in range(first, last):
        lowest = words[KEYS_WORD + child]
        highest = words[KEYS_WORD + child + 1] if KEYS_WORD + child + 1 < stop else upper
        if begin <= lowest and highest <= end:
            removed += _drop_counted(tm, values, words[VALUES_WORD + child])
            whole.append(child)
        else:
            below = shadow_child(tm, values, node, child)
            removed += _take_out(tm, values, below, begin, end, highest)
    if whole:
        CHILDREN.erase(node, whole[0], whole[-1] + 1)
    return removed


def _drop_counted(tm: TransactionManager, values: Values[Any], block: int) -> int:
    count = count_entries(tm, block)
    drop_subtree(tm, values, block)
    return count


def _mend(tm: TransactionManager, values: Values[Any], root: int, key: int) -> int | None:
    """Mend the uppermost node on the path to `key` that is too empty.

    Returns the root afterwards, or None if the path is sound.
    """
    top = tm.read(root, Kind.NODE)
    if is_leaf(top):
        return None
    if entries_in(top) <= 1:
        return _lower_root(tm, values, top)
    parents: list[int] = []
    node = top
    while not is_leaf(node):
        stop = KEYS_WORD + entries_in(node)
        child = max(bisect_right(node.words, key, KEYS_WORD, stop) - KEYS_WORD - 1, 0)
        below = tm.read(node.words[VALUES_WORD + child], Kind.NODE)
        layout = values.layout if is_leaf(below) else CHILDREN
        parents.append(child)
        if entries_in(below) < layout.min_entries:
            return _mend_child(tm, values, root, parents)
        node = below
    return None


def _lower_root(tm: TransactionManager, values: Values[Any], top: Buffer) -> int:
    """Replace an internal root that has one child by it, one that has none by an empty leaf."""
    if entries_in(top) == 0:
        values.layout.init(tm.modify(top.block, Kind.NODE), LEAF)
        return top.block
    child = top.words[VALUES_WORD]
    tm.decrement(top.block)
    return child


def _mend_child(tm: TransactionManager, values: Values[Any], root: int, children: list[int]) -> int:
    """Mend the node reached by taking these child numbers from the root; the root afterwards."""
    node = shadow_root(tm, values, root)
    root = node.block
    for child in children[:-1]:
        node = shadow_child(tm, values, node, child)
    child = children[-1]
    emptied = shadow_child(tm, values, node, child)
    if entries_in(emptied) == 0:
        tm.decrement(emptied.block)
        CHILDREN.erase(node, child, child + 1)
        return root
    left = max(child - 1, 0)
    _join_or_level(tm, values, node, left)
    return root


def _join_or_level(tm: TransactionManager, values: Values[Any], node: Buffer, left: int) -> None:
    """Merge children `left` and `left + 1` of `node`, or, if they do not fit, level them."""
    low = shadow_child(tm, values, node, left)
    high = shadow_child(tm, values, node, left + 1)
    layout = values.layout if is_leaf(low) else CHILDREN
    low_count, high_count = entries_in(low), entries_in(high)
    total = low_count + high_count
    if total <= layout.max_entries:
        layout.move(high, 0, high_count, low, low_count)
        CHILDREN.erase(node, left + 1, left + 2)
        tm.decrement(high.block)
        return
    half = total // 2
    if low_count < half:
        layout.move(high, 0, half - low_count, low, low_count)
    else:
        layout.move(low, half, low_count, high, 0)
    node.words[KEYS_WORD + left + 1] = high.words[KEYS_WORD]
