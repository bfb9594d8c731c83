"""The last commit as the kernel's own flat format, which its tools and dm-thin itself take.

Blocks are the same, with the same numbers and checksums: each is written to its place in a sparse
file as long as the metadata space map says the metadata is.

Thread safety: any thread; the export shows one commit, whatever is committed meanwhile.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from thinmeta.errors import Corrupt
from thinmeta.format.block import BLOCK_SIZE, Kind, verify
from thinmeta.format.superblock import SUPERBLOCK_BLOCK, Superblock
from thinmeta.store.protocol import BlockStore

_PROGRESS_BLOCKS = 1024


def export_metadata(
    store: BlockStore, path: Path, *, progress: Callable[[int, int], None] | None = None
) -> int:
    """Write the metadata to the file `path`; return the number of blocks written.

    The file appears whole, and durable, or not at all; one that is there is replaced.
    `progress(done, total)` is called with numbers of blocks.

    Raises `FileExistsError` if `path` is there and no regular file, other `OSError`s if it cannot
    be written, `Corrupt`, `UnsupportedFormat` or `StoreError` if the store cannot be read.
    """
    _check_target(path)
    with store.snapshot() as view:
        superblock = view.read(SUPERBLOCK_BLOCK)
        verify(superblock, Kind.SUPERBLOCK, SUPERBLOCK_BLOCK)
        root = Superblock.unpack(superblock).metadata_space_map
        fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            try:
                os.ftruncate(fd, root.nr_blocks * BLOCK_SIZE)
                written = _copy(view, fd, root.nr_blocks, root.nr_allocated, progress)
                os.fsync(fd)
            finally:
                os.close(fd)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    _sync_directory(path.parent)
    return written


def _copy(
    view: BlockStore,
    fd: int,
    nr_blocks: int,
    total: int,
    progress: Callable[[int, int], None] | None,
) -> int:
    written = 0
    for block in view.block_numbers():
        if block >= nr_blocks:
            raise Corrupt(
                "superblock",
                "metadata space map",
                f"has {nr_blocks} blocks, but there is a block {block}",
            )
        if os.pwrite(fd, view.read(block), block * BLOCK_SIZE) != BLOCK_SIZE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written += 1
        if progress and written % _PROGRESS_BLOCKS == 0:
            progress(written, max(written, total))
    if progress:
        progress(written, written)
    return written


def _check_target(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        # Renaming over a device node would take it away.
        raise FileExistsError(f"{path} is not a regular file")


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
