"""A client on libnbd, for what fio cannot be told: single writes, and the time of one flush."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

import nbd

CHUNK = 1 << 20
DEPTH = 8


@contextmanager
def connected(uri: str) -> Iterator[nbd.NBD]:
    handle = nbd.NBD()
    handle.connect_uri(uri)
    try:
        yield handle
    finally:
        handle.shutdown()


def write_then_flush(uri: str, size: int) -> tuple[float, float]:
    """Writes [0, size) in sequence without a flush, then flushes: seconds of each."""
    errors: list[int] = []

    def done(error: nbd.IntPtr) -> int:
        if error.value:
            errors.append(error.value)
        return 1  # libnbd may forget the command

    data = nbd.Buffer.from_bytearray(bytearray(os.urandom(CHUNK)))
    with connected(uri) as handle:
        begin = time.perf_counter()
        for offset in range(0, size, CHUNK):
            handle.aio_pwrite(data, offset, completion=done)
            _settle(handle, DEPTH - 1)
        _settle(handle, 0)
        if errors:
            raise OSError(errors[0], os.strerror(errors[0]))
        middle = time.perf_counter()
        handle.flush()
        return middle - begin, time.perf_counter() - middle


def fragment(uri: str, size: int, block: int) -> None:
    """Writes into every second block of [0, size), in no order, and flushes."""
    offsets = list(range(0, size, 2 * block))
    random.Random(1).shuffle(offsets)
    data = nbd.Buffer.from_bytearray(bytearray(b"f" * 512))
    with connected(uri) as handle:
        for offset in offsets:
            handle.aio_pwrite(data, offset, completion=lambda _: 1)
            _settle(handle, DEPTH - 1)
        _settle(handle, 0)
        handle.flush()


def _settle(handle: nbd.NBD, most: int) -> None:
    """Waits until at most `most` requests are unanswered."""
    while handle.aio_in_flight() > most:
        handle.poll(-1)


def scatter(uri: str, size: int, count: int, seed: int) -> None:
    """Writes `count` blocks of 4 KiB at random places below `size`, and flushes."""
    chance = random.Random(seed)
    with connected(uri) as handle:
        for _ in range(count):
            handle.pwrite(chance.randbytes(4096), chance.randrange(size // 4096) * 4096)
        handle.flush()
