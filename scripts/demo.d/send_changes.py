"""Writes to an NBD export what differs between two images of it, then flushes.

    send_changes.py BEFORE AFTER URI

Only blocks with data in one of the images are looked at; one that has become zero is trimmed.
"""

import os
import sys
from pathlib import Path

import nbd

BLOCK = 64 << 10  # bytes
ZERO = bytes(BLOCK)


def data_blocks(file: int) -> set[int]:
    """The blocks of a sparse file that are not holes."""
    blocks: set[int] = set()
    end, size = 0, os.fstat(file).st_size
    while end < size:
        try:
            begin = os.lseek(file, end, os.SEEK_DATA)
        except OSError:  # a hole to the end
            break
        end = os.lseek(file, begin, os.SEEK_HOLE)
        blocks.update(range(begin // BLOCK, -(-end // BLOCK)))
    return blocks


def main(before: Path, after: Path, uri: str) -> None:
    with before.open("rb") as old_file, after.open("rb") as new_file:
        old, new = old_file.fileno(), new_file.fileno()
        handle = nbd.NBD()
        handle.connect_uri(uri)
        for block in sorted(data_blocks(old) | data_blocks(new)):
            offset = block * BLOCK
            content = os.pread(new, BLOCK, offset)
            if content == os.pread(old, BLOCK, offset):
                continue
            if content == ZERO[: len(content)]:
                handle.trim(len(content), offset)
            else:
                handle.pwrite(content, offset)
        handle.flush()
        handle.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
