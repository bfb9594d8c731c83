"""The metadata library alone, in process: no daemon, no NBD, no data device, but LMDB on a disk.

Each case runs in a process of its own, so that what it says of memory is its own doing.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import random
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from thinmeta.check.files import check_file
from thinmeta.store.lmdb import LmdbStore
from thinmeta.thin.metadata import ThinMetadata

from .figures import Spread

BLOCK_SECTORS = 128  # 64 KiB data blocks
MAPPINGS_PER_GIB = (1 << 30) // (BLOCK_SECTORS * 512)
MAPPINGS_PER_TIB = MAPPINGS_PER_GIB << 10
CACHE_BYTES = 64 << 20
COMMIT_EVERY = 20_000  # mappings: about what one second of first writes makes
COMMIT_RUNS = 1 << 18  # the same for mappings made in runs
COMMIT_INSERTS = 1000
DEVICE, SNAPSHOT = 0, 1

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
class Grown:
    """A device with many mappings: what depends on their number, and what must not."""

    mappings: int
    run: int  # mappings made at once; 0: in sequence, else shuffled runs of that length
    build_seconds: float
    file_bytes: float  # a mapping
    open_cold_ms: Spread  # the file dropped from the page cache first
    open_warm_ms: Spread
    open_memory_bytes: int  # what the process grew by, with one look-up done
    work: Work | None  # None where only opening was measured


@dataclass(frozen=True)
class Work:
    """Changes of a device with many mappings."""

    insert_us: Spread  # a mapping where one had been removed, at random places
    commit_ms: Spread  # of COMMIT_INSERTS such inserts
    snapshot_ms: Spread  # with its commit
    delete_snapshot_ms: Spread  # with its commit
    check_seconds: float
    delete_seconds: float  # of the device itself, with its commit


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


def grown(path: Path, mappings: int, run: int, times: int, *, work: bool = True) -> Grown:
    """All about a device with `mappings` mappings; each part in a process of its own."""
    built, size = alone(build, path, mappings, run)
    cold, warm, memory = [], [], 0
    for _ in range(times):
        forget(path)
        cold.append(alone(open_once, path, mappings)[0])
        spent, memory = alone(open_once, path, mappings)
        warm.append(spent)
    done = None
    if work:
        inserts, commits, snapshots, deletes = alone(change, path, mappings, times)
        done = Work(
            Spread.of(inserts),
            Spread.of(commits),
            Spread.of(snapshots),
            Spread.of(deletes),
            check_seconds=alone(check_once, path),
            delete_seconds=alone(delete_once, path),
        )
    path.unlink()
    return Grown(mappings, run, built, size, Spread.of(cold), Spread.of(warm), memory, done)


def build(path: Path, mappings: int, run: int) -> tuple[float, float]:
    """Maps a device: seconds, and bytes of file a mapping.

    In sequence when `run` is 0; else in runs of that many mappings, in random order.
    """
    begin = time.perf_counter()
    with new_pool(path, mappings) as metadata:
        empty = file_bytes(path)
        fill(metadata, DEVICE, mappings, run)
        metadata.commit()
        built = time.perf_counter() - begin
        return built, (file_bytes(path) - empty) / mappings


def fill(metadata: ThinMetadata, device: int, mappings: int, run: int) -> None:
    """Maps [0, mappings) of a device, with commits now and then."""
    length = run or 1 << 14
    begins = list(range(0, mappings, length))
    if run:
        random.Random(1).shuffle(begins)
    uncommitted = 0
    for first in begins:
        done = 0
        while done < length:
            data, count = metadata.reserve(length - done)
            metadata.insert(device, first + done, data, count)
            done += count
        uncommitted += length
        if uncommitted >= COMMIT_RUNS:
            metadata.commit()
            uncommitted = 0


def open_once(path: Path, mappings: int) -> tuple[float, int]:
    """Milliseconds to open, and bytes of memory the process grew by."""
    before = resident()
    begin = time.perf_counter()
    store = LmdbStore(path, read_only=True)
    metadata = ThinMetadata.open(store, cache_bytes=CACHE_BYTES)
    spent = (time.perf_counter() - begin) * 1e3
    assert metadata.lookup(DEVICE, mappings - 1) is not None
    grew = resident() - before
    store.close()
    return spent, grew


def change(
    path: Path, mappings: int, times: int
) -> tuple[list[float], list[float], list[float], list[float]]:
    """Inserts, commits, snapshots, and deletes those: us, ms, ms, ms, each `times` times."""
    chance = random.Random(2)
    inserts, commits, snapshots, deletes = [], [], [], []
    with opened(path) as metadata:
        for _ in range(times):
            blocks = chance.sample(range(mappings), COMMIT_INSERTS)
            for block in blocks:
                metadata.remove(DEVICE, block, block + 1)
            metadata.commit()
            chance.shuffle(blocks)

            def insert(blocks: list[int] = blocks) -> None:
                for block in blocks:
                    data, _ = metadata.reserve(1)
                    metadata.insert(DEVICE, block, data)

            inserts.append(seconds_of(insert) * 1e6 / COMMIT_INSERTS)
            commits.append(seconds_of(metadata.commit) * 1e3)

            def snapshot() -> None:
                metadata.create_snapshot(SNAPSHOT, DEVICE)
                metadata.commit()

            snapshots.append(seconds_of(snapshot) * 1e3)
            deletes.append(seconds_of(lambda: delete(metadata, SNAPSHOT)) * 1e3)
    return inserts, commits, snapshots, deletes


def check_once(path: Path) -> float:
    """Seconds to check the whole file."""
    begin = time.perf_counter()
    assert check_file(path).ok
    return time.perf_counter() - begin


def delete_once(path: Path) -> float:
    """Seconds to delete the device."""
    with opened(path) as metadata:
        return seconds_of(lambda: delete(metadata, DEVICE))


def delete(metadata: ThinMetadata, device: int) -> None:
    metadata.delete_device(device)
    metadata.commit()


def seconds_of(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


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


@contextlib.contextmanager
def opened(path: Path) -> Iterator[ThinMetadata]:
    """The metadata in a file, for changing."""
    store = LmdbStore(path)
    try:
        yield ThinMetadata.open(store, cache_bytes=CACHE_BYTES)
    finally:
        store.close()


def file_bytes(path: Path) -> int:
    """Bytes up to LMDB's last page, without the room behind it, after the last commit."""
    with path.open("rb") as file:
        first = file.read(4096)
        # Where LMDB has its page size, the last page's number, and the transaction's.
        (size,) = struct.unpack_from("<I", first, 40)
        file.seek(size)
        pages = [struct.unpack_from("<QQ", page, 136) for page in (first, file.read(4096))]
    last, _ = max(pages, key=lambda page: page[1])
    return int((last + 1) * size)


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
