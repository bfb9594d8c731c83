"""Splitting a request at block boundaries: unaligned head, whole blocks, unaligned tail.

Pure arithmetic. Offsets and counts are bytes, blocks are numbers of virtual blocks.
"""

from __future__ import annotations

from typing import NamedTuple


class Span(NamedTuple):
    """A range of bytes. Empty when `length` is 0."""

    offset: int
    length: int


class Split(NamedTuple):
    """A request in three parts, each maybe empty; `body` is whole blocks begin..end-1.

    A request within one block that does not fill it is all head.
    """

    head: Span
    begin: int
    end: int
    tail: Span

    @property
    def edges(self) -> list[Span]:
        """The parts that fill no block."""
        return [span for span in (self.head, self.tail) if span.length]


def split(offset: int, count: int, block_size: int, size: int) -> Split:
    """Split a request on a volume of `size` bytes.

    The volume's last block may be cut short by its end; a request up to there fills it.
    """
    stop = offset + count
    begin = -(-offset // block_size)
    end = stop // block_size
    if stop == size and stop % block_size:
        end += 1
    if begin >= end:
        return Split(Span(offset, count), begin, begin, Span(stop, 0))
    body_end = min(end * block_size, size)
    return Split(
        Span(offset, begin * block_size - offset), begin, end, Span(body_end, stop - body_end)
    )


def blocks_of(offset: int, count: int, block_size: int) -> tuple[int, int]:
    """Return the blocks that a request touches, as (first, behind the last)."""
    return offset // block_size, -(-(offset + count) // block_size)
