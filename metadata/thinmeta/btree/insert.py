"""Inserting runs of consecutive keys.

The way down shadows every node, so that all of the path belongs to this tree alone.  A full node
first gives entries to a sibling that has room, and is split only when none has; both take one
step, after which the descent starts again from the root.  Growth in ascending order, the commonest
there is, so leaves full leaves behind: the node that grows fills its left sibling up and, when
that is full, splits off the smallest node allowed.

Source of the algorithm: the B+ tree of Comer, 'The Ubiquitous B-Tree' (1979), with the sibling
sharing of B* trees.

Thread safety: the caller holds the metadata lock.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from typing import Any, TypeAlias

from thinmeta.btree.layout import CHILDREN, KEYS_WORD, U32, Layout, entries_in
from thinmeta.btree.shadow import shadow_child, shadow_root
from thinmeta.btree.values import Values
from thinmeta.buffers import Buffer
from thinmeta.format.block import Kind
from thinmeta.format.node import ENTRIES_WORD, INTERNAL, LEAF, VALUES_WORD
from thinmeta.transaction import TransactionManager

KEY_LIMIT = 1 << 64

#: A sibling takes entries only when it has more than one in this many of its places free; sharing
#: with a fuller one would soon have to be done again.
SHARE_FRACTION = 8


#: The leaf for a key, (node, child number) pairs above it, and the next leaf's first key.
Descent: TypeAlias = tuple[Buffer, list[tuple[Buffer, int]], int]


def insert_run(
    tm: TransactionManager, values: Values[Any], root: int, key: int, packed: bytes, count: int
) -> tuple[int, int]:
    """Insert keys key..key+count-1 with the values that stand in `packed`, one after the other.

    What the keys held before is replaced.  Returns the new root and how many keys were there.
    """
    layout = values.layout
    size = layout.value_size
    replaced = done = 0
    while done < count:
        top = tm.owned.get(root) or shadow_root(tm, values, root)
        root = top.block
        leaf, path, upper = _descend(tm, values, top, key)
        words = leaf.words
        have = words[ENTRIES_WORD] & U32
        at = bisect_left(words, key, KEYS_WORD, KEYS_WORD + have) - KEYS_WORD
        wanted = count - done
        if at < have and words[KEYS_WORD + at] == key:
            taken = _run_length(leaf, at, have, wanted)
            values.dropped(leaf, at, at + taken)
            replaced += taken
        else:
            if have == layout.max_entries:
                root = _make_room(tm, values, path, leaf, key)
                continue
            following = words[KEYS_WORD + at] if at < have else upper
            taken = min(wanted, following - key, layout.max_entries - have)
            layout.open_gap(leaf, at, taken)
            if taken == 1:
                words[KEYS_WORD + at] = key
            else:
                words[KEYS_WORD + at : KEYS_WORD + at + taken] = memoryview(
                    array("Q", range(key, key + taken))
                )
        base = layout.values_at + at * size
        part = packed if taken == count else packed[done * size : (done + taken) * size]
        leaf.octets[base : base + taken * size] = part
        done += taken
        key += taken
    return root, replaced


def _descend(tm: TransactionManager, values: Values[Any], buffer: Buffer, key: int) -> Descent:
    """Walk down to the leaf for `key`, shadowing, and lowering first keys that are above it."""
    path: list[tuple[Buffer, int]] = []
    upper = KEY_LIMIT
    owned = tm.owned
    words = buffer.words
    while words[0] >> 32 != LEAF:
        stop = KEYS_WORD + (words[ENTRIES_WORD] & U32)
        at = bisect_right(words, key, KEYS_WORD, stop)
        if at < stop:
            upper = words[at]
        if at == KEYS_WORD:
            words[KEYS_WORD] = key
            at += 1
        child = at - KEYS_WORD - 1
        path.append((buffer, child))
        buffer = owned.get(words[VALUES_WORD + child]) or shadow_child(tm, values, buffer, child)
        words = buffer.words
    return buffer, path, upper


def _run_length(leaf: Buffer, at: int, have: int, wanted: int) -> int:
    """How many entries from `at` on have consecutive keys, up to `wanted`."""
    words = leaf.words
    most = min(wanted, have - at)
    first = words[KEYS_WORD + at]
    if words[KEYS_WORD + at + most - 1] == first + most - 1:
        return most
    length = 1
    while words[KEYS_WORD + at + length] == first + length:
        length += 1
    return length


def _make_room(
    tm: TransactionManager,
    values: Values[Any],
    path: list[tuple[Buffer, int]],
    node: Buffer,
    key: int,
) -> int:
    """Take one step towards room for `key` in the full `node`; the tree's root afterwards."""
    layout = values.layout if node.words[0] >> 32 == LEAF else CHILDREN
    if not path:
        root = tm.new(Kind.NODE)
        CHILDREN.init(root, INTERNAL)
        CHILDREN.open_gap(root, 0, 1)
        root.words[KEYS_WORD] = node.words[KEYS_WORD]
        root.words[VALUES_WORD] = node.block
        path = [(root, 0)]
    parent, child = path[-1]
    grows = key > node.words[KEYS_WORD + layout.max_entries - 1]
    if not _share(tm, layout, parent, child, node, grows):
        if entries_in(parent) == CHILDREN.max_entries:
            return _make_room(tm, values, path[:-1], parent, key)
        _split(tm, layout, parent, child, node, grows)
    return path[0][0].block


def _share(
    tm: TransactionManager, layout: Layout, parent: Buffer, child: int, node: Buffer, grows: bool
) -> bool:
    """Move entries of the full `node` to a sibling with room; False if none has."""
    left = _sibling_with_room(tm, layout, parent, child - 1)
    if left is not None:
        have = entries_in(left)
        room = layout.max_entries - have
        layout.move(node, 0, room if grows else (room + 1) // 2, left, have)
        parent.words[KEYS_WORD + child] = node.words[KEYS_WORD]
        return True
    right = None if grows else _sibling_with_room(tm, layout, parent, child + 1)
    if right is not None:
        room = layout.max_entries - entries_in(right)
        layout.move(node, layout.max_entries - (room + 1) // 2, layout.max_entries, right, 0)
        parent.words[KEYS_WORD + child + 1] = right.words[KEYS_WORD]
        return True
    return False


def _sibling_with_room(
    tm: TransactionManager, layout: Layout, parent: Buffer, child: int
) -> Buffer | None:
    """That child of `parent` for changing, if it is there, has room, and is not shared."""
    if not 0 <= child < entries_in(parent):
        return None
    block = parent.words[VALUES_WORD + child]
    have = entries_in(tm.read(block, Kind.NODE))
    if layout.max_entries - have <= layout.max_entries // SHARE_FRACTION:
        return None
    if block not in tm.owned and tm.counts.count(block) > 1:
        return None
    return tm.shadow(block)[0]


def _split(
    tm: TransactionManager, layout: Layout, parent: Buffer, child: int, node: Buffer, grows: bool
) -> None:
    """Move the upper entries of the full `node` to a new right sibling; `parent` has room."""
    right = tm.new(Kind.NODE)
    layout.init(right, node.words[0] >> 32)
    keep = layout.max_entries - (layout.min_entries if grows else layout.max_entries // 2)
    layout.move(node, keep, layout.max_entries, right, 0)
    CHILDREN.open_gap(parent, child + 1, 1)
    parent.words[KEYS_WORD + child + 1] = right.words[KEYS_WORD]
    parent.words[VALUES_WORD + child + 1] = right.block
