"""Walking btrees that may be damaged.

Every node is visited once, however many trees share it. What is found wrong with a node is told
with the place where it was found; below a node that cannot be read, everything is lost, and it is
told what that was in every tree that leads there.

Invariants:

1. A node's references are counted at its first visit only. So counts are what they must be on disk:
   one for each parent that points at a block.
2. A node that more than one parent may point at leaves a summary, from which a later visit knows
   what it would have seen.
3. Nothing read from disk is trusted: not to be there, to be a node, to end, or to be a tree at all.

Thread safety: belongs to the one thread that checks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from operator import lt
from typing import Final, NamedTuple

from thinmeta.check.counts import ReferenceCounts
from thinmeta.check.result import Findings
from thinmeta.errors import Corrupt, StoreError
from thinmeta.format.block import Kind, verify
from thinmeta.format.node import (
    CHILD_SIZE,
    ENTRIES_WORD,
    INTERNAL,
    KEYS_WORD,
    LEAF,
    MAX_CHILDREN,
    VALUES_WORD,
    header_of,
    max_entries,
    min_entries,
)
from thinmeta.store.protocol import BlockStore

_PROGRESS_NODES: Final = 256
#: How many losses are told of one block.
_TOLD: Final = 8
#: Nodes with 84 children hold 2**64 keys in 11 levels.
_MAX_DEPTH: Final = 12


@dataclass(frozen=True, slots=True)
class Tree:
    """What the walker must know of a tree.

    `keys` names what its keys are, for messages. `leaf(where, keys, data)` is called with each
    leaf's keys, ascending or not, and its block.
    """

    name: str
    keys: str
    value_size: int
    leaf: Callable[[str, list[int], bytearray], None]


class Place(NamedTuple):
    """Where a node is: its block, the keys [low, high) below it, and how far from the root."""

    block: int
    low: int = 0
    high: int | None = None
    depth: int = 0

    @property
    def is_root(self) -> bool:
        return self.depth == 0


class Summary(NamedTuple):
    """What a visit found: `first` and `last` key (None of an empty tree), entries in leaves.

    `height` is 0 for a leaf. With anything in `lost`, nodes that cannot be read, the rest is of
    what could be.
    """

    first: int | None = None
    last: int | None = None
    entries: int = 0
    height: int = 0
    lost: tuple[Place, ...] = ()


@dataclass(slots=True)
class _Damage:
    kind: str
    message: str
    losses: list[str] = field(default_factory=list)


class TreeWalker:
    """Walks the trees of one store, and counts the references to metadata blocks.

    `shared(block)` tells whether more than one parent may point at a block; `progress(visited)` is
    called now and then.
    """

    def __init__(
        self,
        store: BlockStore,
        counts: ReferenceCounts,
        findings: Findings,
        shared: Callable[[int], bool],
        progress: Callable[[int], None],
    ) -> None:
        self._store = store
        self._counts = counts
        self._findings = findings
        self._shared = shared
        self._progress = progress
        self._visited = 0
        #: Of nodes that may be visited again: the tree they were found in, and None for the
        #: summary while the visit is under way.
        self._seen: dict[int, tuple[Tree, Summary | None]] = {}
        #: Roots with fewer entries than any other node may have.
        self._small_roots: set[int] = set()
        self._damage: dict[int, _Damage] = {}

    def walk(self, tree: Tree, root: int) -> Summary:
        """Visit the whole tree below `root`, which counts as one reference."""
        return self._visit(tree, Place(root))

    def report(self) -> None:
        """Tell of the blocks that could not be read, and of what was lost with each."""
        for block, damage in self._damage.items():
            losses = damage.losses[:_TOLD]
            if len(damage.losses) > _TOLD:
                losses.append(f"and {len(damage.losses) - _TOLD} more")
            self._findings.add(
                damage.kind, f"block {block}", f"{damage.message}; lost: {', '.join(losses)}"
            )

    def _visit(self, tree: Tree, place: Place) -> Summary:
        block = place.block
        try:
            first_time = self._counts.add(block)
        except IndexError:
            return self._lose(tree, place, "node", f"is past the end, {self._counts.nr_blocks}")
        if not first_time:
            return self._visit_again(tree, place)
        shared = self._shared(block)
        if shared:
            self._seen[block] = tree, None
        self._visited += 1
        if self._visited % _PROGRESS_NODES == 0:
            self._progress(self._visited)
        try:
            data = self._store.read(block)
            verify(data, Kind.NODE, block)
        except Corrupt as damage:
            summary = self._lose(tree, place, damage.kind, damage.message)
        except StoreError as error:
            summary = self._lose(tree, place, "io", str(error))
        else:
            fault = _fault(data, tree.value_size, place.depth)
            summary = (
                self._lose(tree, place, "node", fault) if fault else self._look(tree, place, data)
            )
        if shared:
            self._seen[block] = tree, summary
        return summary

    def _look(self, tree: Tree, place: Place, data: bytearray) -> Summary:
        words = memoryview(data).cast("Q")
        entries = words[ENTRIES_WORD] & 0xFFFFFFFF
        keys = words[KEYS_WORD : KEYS_WORD + entries].tolist()
        where = f"{tree.name}, block {place.block}"
        if not all(map(lt, keys, keys[1:])):
            self._findings.add("node", where, "keys are out of order")
        if words[0] >> 32 == LEAF:
            self._check_fill(where, place, entries, min_entries(tree.value_size))
            tree.leaf(where, keys, data)
            summary = Summary(keys[0], keys[-1], entries) if keys else Summary()
        else:
            self._check_fill(where, place, entries, min_entries(CHILD_SIZE))
            children = words[VALUES_WORD : VALUES_WORD + entries].tolist()
            summary = self._descend(tree, place, where, keys, children)
        self._check_range(where, place, keys[0] if keys else None, keys[-1] if keys else None)
        return summary

    def _descend(
        self, tree: Tree, place: Place, where: str, keys: list[int], children: list[int]
    ) -> Summary:
        ends = [*keys[1:], place.high]
        below = [
            self._visit(tree, Place(child, key, end, place.depth + 1))
            for child, key, end in zip(children, keys, ends, strict=True)
        ]
        heights = {one.height for one in below if not one.lost}
        if len(heights) > 1:
            self._findings.add("node", where, "children are of different heights")
        return Summary(
            keys[0],
            below[-1].last,
            sum(one.entries for one in below),
            1 + max(heights, default=0),
            tuple(lost for one in below for lost in one.lost),
        )

    def _visit_again(self, tree: Tree, place: Place) -> Summary:
        block = place.block
        where = f"{tree.name}, block {block}"
        if block in self._damage:
            return self._lose(tree, place)
        if block not in self._seen:
            # On disk it is counted once. That is not what was found, and will be told as such.
            return Summary(lost=(place,))
        found_in, summary = self._seen[block]
        if summary is None:
            return self._lose(tree, place, "node", "is below itself")
        if (found_in.keys, found_in.value_size) != (tree.keys, tree.value_size):
            self._findings.add("node", where, f"is of another tree, {found_in.name}")
            return Summary(lost=(place,))
        self._check_range(where, place, summary.first, summary.last)
        if not place.is_root and block in self._small_roots:
            self._findings.add("node", where, "has fewer entries than a node may have")
        for lost in summary.lost:
            self._lose(tree, lost)
        return summary

    def _check_range(self, where: str, place: Place, first: int | None, last: int | None) -> None:
        low, high = place.low, place.high
        if first is not None and first < low:
            self._findings.add("node", where, f"has key {first}, but its parent starts at {low}")
        if last is not None and high is not None and last >= high:
            self._findings.add("node", where, f"has key {last}, but its parent ends before {high}")

    def _check_fill(self, where: str, place: Place, entries: int, least: int) -> None:
        if entries >= least:
            return
        if place.is_root:
            self._small_roots.add(place.block)
        else:
            self._findings.add("node", where, f"has {entries} entries, of {least} at least")

    def _lose(
        self, tree: Tree, place: Place, kind: str = "node", message: str = "cannot be read"
    ) -> Summary:
        damage = self._damage.setdefault(place.block, _Damage(kind, message))
        end = "" if place.high is None else str(place.high - 1)
        damage.losses.append(
            f"{tree.name}, all of it"
            if place.low == 0 and place.high is None
            else f"{tree.name}, {tree.keys} {place.low}..{end}"
        )
        return Summary(lost=(place,))


def _fault(data: bytearray, value_size: int, depth: int) -> str | None:
    """Why this cannot be read as a node of a tree with such values, or None."""
    if depth > _MAX_DEPTH:
        return f"is {depth} levels below its root"
    flags, entries, room, size = header_of(data)
    if flags == INTERNAL:
        wanted, wanted_size = MAX_CHILDREN, CHILD_SIZE
    elif flags == LEAF:
        wanted, wanted_size = max_entries(value_size), value_size
    else:
        return f"has flags {flags:#x}, neither internal nor leaf"
    if size != wanted_size:
        return f"has values of {size} bytes, not of {wanted_size}"
    if room != wanted:
        return f"has room for {room} entries, not for {wanted}"
    if entries > room:
        return f"has {entries} entries in room for {room}"
    if flags == INTERNAL and not entries:
        return "is an internal node without children"
    return None
