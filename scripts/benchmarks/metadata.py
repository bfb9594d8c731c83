"""The metadata library alone, in process: no daemon, no NBD, no data device, but LMDB on a disk.

Each case runs in a process of its own, so that what it says of memory is its own doing.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from thinmeta.store.lmdb import LmdbStore
from thinmeta.thin.metadata import ThinMetadata

from .figures import Spread

BLOCK_SECTORS = 128  # 64 KiB data blocks
MAPPINGS_PER_GIB = (1 << 30) // (BLOCK_SECTORS * 512)
CACHE_BYTES = 64 << 20
COMMIT_EVERY = 20_000  # mappings: about what one second of first writes makes
COMMIT_RUNS = 1 << 18  # the same for mappings made in runs
DEVICE = 0

T = TypeVar("T")


@dataclass(frozen=True)
class Inserts:
    """One mapping at a time into an empty device."""

    order: str
    mappings: int
    insert_us: float  # reserve(1) and insert, without the commits
    commit_us: float  # the commits, shared out over the mappings
    file_bytes: float  # of metadata file a mapping
    memory_bytes: int  # what the process grew by


@dataclass(frozen=True)
class Large:
    """A device with many mappings: what depends on its size, and what must not."""

    mappings: int
    run: int  # mappings made at once; 0: in sequence, else shuffled runs of that length
    build_seconds: float
    file_bytes: float  # a mapping
    snapshot_ms: Spread  # create_snapshot and its commit


@dataclass(frozen=True)
class Opened:
    """Opening the metadata of a large pool, by a new process."""

    mappings: int
    cold_ms: Spread  # the file dropped from the page cache first
    warm_ms: Spread
    memory_bytes: int  # what the process grew by, with one look-up done


def alone(case: Callable[..., T], *arguments: object) -> T:
    """Runs `case` in a new process and returns what it returned."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as executor:
        return executor.submit(case, *arguments).result()


def inserts(path: Path, order: str, mappings: int) -> Inserts:
    """Maps `mappings` virtual blocks of a device four times that size, ascending or shuffled."""
    blocks = list(range(mappings))
    if order == "random":
        blocks = random.Random(1).sample(range(4 * mappings), mappings)
    with new_pool(path, mappings) as metadata:
        before, empty = resident(), file_bytes(path)
        spent = committing = 0.0
        for start in range(0, mappings, COMMIT_EVERY):
            batch = blocks[start : start + COMMIT_EVERY]
            begin = time.perf_counter()
            for virtual in batch:
                data, _ = metadata.reserve(1)
                metadata.insert(DEVICE, virtual, data)
            middle = time.perf_counter()
            metadata.commit()
            spent += middle - begin
            committing += time.perf_counter() - middle
        grown = resident() - before
    return Inserts(
        order,
        mappings,
        spent / mappings * 1e6,
        committing / mappings * 1e6,
        (file_bytes(path) - empty) / mappings,
        grown,
    )


def build(path: Path, mappings: int, run: int, snapshots: int) -> Large:
    """Maps a device, then snapshots it again and again, a commit each.

    In sequence when `run` is 0; else in runs of that many mappings, in random order.
    """
    length = run or 1 << 14
    begins = list(range(0, mappings, length))
    if run:
        random.Random(1).shuffle(begins)
    begin = time.perf_counter()
    with new_pool(path, mappings) as metadata:
        empty, uncommitted = file_bytes(path), 0
        for first in begins:
            done = 0
            while done < length:
                data, count = metadata.reserve(length - done)
                metadata.insert(DEVICE, first + done, data, count)
                done += count
            uncommitted += length
            if uncommitted >= COMMIT_RUNS:
                metadata.commit()
                uncommitted = 0
        metadata.commit()
        built = time.perf_counter() - begin
        size = file_bytes(path) - empty
        times = []
        for number in range(snapshots):
            begin = time.perf_counter()
            metadata.create_snapshot(DEVICE + 1 + number, DEVICE)
            metadata.commit()
            times.append((time.perf_counter() - begin) * 1e3)
    return Large(mappings, run, built, size / mappings, Spread.of(times))


def open_once(path: Path, mappings: int) -> tuple[float, int]:
    """Milliseconds to open, and bytes of memory the process grew by."""
    before = resident()
    begin = time.perf_counter()
    store = LmdbStore(path, read_only=True)
    metadata = ThinMetadata.open(store, cache_bytes=CACHE_BYTES)
    spent = (time.perf_counter() - begin) * 1e3
    assert metadata.lookup(DEVICE, mappings - 1) is not None
    grown = resident() - before
    store.close()
    return spent, grown


def opening(path: Path, mappings: int, times: int) -> Opened:
    """Opens `times` times from the disk and `times` times from the page cache."""
    cold, warm, grown = [], [], 0
    for _ in range(times):
        forget(path)
        cold.append(alone(open_once, path, mappings)[0])
        spent, grown = alone(open_once, path, mappings)
        warm.append(spent)
    return Opened(mappings, Spread.of(cold), Spread.of(warm), grown)


@contextlib.contextmanager
def new_pool(path: Path, mappings: int) -> Iterator[ThinMetadata]:
    """Metadata with one empty device and room for `mappings` data blocks."""
    store = LmdbStore(path, create=True)
    try:
        metadata = ThinMetadata.create(
            store,
            data_block_sectors=BLOCK_SECTORS,
            data_blocks=mappings + COMMIT_EVERY,
            cache_bytes=CACHE_BYTES,
        )
        metadata.create_thin(DEVICE)
        metadata.commit()
        yield metadata
    finally:
        store.close()


def file_bytes(path: Path) -> int:
    """Bytes of disk that the metadata file takes."""
    return path.stat().st_blocks * 512


def forget(path: Path) -> None:
    """Drops the file's pages from the page cache."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)


def resident() -> int:
    """Bytes of this process's anonymous memory; the mapped metadata file does not count."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise RuntimeError("/proc/self/status names no RssAnon")
