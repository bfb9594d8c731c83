"""Reservations: space that the pool keeps free for a volume.

A volume made with a reservation can always provision blocks up to it; the others find the pool full
before they eat into what it is still owed. The accounting is conservative, in data blocks:

    owed(volume) = reservation - blocks that the volume owns alone, not below 0

What a volume owns alone grows as it provisions, and shrinks by all that it discards. A snapshot
shares everything, so the promise counts anew: overwriting all of it takes that many new blocks.

Thread-safety: the caller holds the metadata lock.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass


@dataclass
class _Promise:
    blocks: int
    own: int

    @property
    def owed(self) -> int:
        return max(0, self.blocks - self.own)


class Reservations:
    """The promises of one pool, by volume."""

    def __init__(self) -> None:
        self._promises: dict[Hashable, _Promise] = {}

    def __bool__(self) -> bool:
        return bool(self._promises)

    def clear(self) -> None:
        """Take all promises back, to count them anew."""
        self._promises.clear()

    def promise(self, volume: Hashable, blocks: int, own: int = 0) -> None:
        """Promise a volume `blocks`, of which it has `own`; 0 takes the promise back."""
        if blocks:
            self._promises[volume] = _Promise(blocks, own)
        else:
            self._promises.pop(volume, None)

    def owed(self, but_for: Hashable = None) -> int:
        """How many free blocks are promised, other than to the volume `but_for`."""
        if not self._promises:
            return 0
        return sum(promise.owed for volume, promise in self._promises.items() if volume != but_for)

    def of(self, volume: Hashable) -> int:
        """How many free blocks are promised to the volume."""
        promise = self._promises.get(volume)
        return 0 if promise is None else promise.owed

    def wanted(self, volume: Hashable) -> int:
        """How many more free blocks a snapshot of the volume would take out of others' reach."""
        promise = self._promises.get(volume)
        return 0 if promise is None else promise.blocks - promise.owed

    def provisioned(self, volume: Hashable, count: int) -> None:
        """The volume owns `count` blocks more, alone."""
        promise = self._promises.get(volume)
        if promise is not None:
            promise.own += count

    def discarded(self, volume: Hashable, count: int) -> None:
        """The volume has `count` blocks less, some of which it may have owned alone."""
        promise = self._promises.get(volume)
        if promise is not None:
            promise.own = max(0, promise.own - count)

    def shared(self, volume: Hashable) -> None:
        """Everything the volume owned alone is another's too now."""
        promise = self._promises.get(volume)
        if promise is not None:
            promise.own = 0
