"""Where a space map's index entries are kept: the one thing in which the two kinds differ.

The data space map keeps them in a btree, the metadata space map in one block.  In memory both are
two lists of words, as the entries lie on disk:

    low[i]   block number of bitmap i
    high[i]  nr_free | none_free_before << 32

Thread safety: the caller holds the metadata lock.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from typing import Final, Protocol

from thinmeta.btree import Tree, Values
from thinmeta.errors import Corrupt, NoMetadataSpace
from thinmeta.format.bitmap import INDEX_ENTRY_SIZE
from thinmeta.format.block import Kind
from thinmeta.format.index import INDEX_ENTRIES, INDEX_HEADER_SIZE
from thinmeta.transaction import TransactionManager

_ENTRY: Final = Struct("<QQ")
assert _ENTRY.size == INDEX_ENTRY_SIZE

Entry = tuple[int, int]
"""(low, high) words of one index entry."""


class EntryValues(Values[Entry]):
    """Index entries as values of a tree."""

    def __init__(self) -> None:
        super().__init__(INDEX_ENTRY_SIZE)

    def pack(self, value: Entry) -> bytes:
        return _ENTRY.pack(*value)

    def unpack(self, octets: memoryview) -> Entry:
        low, high = _ENTRY.unpack(octets)
        return low, high


class Index(Protocol):
    """Index entries on disk."""

    root: int

    def load(self, count: int) -> tuple[list[int], list[int]]:
        """The low and high words of the first `count` entries.  Raises `Corrupt`."""
        ...

    def save(self, entries: Iterable[tuple[int, Entry]]) -> None:
        """Put these (number, entry) pairs, changing `root` if need be."""
        ...

    def check_room(self, count: int) -> None:
        """Raise `NoMetadataSpace` if `count` entries are more than can be indexed."""
        ...


class TreeIndex:
    """The entries in a btree: for the data space map."""

    def __init__(self, tm: TransactionManager, root: int | None = None) -> None:
        self._tree = Tree(tm, EntryValues())
        self.root = self._tree.empty() if root is None else root

    def load(self, count: int) -> tuple[list[int], list[int]]:
        """The low and high words of the first `count` entries.  Raises `Corrupt`."""
        low: list[int] = []
        high: list[int] = []
        for number, entry in self._tree.items(self.root, 0, count):
            if number != len(low):
                break
            low.append(entry[0])
            high.append(entry[1])
        if len(low) != count:
            raise Corrupt(
                "index", f"block {self.root}", f"no index entry for data bitmap {len(low)}"
            )
        return low, high

    def save(self, entries: Iterable[tuple[int, Entry]]) -> None:
        """Put these (number, entry) pairs."""
        for number, entry in entries:
            self.root = self._tree.insert(self.root, number, entry)

    def check_room(self, count: int) -> None:
        """A tree has room for any number."""


class BlockIndex:
    """The entries in one block: for the metadata space map."""

    def __init__(self, tm: TransactionManager, root: int) -> None:
        self._tm = tm
        self.root = root

    def load(self, count: int) -> tuple[list[int], list[int]]:
        """The low and high words of the first `count` entries.  Raises `Corrupt`."""
        words = self._tm.read(self.root, Kind.INDEX).words
        first = INDEX_HEADER_SIZE // 8
        both = words[first : first + 2 * count].tolist()
        return both[::2], both[1::2]

    def save(self, entries: Iterable[tuple[int, Entry]]) -> None:
        """Put these (number, entry) pairs."""
        buffer = self._tm.modify(self.root, Kind.INDEX)
        for number, entry in entries:
            _ENTRY.pack_into(buffer.data, INDEX_HEADER_SIZE + number * INDEX_ENTRY_SIZE, *entry)

    def check_room(self, count: int) -> None:
        """Raise `NoMetadataSpace` if `count` entries are more than fit."""
        if count > INDEX_ENTRIES:
            raise NoMetadataSpace("the metadata has reached the format's limit of 16 GiB")
