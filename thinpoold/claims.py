"""Which of this process's sockets serves which connection, as far as elimination tells.

nbdkit does not say. When a connection opens its volume it is on one of the sockets of its process
that no earlier connection is known to be on: with one such socket that is the one. A client that
connects twice before it opens leaves two possibilities for each; they narrow when others are known.

Invariants

1. Each connection's own socket is among its possibilities for as long as it is open.
2. A socket that is one connection's only possibility is no other's.
3. `of` answers with sockets of the connections it was asked for alone, or not at all.

Sockets are told by their inode numbers, which no other has while they are open.

Thread-safety: the caller's lock.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Claims(Generic[K]):
    """The connections that are open, and what sockets each may be on."""

    def __init__(self) -> None:
        self._possible: dict[K, set[int]] = {}

    def add(self, connection: K, sockets: Collection[int]) -> None:
        """A connection has come, on one of these sockets."""
        self._possible[connection] = set(sockets)
        self._narrow()

    def remove(self, connection: K) -> None:
        """A connection has gone; its socket may be there for a moment yet."""
        self._possible.pop(connection, None)

    def of(self, connections: Collection[K], there: Collection[int]) -> set[int] | None:
        """Return the sockets of these connections, of those that are `there`.

        None where one of them may be another connection's.
        """
        chosen = set(connections)
        found = set[int]().union(*(self._possible.get(one, set()) for one in chosen))
        found.intersection_update(there)
        others = (sockets for one, sockets in self._possible.items() if one not in chosen)
        return None if any(not found.isdisjoint(sockets) for sockets in others) else found

    def _narrow(self) -> None:
        known: set[int] = set()
        while True:
            sure = {min(one) for one in self._possible.values() if len(one) == 1} - known
            if not sure:
                return
            known |= sure
            for sockets in self._possible.values():
                if len(sockets) > 1:
                    sockets.difference_update(sure)
