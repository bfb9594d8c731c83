"""What the kernel says of its page cache: how much is unwritten, of all files together.

Thread-safety: no state.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_VMSTAT: Final = Path("/proc/vmstat")


@dataclass(frozen=True, slots=True)
class Unwritten:
    """`now` bytes are unwritten; with more than `free` the kernel slows down whoever writes."""

    now: int
    free: int


def unwritten() -> Unwritten | None:
    """Return how it is now, or None where the kernel does not tell."""
    try:
        lines = _VMSTAT.read_text().splitlines()
        counts = dict(line.split(" ", 1) for line in lines if line.startswith("nr_"))
        pages = int(counts["nr_dirty"]) + int(counts["nr_writeback"])
        # Halfway between where it begins to write and where nobody may write any more.
        ends = int(counts["nr_dirty_background_threshold"]) + int(counts["nr_dirty_threshold"])
    except (OSError, KeyError, ValueError):
        return None
    return Unwritten(pages * mmap.PAGESIZE, ends // 2 * mmap.PAGESIZE)
