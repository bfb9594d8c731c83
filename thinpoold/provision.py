"""New data blocks: the first write to a virtual block, and the breaking of sharing.

    cell over the blocks -> look-up -> reserve -> fill and write the data -> insert -> table

Invariants

1. A data block is written whole before it is inserted: what the request does not cover is copied
   from the shared block it replaces, or reads as zero.
2. A write that fails gives the reserved blocks back; nothing of the volume has changed then.
3. The metadata lock is not held across data I/O; the cell keeps others off the blocks meanwhile.
4. A pool whose blocks are larger than what one stay in the gate moves takes another order: the cell
   first, outside the gate, and a stay for each of the two looks at the metadata. Whoever closes the
   gate waits for neither the copying nor for those who wait for the cell. What a snapshot or a
   discard has made of the block meanwhile the second look tells.

Thread-safety: called inside the volume's gate, from any thread, with no cell held.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from thinmeta.thin import Run
from thinpoold import ahead
from thinpoold.cells import Cell
from thinpoold.core import Core
from thinpoold.device import ZEROES, Buffer
from thinpoold.modes import Mode

if TYPE_CHECKING:
    from thinpoold.volume import Volume

# The most that one stay in the gate, one cell, and one run of new blocks, spans: what a disk of
# 100 MB/s moves in 40 ms. The C filter's portion, too (plugins/fastpath/volume.c).
MAX_RUN_BYTES = 4 << 20
# Up to here what surrounds a partial write goes through a buffer, into the same system call.
_SMALL = 1 << 20
# Each thread's buffer for one block: a new one each time costs more than to read into it.
_own = threading.local()


class Payload:
    """What a request writes: `count` bytes of `data`, or of zeroes where that is None."""

    __slots__ = ("count", "data")

    def __init__(self, data: memoryview | None, count: int) -> None:
        self.data = data
        self.count = count

    def after(self, done: int) -> Payload:
        """What is left when the first `done` bytes are written."""
        return Payload(self.data[done:] if self.data is not None else None, self.count - done)

    def front(self, count: int) -> Buffer | None:
        """The first `count` bytes as a buffer; None for so many zeroes that they need none."""
        if self.data is not None:
            return self.data if count == self.count else self.data[:count]
        return ZEROES[:count] if count <= _SMALL else None


def put(core: Core, payload: Payload, count: int, at: int) -> None:
    """Write the first `count` bytes of a payload to the data device at `at`, in place."""
    buffer = payload.front(count)
    if buffer is None:
        core.device.zero(at, count)
    else:
        core.device.write(buffer, at)


def write(
    volume: Volume,
    payload: Payload,
    offset: int,
    check: Callable[[], None],
    *,
    keep_holes: bool = False,
) -> int:
    """Write the front of a payload that begins in a block which needs a new data block.

    The payload is within one of the volume's `portions`.

    Returns how many bytes are done with; 0 when the first block can be written in place by now,
    which the table says then. With `keep_holes`, zeroes leave alone what is unmapped. `check` has
    been called in this stay in the gate, and is called in each other that changes anything; the one
    in which this returns may be new (`Volume.write`).
    Raises `NoDataSpace`, `NoMetadataRoom`, `DeviceError`, `Stopped`, failures of the metadata, and
    what `check` does.
    """
    core, size = volume.core, volume.core.block_size
    if size > MAX_RUN_BYTES:
        with volume.gate.outside():
            return _write_outside(volume, payload, offset, check, keep_holes=keep_holes)
    first = offset // size
    last = -(-(offset + payload.count) // size)
    cell = (first, last)
    volume.cells.acquire(cell)
    try:
        with core.lock:
            core.modes.check_writable()
            olds, last = survey(volume, cell)
            if last == first:
                return 0
            if keep_holes:
                if not olds or olds[0].begin > first:
                    stop = olds[0].begin if olds else last
                    return min(payload.count, stop * size - offset)
                last = olds[0].begin + olds[0].length
            data, blocks, run = core.reserve(volume, last - first)
        target = _Target(first, data, blocks, run, olds)
        count = min(payload.count, (first + blocks) * size - offset)
        inserting = False
        try:
            written = _fill(core, target, payload, offset - first * size, count)
            if payload.data is not None:
                # The request's own bytes were charged when it came.
                volume.account.credit[0] -= written - count
            with core.noting():
                # From here on the reserved blocks are the transaction's.
                inserting = True
                _insert(volume, target)
        except BaseException:
            if not inserting:
                core.unreserve(data, blocks)
            raise
        return count
    finally:
        volume.cells.release(cell)


def _write_outside(
    volume: Volume,
    payload: Payload,
    offset: int,
    check: Callable[[], None],
    *,
    keep_holes: bool,
) -> int:
    """As `write`, for one block that takes long to fill. Called outside the gate."""
    core, size = volume.core, volume.core.block_size
    first, within = divmod(offset, size)
    count = min(payload.count, size - within)
    cell = (first, first + 1)

    def look() -> tuple[list[Run], bool]:
        core.modes.check_writable()
        olds, last = survey(volume, cell)
        return olds, last == first

    volume.cells.acquire(cell)
    try:
        while True:
            with volume.gate.stay():
                check()
                with core.lock:
                    olds, in_place = look()
                    if in_place:
                        return 0
                    if keep_holes and not olds:
                        return count
                    data, blocks, run = core.reserve(volume, 1)
            target = _Target(first, data, blocks, run, olds)
            inserting = False
            try:
                written = _fill(core, target, payload, within, count)
                with volume.gate.stay():
                    check()
                    with core.lock:
                        olds, in_place = look()
                    if not in_place and _data_blocks(olds) == _data_blocks(target.olds):
                        # What is shared now counts: a snapshot may have been made.
                        target = target._replace(olds=olds)
                        if payload.data is not None:
                            volume.account.credit[0] -= written - count
                        with core.noting():
                            inserting = True
                            _insert(volume, target)
                        return count
            except BaseException:
                if not inserting:
                    core.unreserve(data, blocks)
                raise
            core.unreserve(data, blocks)
    finally:
        volume.cells.release(cell)


def _data_blocks(runs: list[Run]) -> list[int]:
    """The data blocks of runs of one block each."""
    return [run.data_begin for run in runs]


def survey(volume: Volume, cell: Cell) -> tuple[list[Run], int]:
    """Look at the virtual blocks of a cell: which must be replaced, and where that ends.

    Returns the mapped runs that cannot be written in place, and the first block that can, which
    goes into the table, or the cell's end. Lock and cell held.
    """
    core, metadata = volume.core, volume.core.metadata
    first, last = cell
    found: Iterable[Run]
    if last - first == 1:
        mapping = metadata.lookup(volume.dev_id, first)
        found = [] if mapping is None else [Run(first, mapping.data_block, 1, mapping.shared)]
    elif metadata.lacks(volume.dev_id, first, last):
        return [], last
    else:
        found = metadata.runs(volume.dev_id, first, last)
    olds: list[Run] = []
    for run, in_place in (part for whole in found for part in core.parts(whole)):
        if in_place:
            # What follows may be in place as well, and is then no business of Python's any more.
            volume.fill(run.begin, last, cell)
            volume.table.set_run(run.begin, run.data_begin, run.length, writable=True)
            return olds, run.begin
        olds.append(run)
    return olds, last


class _Target(NamedTuple):
    """Reserved data blocks from `data` on for virtual blocks from `first` on."""

    first: int
    data: int
    blocks: int
    run: ahead.Run
    olds: list[Run]

    def old(self, block: int) -> int | None:
        """The data block that a virtual block shares, None where it has none."""
        for run in self.olds:
            if run.begin <= block < run.begin + run.length:
                return run.data_begin + block - run.begin
        return None


def _fill(core: Core, target: _Target, payload: Payload, within: int, count: int) -> int:
    """Write `count` bytes of payload from `within` on, and around them what must be there.

    Returns how many bytes were written in all.
    """
    device, size = core.device, core.block_size
    begin = target.data * size
    end = begin + target.blocks * size
    start = begin + within
    stop = start + count
    first = last = None
    if target.olds:
        first = target.old(target.first) if start > begin else None
        last = target.old(target.first + target.blocks - 1) if stop < end else None
    zeroes = (
        payload.data is None or (start > begin and first is None) or (stop < end and last is None)
    )
    hole = zeroes and _is_zero(core, target)
    body = None if hole and payload.data is None else payload.front(count)
    if body is not None and hole == zeroes:
        if first is None and last is None:
            # What came is all there is to write.
            device.write_all([body], start)
            return count
        if target.blocks == 1 and size <= _SMALL:
            _copy_around(core, target.olds[0].data_begin, target.data, within, body)
            return size
    pieces: list[tuple[int, Buffer]] = []
    if start > begin:
        _edge(core, first, 0, begin, start - begin, hole, pieces)
    if body is not None:
        pieces.append((start, body))
    elif not hole:
        device.zero(start, count)
    if stop < end:
        _edge(core, last, size - (end - stop), stop, end - stop, hole, pieces)
    return _write_pieces(core, pieces)


def _copy_around(core: Core, old: int, new: int, within: int, body: Buffer) -> None:
    """Copy data block `old` to `new`, but for `body` at `within`."""
    size = core.block_size
    block: bytearray | None = getattr(_own, "block", None)
    if block is None or len(block) != size:
        block = _own.block = bytearray(size)
    core.device.read(block, old * size)
    block[within : within + len(body)] = body
    core.device.write_all([block], new * size)


def _is_zero(core: Core, target: _Target) -> bool:
    """Whether the target's data blocks are known to read as zero."""
    run, size = target.run, core.block_size
    if run.zero is None:
        run.zero = core.device.is_zero(run.begin * size, (run.end - run.begin) * size)
    return run.zero or core.device.is_zero(target.data * size, target.blocks * size)


def _edge(
    core: Core,
    old: int | None,
    within: int,
    at: int,
    count: int,
    hole: bool,
    pieces: list[tuple[int, Buffer]],
) -> None:
    """See to what belongs beside a payload: `count` bytes at `at`, at `within` in their block.

    What is small goes to `pieces`, for the caller to write.
    """
    device = core.device
    if old is not None:
        source = old * core.block_size + within
        if count > _SMALL:
            device.copy(source, at, count)
        else:
            buffer = bytearray(count)
            device.read(buffer, source)
            pieces.append((at, buffer))
    elif not hole and not core.settings.skip_zeroing:
        if count > _SMALL:
            device.zero(at, count)
        else:
            pieces.append((at, ZEROES[:count]))


def _write_pieces(core: Core, pieces: list[tuple[int, Buffer]]) -> int:
    """Write pieces, ascending, with one system call for those that adjoin; how many bytes."""
    written = 0
    while pieces:
        begin = end = pieces[0][0]
        parts: list[Buffer] = []
        while pieces and pieces[0][0] == end:
            part = pieces.pop(0)[1]
            parts.append(part)
            end += len(part)
        core.device.write_all(parts, begin)
        written += end - begin
    return written


def _insert(volume: Volume, target: _Target) -> None:
    """Map the written blocks."""
    core, first = volume.core, target.first
    if target.olds:
        last = first + target.blocks
        core.give_up(
            [
                run if run.begin + run.length <= last else run._replace(length=last - run.begin)
                for run in target.olds
                if run.begin < last
            ]
        )
    core.metadata.insert(volume.dev_id, first, target.data, target.blocks)
    core.recent.inserted(volume.dev_id, first, target.data, target.blocks)
    core.reservations.provisioned(volume.uuid, target.blocks)
    volume.table.set_run(first, target.data, target.blocks, writable=True)
    if core.modes.mode is Mode.OUT_OF_DATA_SPACE:
        core.modes.space_found()
