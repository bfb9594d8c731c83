"""A client that sends requests of one kind, one after the other, and says how many it had answered.

    python -m scripts.benchmarks.requester URI KIND SECONDS

It says that it is connected, begins when it is told a line, and ends with requests a second.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable

import nbd

BLOCK = 64 << 10
# A block status or prefetch request is of as much as NBD lets one be, all but.
_MOST = 1 << 31


class Requester:
    """One connection. Each method is a kind of request, made once; places are gone through in turn,
    from one by chance."""

    def __init__(self, uri: str) -> None:
        self._nbd = nbd.NBD()
        self._nbd.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
        self._nbd.connect_uri(uri)
        self._size: int = self._nbd.get_size()
        self._block = random.randrange(self._size // BLOCK)
        self._data = bytes(4096 * [1])

    def close(self) -> None:
        self._nbd.shutdown()

    def _next(self, stride: int = 1, first: int = 0) -> int:
        """The offset of the next block, of those `stride` apart from `first` on."""
        self._block += 1
        return self._block % (self._size // BLOCK // stride) * stride * BLOCK + first * BLOCK

    def mapped(self) -> None:
        self._nbd.pread(4096, self._next(2))

    def unmapped(self) -> None:
        self._nbd.pread(4096, self._next(2, 1))

    def first(self) -> None:
        self._nbd.pwrite(self._data, self._next())

    def flush(self) -> None:
        self._nbd.pwrite(self._data, self._next())
        self._nbd.flush()

    def zero(self) -> None:
        self._nbd.zero(BLOCK, self._next(), nbd.CMD_FLAG_NO_HOLE)

    def trim(self) -> None:
        at = self._next()
        self._nbd.pwrite(self._data, at)
        self._nbd.trim(min(_MOST, self._size - at), at)

    def status(self) -> None:
        at = self._next()

        def note(_context: str, offset: int, entries: list[int], _error: nbd.IntPtr) -> int:
            # As who looks at all of it: on where the answer ends.
            self._block += sum(entries[::2]) // BLOCK
            return 0

        self._nbd.block_status(min(_MOST, self._size - at), at, note)

    def cache(self) -> None:
        self._nbd.cache(min(_MOST, self._size), 0)


# By what people call them.
KINDS: dict[str, Callable[[Requester], None]] = {
    "mapped reads": Requester.mapped,
    "unmapped reads": Requester.unmapped,
    "first writes": Requester.first,
    "first writes with flushes": Requester.flush,
    "zeroes": Requester.zero,
    "trims": Requester.trim,
    "block status": Requester.status,
    "prefetch": Requester.cache,
}


def main() -> None:
    uri, kind, seconds = sys.argv[1:4]
    requester, request = Requester(uri), KINDS[kind]
    print("connected", flush=True)
    sys.stdin.readline()
    count, begun = 0, time.monotonic()
    end = begun + float(seconds)
    while (now := time.monotonic()) < end:
        request(requester)
        count += 1
    print(count / (now - begun), flush=True)
    requester.close()


if __name__ == "__main__":
    main()
