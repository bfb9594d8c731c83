"""Reference counts, recomputed.

A byte a block holds counts to 255, which is nearly all; a dict holds what is above. Comparing with
a bitmap on disk is one operation on two big integers for all of its 16320 blocks.

Thread safety: belongs to the one thread that checks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from thinmeta.format.bitmap import ENTRIES_PER_BITMAP, OVERFLOW

_BYTE_MAX = 255
#: A count's two bits as a bitmap has them: the lower one is the count's high bit.
_PAIR_OF_COUNT = bytes((0, 2, 1)) + bytes((OVERFLOW,)) * (_BYTE_MAX - 2)
#: The lower bit of every pair of a bitmap.
LOW_BITS = int.from_bytes(b"\x55" * (ENTRIES_PER_BITMAP // 4), "little")


class ReferenceCounts:
    """How often each of `nr_blocks` blocks was pointed at, so far."""

    def __init__(self, nr_blocks: int) -> None:
        self.nr_blocks = nr_blocks
        self._bytes = bytearray(nr_blocks)
        self._above: Counter[int] = Counter()

    def __getitem__(self, block: int) -> int:
        return self._bytes[block] + self._above[block]

    def add(self, block: int) -> bool:
        """Count `block` once more; whether this was the first time.

        Raises `IndexError` for a block that is not there.
        """
        seen = self._bytes[block]
        if seen == _BYTE_MAX:
            self._above[block] += 1
        else:
            self._bytes[block] = seen + 1
        return not seen

    def add_all(self, blocks: Iterable[int]) -> int:
        """Count each of `blocks` once more; the number of those that are not there."""
        counts, missing = self._bytes, 0
        block = 0
        rest = iter(blocks)
        while True:
            # The exceptions cost nothing while there are none, and `rest` goes on after them.
            try:
                for block in rest:
                    counts[block] += 1
            except ValueError:
                self._above[block] += 1
            except IndexError:
                missing += 1
            else:
                return missing

    def add_run(self, first: int, length: int) -> int:
        """As `add_all`, for `length` blocks from `first` on."""
        end = first + length
        if end > self.nr_blocks or self._bytes[first:end] != bytes(length):
            return self.add_all(range(first, end))
        self._bytes[first:end] = b"\1" * length
        return 0

    def pairs(self, begin: int, end: int) -> int:
        """The counts of blocks `begin` to `end`, as a bitmap that starts at `begin` has them."""
        codes = self._bytes[begin:end].translate(_PAIR_OF_COUNT)
        codes += bytes(-len(codes) % 4)
        packed = 0
        for place in range(4):
            packed |= int.from_bytes(codes[place::4], "little") << 2 * place
        return packed


def used_pairs(pairs: int) -> int:
    """The lower bit of every pair that is not zero."""
    return (pairs | pairs >> 1) & LOW_BITS


def full_pairs(pairs: int) -> int:
    """The lower bit of every pair that says 'look in the overflow tree'."""
    return pairs & pairs >> 1 & LOW_BITS


def entries_of(low_bits: int) -> Iterator[int]:
    """The entries whose lower bit is set, ascending."""
    digits = f"{low_bits:b}"[::-1]
    at = digits.find("1")
    while at >= 0:
        yield at // 2
        at = digits.find("1", at + 1)


def count_at(pairs: int, entry: int) -> int:
    """Count 0..2 of an entry, or `OVERFLOW`."""
    pair = pairs >> 2 * entry & 3
    return (0, 2, 1, OVERFLOW)[pair]
