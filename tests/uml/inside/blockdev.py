"""Reads, writes and discards on block devices, past the page cache.

Nothing of what a test wrote may be answered from a cache above the device under test, so
everything here is O_DIRECT: offsets and lengths are multiples of 512 bytes.
"""

import fcntl
import mmap
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_BLKDISCARD = 0x1277
_LONGEST = 1 << 20


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """The device as a file descriptor for reading and writing."""
    fd = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def write(fd: int, offset: int, data: bytes) -> None:
    """Writes all of `data` at byte `offset`."""
    with mmap.mmap(-1, len(data)) as buffer:  # Pages are aligned, as O_DIRECT wants it.
        buffer[:] = data
        done = os.pwritev(fd, [buffer], offset)
    if done != len(data):
        raise AssertionError(f"{done} of {len(data)} bytes written at {offset}")


def read(fd: int, offset: int, length: int) -> bytes:
    """Exactly `length` bytes from byte `offset` on."""
    with mmap.mmap(-1, length) as buffer:
        done = os.preadv(fd, [buffer], offset)
        if done != length:
            raise AssertionError(f"{done} of {length} bytes read at {offset}")
        return buffer[:]


def discard(fd: int, offset: int, length: int) -> None:
    """Discards a range of bytes."""
    fcntl.ioctl(fd, _BLKDISCARD, struct.pack("=QQ", offset, length))


def parts(fd: int, ranges: Iterable[tuple[int, int]]) -> Iterator[memoryview]:
    """The content of ranges of bytes, (offset, length), each valid until the next."""
    view = memoryview(mmap.mmap(-1, _LONGEST))  # Unmapped when the last view of it has gone.
    for offset, length in ranges:
        done = os.preadv(fd, [view[:length]], offset)
        if done != length:
            raise AssertionError(f"{done} of {length} bytes read at {offset}")
        yield view[:length]
