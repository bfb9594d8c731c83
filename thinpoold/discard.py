"""Trim and zero: unmapping whole blocks, zeroing the rest.

    what                         whole blocks            parts of blocks
    trim                         unmapped                left as they are
    zero, may trim               unmapped                zeroed where mapped
    zero, may not trim           zeroed, provisioned     zeroed, provisioned

With the setting discard=ignore nothing is unmapped: trim does nothing, and a zero that may trim
zeroes what is mapped.

Invariants

1. Unmapping closes the volume's gate, for a bounded number of blocks at a time. Zeroing, and
   looking at what is mapped, go by portions as well: nobody waits for all of a large request.
2. A fast zero that would not be fast is refused before anything was changed.

Thread-safety: any thread, outside the gate.
"""

from __future__ import annotations

from contextlib import suppress

from thinpoold.errnos import NotFast
from thinpoold.provision import Payload
from thinpoold.requests import Span, blocks_of, split
from thinpoold.space import Waiters
from thinpoold.volume import Volume

# The gate is closed, and the lock held, for so many blocks at a time: 10 ms where each is apart.
PORTION_BLOCKS = 1 << 10
# The lock is held for looking at so many: some 40 blocks of metadata, which may be on disk alone.
LOOK_BLOCKS = 1 << 12


class _Overtaken(Exception):  # noqa: N818 - no error
    """The volume has another size by now."""


def trim(volume: Volume, offset: int, count: int) -> None:
    """Unmap the whole blocks in a range of bytes. Raises as `Volume.pwrite`."""
    volume.check_change(offset, count)
    if volume.core.settings.discard == "ignore":
        return
    parts = split(offset, count, volume.core.block_size, volume.size)
    unmap(volume, parts.begin, parts.end)


def zero(
    volume: Volume,
    offset: int,
    count: int,
    *,
    may_trim: bool,
    fast: bool,
    waiters: Waiters | None = None,
) -> None:
    """Make a range of bytes read as zero. Raises as `Volume.pwrite`, and `NotFast`."""
    volume.check_change(offset, count)
    unmaps = may_trim and volume.core.settings.discard != "ignore"
    if fast:
        _check_fast(volume, offset, count, may_trim=may_trim, unmaps=unmaps)
    if not unmaps:
        _write_zeroes(volume, Span(offset, count), waiters, keep_holes=may_trim)
        return
    parts = split(offset, count, volume.core.block_size, volume.size)
    for edge in parts.edges:
        _write_zeroes(volume, edge, waiters, keep_holes=True)
    unmap(volume, parts.begin, parts.end)


def zero_beyond(volume: Volume, end: int) -> None:
    """Zero what the volume's last block holds beyond its end, which nobody sees yet.

    Does nothing if `end` is not the volume's size any more. Raises `NoSpace` at once if that takes
    a new block and none is free.
    """
    beyond = -end % volume.core.block_size
    payload = Payload(None, beyond)

    def check() -> None:
        # Also of a volume that clients may only read. In here the size stays what it is.
        if volume.size != end:
            raise _Overtaken

    if beyond:
        with suppress(_Overtaken):
            volume.request(lambda: volume.write(payload, end, check, keep_holes=True), queues=False)


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
    if core.modes.full:
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


def _write_zeroes(volume: Volume, span: Span, waiters: Waiters | None, *, keep_holes: bool) -> None:
    credit, fast = volume.account.credit, volume.core.device.zeroes_fast
    for begin, end in volume.portions(span.offset, span.length):
        if not fast:
            # They are written as any bytes are, and wait for the disk as those do: in no gate.
            credit[0] -= end - begin
            if credit[0] < 0:
                volume.account.renew()
        _write_portion(volume, begin, end, waiters, keep_holes=keep_holes)


def _write_portion(
    volume: Volume, begin: int, end: int, waiters: Waiters | None, *, keep_holes: bool
) -> None:
    payload = Payload(None, end - begin)
    with volume.share.taken():
        volume.request(
            lambda: volume.write(payload, begin, volume.check_writable, keep_holes=keep_holes),
            waiters=waiters,
        )


def _check_fast(volume: Volume, offset: int, count: int, *, may_trim: bool, unmaps: bool) -> None:
    """Raise `NotFast` unless zeroing the range is sure to beat writing it."""
    core = volume.core
    size = core.block_size
    spans = [Span(offset, count)]
    if unmaps:
        spans = split(offset, count, size, volume.size).edges
    if not spans:
        return

    begin = end = 0

    def look() -> None:
        with core.lock:
            core.check_whole()
            mapped = 0
            for run in core.metadata.runs(volume.dev_id, begin, end):
                mapped += run.length
                in_place = all(alone for _, alone in core.parts(run))
                if not in_place or not core.device.zeroes_fast:
                    raise NotFast("zeroing here is no faster than writing")
            if mapped < end - begin and not may_trim:
                raise NotFast("zeroing here is no faster than writing")

    for span in spans:
        first, last = blocks_of(span.offset, span.length, size)
        for begin in range(first, last, LOOK_BLOCKS):
            end = min(last, begin + LOOK_BLOCKS)
            volume.request(look, writes=False)
