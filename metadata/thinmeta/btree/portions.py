"""Letting go of a large tree in portions, between which it is a sound tree, only smaller.

Dropping a tree takes time for every leaf that nobody else holds, and next to none for a subtree
that somebody does: one count goes down, whatever is below.  So the leaves that the tree holds alone
are removed first, as ranges of keys, a portion at a time.  Shared subtrees are passed over; they
are left to the end, when the rest is dropped at once.  Where very many leaves are shared one by
one, the rest would be too much for once, and the later ones are removed with the others.

Invariants

1. A portion costs about as much as removing `PORTION` entries, and dropping what is left after the
   last one as much as lowering `LEFT` counts.
2. A cursor only saves looking again: from a new one the same tree is let go of just as well.

Thread safety: the caller holds the metadata lock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from thinmeta.btree.layout import KEYS_WORD, entries_in, is_leaf
from thinmeta.format.block import Kind
from thinmeta.format.node import VALUES_WORD
from thinmeta.transaction import TransactionManager

#: Entries removed at a time: from 3 ms where they are runs to 40 ms where each is apart.
PORTION: Final = 1 << 13
#: Shared subtrees left to the end.
LEFT: Final = 1 << 14
#: What removing a range costs besides its entries, in entries.
_RANGE_COST: Final = 64
#: What a shared leaf costs that is removed: it is read for its count.
_SHARED_COST: Final = 32

_KEY_LIMIT: Final = 1 << 64

Keys = tuple[int, int]
"""The keys begin..end-1."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a tree was looked at: to key `begin` - 1; `left` subtrees stay to the end."""

    begin: int = 0
    left: int = 0


def next_portion(tm: TransactionManager, root: int, at: Cursor) -> tuple[list[Keys], Cursor | None]:
    """The ranges of keys to remove next, ascending, and the cursor for what comes after that.

    There may be no ranges.  No cursor: nothing is to be removed, and dropping the rest is quick.
    """
    found: list[Keys] = []
    cost, left = 0, at.left
    # What is to be looked at: block, leaves are so many levels below, keys begin..end-1.
    stack = [(root, _height(tm, root), 0, _KEY_LIMIT)]
    while stack:
        block, height, begin, end = stack.pop()
        if end <= at.begin:
            continue
        if cost >= PORTION:
            return found, Cursor(begin, left)
        cost += 1
        if block not in tm.owned and tm.counts.count(block) > 1:
            if height or left < LEFT:
                left += 1
                continue
            cost += _SHARED_COST
        elif not height:
            cost += entries_in(tm.read(block, Kind.NODE))
        if height:
            stack.extend(_children(tm, block, height - 1, begin, end))
        elif found and found[-1][1] == begin:
            found[-1] = (found[-1][0], end)
        else:
            cost += _RANGE_COST
            found.append((begin, end))
    return found, Cursor(_KEY_LIMIT, left) if found else None


def _height(tm: TransactionManager, root: int) -> int:
    height = 0
    node = tm.read(root, Kind.NODE)
    while not is_leaf(node):
        height += 1
        node = tm.read(node.words[VALUES_WORD], Kind.NODE)
    return height


def _children(
    tm: TransactionManager, block: int, height: int, begin: int, end: int
) -> list[tuple[int, int, int, int]]:
    """The children of an internal node with keys begin..end-1, the last one first."""
    node = tm.read(block, Kind.NODE)
    count = entries_in(node)
    children = node.words[VALUES_WORD : VALUES_WORD + count].tolist()
    # The first child may be asked for keys below its first, as the node may.
    bounds = [begin, *node.words[KEYS_WORD + 1 : KEYS_WORD + count].tolist(), end]
    return [
        (child, height, low, high)
        for child, low, high in zip(children, bounds, bounds[1:], strict=False)
    ][::-1]
