"""Trim and zero: unmapping whole blocks, zeroing the rest.

    what                         whole blocks            parts of blocks
    trim                         unmapped                left as they are
    zero, may trim               unmapped                zeroed where mapped
    zero, may not trim           zeroed, provisioned     zeroed, provisioned

With the setting discard=ignore nothing is unmapped: trim does nothing, and a zero that may trim
zeroes what is mapped.

Invariants

1. Unmapping closes the volume's gate, for a bounded number of blocks at a time.
2. A fast zero that would not be fast is refused before anything was changed.

Thread-safety: any thread, outside the gate.
"""

from __future__ import annotations

from thinpoold.errnos import NotFast
from thinpoold.modes import Mode
from thinpoold.provision import Payload
from thinpoold.requests import Span, blocks_of, split
from thinpoold.volume import Volume

# The gate is closed for so many blocks at a time.
PORTION_BLOCKS = 1 << 10


def trim(volume: Volume, offset: int, count: int) -> None:
    """Unmap the whole blocks in a range of bytes. Raises as `Volume.pwrite`."""
    volume.check_change(offset, count)
    if volume.core.settings.discard == "ignore":
        return
    parts = split(offset, count, volume.core.block_size, volume.size)
    unmap(volume, parts.begin, parts.end)


def zero(volume: Volume, offset: int, count: int, *, may_trim: bool, fast: bool) -> None:
    """Make a range of bytes read as zero. Raises as `Volume.pwrite`, and `NotFast`."""
    volume.check_change(offset, count)
    unmaps = may_trim and volume.core.settings.discard != "ignore"
    if fast:
        _check_fast(volume, offset, count, may_trim=may_trim, unmaps=unmaps)
    if not unmaps:
        _write_zeroes(volume, Span(offset, count), keep_holes=may_trim)
        return
    parts = split(offset, count, volume.core.block_size, volume.size)
    for edge in parts.edges:
        _write_zeroes(volume, edge, keep_holes=True)
    unmap(volume, parts.begin, parts.end)


def zero_beyond_end(volume: Volume) -> None:
    """Zero what the volume's last block holds beyond the volume's end, which nobody sees yet."""
    beyond = -volume.size % volume.core.block_size
    if beyond:
        # Also of a volume that clients may only read.
        payload, offset = Payload(None, beyond), volume.size
        volume.request(lambda: volume.write(payload, offset, keep_holes=True))


def unmap(volume: Volume, begin: int, end: int) -> None:
    """Unmap virtual blocks begin..end-1."""
    core = volume.core
    while begin < end:
        with volume.share.taken():
            found = _next_mapped(volume, begin, end)
            begin = min(end, found + PORTION_BLOCKS)
            if found < end:
                with core.settled(), volume.gate.closed(), core.noting():
                    volume.check_writable()
                    remove(volume, found, begin)
                    core.recent.removed(volume.dev_id, found, begin)
        core.throttle()
    if core.modes.mode is Mode.OUT_OF_DATA_SPACE:
        # Writers wait for just this: do not let them wait for the second to pass.
        core.timer.kick()


def _next_mapped(volume: Volume, begin: int, end: int) -> int:
    """Return the first mapped block of begin..end-1, `end` if there is none."""
    core, found = volume.core, end

    def look() -> None:
        nonlocal found
        with core.lock:
            core.check_whole()
            runs = core.metadata.runs(volume.dev_id, begin, end)
            found = next((run.begin for run in runs), end)

    volume.request(look, writes=False)
    return found


def remove(volume: Volume, begin: int, end: int) -> None:
    """Unmap virtual blocks begin..end-1. The gate is closed, and the lock held for changes."""
    core = volume.core
    core.check_begun()
    core.give_up(list(core.metadata.runs(volume.dev_id, begin, end)))
    removed = core.metadata.remove(volume.dev_id, begin, end)
    core.reservations.discarded(volume.uuid, removed)
    volume.table.drop_range(begin, min(end, volume.table.blocks))


def _write_zeroes(volume: Volume, span: Span, *, keep_holes: bool) -> None:
    payload = Payload(None, span.length)

    def attempt() -> None:
        volume.check_writable()
        volume.write(payload, span.offset, keep_holes=keep_holes)

    with volume.share.taken():
        volume.request(attempt)


def _check_fast(volume: Volume, offset: int, count: int, *, may_trim: bool, unmaps: bool) -> None:
    """Raise `NotFast` unless zeroing the range is sure to beat writing it."""
    core = volume.core
    size = core.block_size
    spans = [Span(offset, count)]
    if unmaps:
        spans = split(offset, count, size, volume.size).edges
    if not spans:
        return

    def look() -> None:
        with core.lock:
            core.check_whole()
            for span in spans:
                begin, end = blocks_of(span.offset, span.length, size)
                mapped = 0
                for run in core.metadata.runs(volume.dev_id, begin, end):
                    mapped += run.length
                    in_place = all(alone for _, alone in core.parts(run))
                    if not in_place or not core.device.zeroes_fast:
                        raise NotFast("zeroing here is no faster than writing")
                if mapped < end - begin and not may_trim:
                    raise NotFast("zeroing here is no faster than writing")

    volume.request(look, writes=False)
