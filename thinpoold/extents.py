"""What a client is told of a volume's blocks, and what it may ask to have ready.

Unmapped blocks are holes that read as zero; mapped ones are data, whatever they hold.

Thread-safety: any thread, outside the gate.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from thinmeta.thin import Run
from thinpoold.errnos import OutOfRange
from thinpoold.requests import blocks_of
from thinpoold.volume import Volume

# An answer may be cut short anywhere: the client asks again from there.
MAX_EXTENTS: Final = 128
# Neither is the lock held for more runs of mappings than this, nor prefetched for more blocks at a
# time: a fraction of a millisecond, for which others wait.
_MAX_RUNS: Final = 256
_PREFETCH_BLOCKS: Final = 4096


class Extent(NamedTuple):
    """`length` bytes from `offset`, mapped or not."""

    offset: int
    length: int
    mapped: bool


def extents(volume: Volume, offset: int, count: int, *, one: bool = False) -> list[Extent]:
    """Return what is mapped of a range of bytes, from its start, no two alike side by side.

    It may end before the range does, but never at its start. With `one`, the first extent is
    enough. Raises `OutOfRange`, and what a look-up raises.
    """
    if offset + count > volume.size:
        raise OutOfRange(
            f"block status of {count} bytes at {offset} reaches past the end of volume "
            f"{volume.name}",
            write=False,
        )
    core, size = volume.core, volume.core.block_size
    begin, end = blocks_of(offset, count, size)
    limit = 1 if one else MAX_EXTENTS
    found: list[list[int]] = []

    def look() -> None:
        found.clear()
        with core.lock:
            core.check_whole()
            for number, run in enumerate(core.metadata.runs(volume.dev_id, begin, end)):
                if found and found[-1][1] == run.begin:
                    found[-1][1] += run.length
                elif len(found) > limit:
                    return
                else:
                    found.append([run.begin, run.begin + run.length])
                if number >= _MAX_RUNS:
                    return
            # Stands for the hole, or nothing, behind the last run.
            found.append([end, end])

    volume.request(look, writes=False)
    return _as_bytes(found, offset, offset + count, size)[:limit]


def _as_bytes(found: list[list[int]], offset: int, stop: int, size: int) -> list[Extent]:
    answer = []
    at = offset
    for begin, end in found:
        hole_end, data_end = min(begin * size, stop), min(end * size, stop)
        if hole_end > at:
            answer.append(Extent(at, hole_end - at, mapped=False))
            at = hole_end
        if data_end > at:
            answer.append(Extent(at, data_end - at, mapped=True))
            at = data_end
    return answer


def prefetch(volume: Volume, offset: int, count: int) -> None:
    """Start to bring a range of bytes into memory: mappings and data, until that is as much data as
    the device prefetches for one request.

    The data outside the gate, for it may be waited for: what is no longer the volume's by then
    comes into memory for nothing, and no harm is done.
    """
    core, size = volume.core, volume.core.block_size
    if offset + count > volume.size:
        raise OutOfRange(f"cache past the end of volume {volume.name}", write=False)
    at, end = blocks_of(offset, count, size)
    left = core.device.prefetch_bytes
    runs: list[Run] = []

    def look() -> None:
        nonlocal runs
        stop = min(at + _PREFETCH_BLOCKS, end)
        with core.lock:
            core.check_whole()
            core.metadata.prefetch(volume.dev_id, at, stop)
            runs = list(core.metadata.runs(volume.dev_id, at, stop))

    while at < end:
        with volume.share.taken_for_look():
            volume.request(look, writes=False)
        at += _PREFETCH_BLOCKS
        for run in runs:
            count = min(run.length * size, left)
            core.device.prefetch(run.data_begin * size, count)
            left -= count
            if not left:
                return
