"""An open volume: reads and writes by way of its mapping table, and what they need besides.

A request enters the gate, looks its blocks up in the table, and reads or writes the data device.
Where the table does not know, the metadata is asked; where a new data block is needed,
`provision` makes one.

Invariants

1. Whoever is inside the gate may rely on what it saw in the table: no mapping's data block is given
   to another before a grace period has passed.
2. A request waits for space, for a commit or for an administrator outside the gate, and is then
   begun again; a request is the same done twice. One stay in the gate moves no more data than
   `provision.MAX_RUN_BYTES`: who closes the gate waits no longer than that takes. So a large
   request may be in a snapshot in part, as after a crash.
3. The table has an entry for every block of the volume, and requests past its end are refused
   before they look.
4. A block's entry comes to say 'in place' by the hand of whoever holds the block's cell, or while
   nobody holds or awaits one over it. Who copies a block relies on that.
5. The table of an open volume never becomes smaller. So going back to the last commit needs no
   other, and cannot fail for want of address space.

Thread-safety: any thread, unless a method says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from thinmeta.errors import NoDataSpace, ThinMetaError
from thinmeta.thin import Run
from thinpoold import provision
from thinpoold.ahead import Ahead
from thinpoold.cells import Cell, Cells
from thinpoold.core import Core, TransactionBroken
from thinpoold.device import ZEROES
from thinpoold.errnos import OutOfRange, ReadOnlyVolume
from thinpoold.errors import DeviceError, NoMetadataRoom
from thinpoold.fastlib import FastVolume
from thinpoold.gate import Gate
from thinpoold.mapping_table import DATA_SHIFT, IN_PLACE, MappingTable
from thinpoold.provision import MAX_RUN_BYTES, Payload
from thinpoold.ratelimit import Limiter, renewed
from thinpoold.space import FULL, SpaceWait, Waiters
from thinpoold.volumes import VolumeRecord

# A miss brings in the mappings of so many blocks from there on, as many as a leaf of the tree has,
# as long as they are no more than so many runs: a look-up costs little more.
FILL_BLOCKS = 256
FILL_RUNS = 64
_STEP = 1 << DATA_SHIFT


class FindRecord(Protocol):
    """Looks a volume's record up by uuid."""

    def __call__(self, uuid: bytes) -> VolumeRecord | None: ...


class Volume:
    """One volume of a pool. `clients` is the pool's count of who has it open."""

    def __init__(self, core: Core, record: VolumeRecord, find: FindRecord) -> None:
        self.core = core
        self.uuid = record.uuid
        self.fast = FastVolume(core.fastpath) if core.fastpath is not None else None
        self.gate = Gate(self.fast)
        self.cells = Cells()
        self.ahead = Ahead()
        self.clients = 0
        self.limiter: Limiter | None = None
        self.share = core.shares.add(self.gate.occupied)
        self.account = core.device.writeout.account()
        self._credit = self.account.credit
        self._find = find
        self._device = core.device
        self._block_size = core.block_size
        self._portion = max(1, MAX_RUN_BYTES // core.block_size) * core.block_size
        self._take(record)
        self._use(self._new_table(self.blocks))
        self._share()

    def _take(self, record: VolumeRecord) -> None:
        self.name = record.name
        self.dev_id = record.dev_id
        self.size = record.size
        self.read_only = record.read_only
        self.limiter = renewed(self.limiter, record.iops, record.bps)
        self.blocks = -(-record.size // self._block_size)

    # --- for the pool ---------------------------------------------------------------------------

    def forget(self) -> None:
        """Drop the mapping table. The metadata lock is held."""
        self.table.drop()

    def table_for(self, size: int) -> MappingTable | None:
        """Return a table for another size, None if this one will do. Raises `NoSpace`."""
        blocks = -(-size // self._block_size)
        return self._new_table(blocks) if blocks > self.table.blocks else None

    def reload(self, table: MappingTable | None = None) -> None:
        """Become what the record says now. The metadata lock is held.

        A size that does not fit the table needs one that does (`table_for`), and the gate closed.
        To go back to the last commit needs none: a table never becomes smaller.
        """
        record = self._find(self.uuid)
        if record is None:
            return
        self.withdraw()
        self._take(record)
        if table is not None:
            # The old table goes when the last request that has it in its hands is done.
            self._use(table)
        else:
            self.table.drop()
        assert self.blocks <= self.table.blocks
        self._share()

    def close(self) -> None:
        """Give the table back: there are no requests any more. The metadata lock is held."""
        self.withdraw()
        self.core.shares.remove(self.share)
        self.ahead.give_back(self.core.metadata)
        self.table.close()

    def offer(self) -> None:
        """Have the C filter serve the connection that this thread is opening, if it is there."""
        if self.fast is not None:
            self.fast.offer()

    def withdraw(self) -> None:
        """Leave all requests to Python from now on. The metadata lock is held."""
        if self.fast is not None:
            self.fast.withdraw()

    def _new_table(self, blocks: int) -> MappingTable:
        store = self.core.fastpath.store if self.core.fastpath is not None else None
        return MappingTable(blocks, store)

    def _use(self, table: MappingTable) -> None:
        self.table = table
        self._entries = table.entries

    def _share(self) -> None:
        """Show the C filter what it may serve; the one place that decides whether it may."""
        # What is paced, or goes through a cache of ours, is Python's alone.
        if self.fast is None or self.limiter is not None or self._device.direct:
            return
        self.fast.show(
            self.table,
            self.size,
            self._block_size,
            self._device.fd,
            writable=not self.read_only,
            credit=self.account.address,
        )

    # --- requests -------------------------------------------------------------------------------

    def pread(self, into: memoryview | bytearray, offset: int) -> None:
        """Fill `into` from byte `offset`. Raises `OutOfRange`, `DeviceError`, `Stopped`, ..."""
        count = len(into)
        if offset + count > self.size:
            raise self._out_of_range(offset, count, write=False)
        if count > MAX_RUN_BYTES:
            whole = memoryview(into)
            for begin, end in cut(offset, count, MAX_RUN_BYTES):
                self.pread(whole[begin - offset : end - offset], begin)
            return
        size = self._block_size
        block, within = divmod(offset, size)
        if within + count <= size:
            gate = self.gate
            gate.enter()
            try:
                entry = self._entries[block]
                if entry:
                    self._device.read(into, (entry >> DATA_SHIFT) * size + within)
                    return
            finally:
                gate.leave()
        self.request(lambda: self._read(memoryview(into), offset), writes=False)

    def pwrite(
        self,
        data: memoryview | bytes | bytearray,
        offset: int,
        waiters: Waiters | None = None,
    ) -> None:
        """Write `data` at byte `offset`; durable after a flush. `waiters` as for `request`."""
        count = len(data)
        if offset + count > self.size:
            raise self._out_of_range(offset, count, write=True)
        if count > self._portion:
            whole = memoryview(data)
            for begin, end in self.portions(offset, count):
                self.pwrite(whole[begin - offset : end - offset], begin, waiters)
            return
        credit = self._credit
        credit[0] -= count
        if credit[0] < 0:
            self.account.renew()
        failure: Exception | None = None
        size = self._block_size
        block, within = divmod(offset, size)
        done = 0
        gate = self.gate
        gate.enter()
        try:
            if self.read_only:
                # Looked at in here, for it becomes so with the gate closed.
                self.check_writable()
            entry = self._entries[block]
            if within + count > size or count > MAX_RUN_BYTES:
                self.write(Payload(memoryview(data), count), offset, self.check_writable)
                done = count
            elif entry & IN_PLACE == IN_PLACE:
                self._device.write(data, (entry >> DATA_SHIFT) * size + within)
                return
            else:
                payload = Payload(memoryview(data), count)
                done = provision.write(self, payload, offset, self.check_writable)
        except (NoDataSpace, NoMetadataRoom, TransactionBroken):
            # The slow way waits for what is missing.
            pass
        except DeviceError as error:
            if error.errno not in FULL:
                raise
        except Exception as error:
            failure = error
        finally:
            gate.leave()
        if failure is not None:
            self.core.settle_after(failure)
            raise failure
        if done == count:
            self.core.throttle()
        else:
            self._write_again(Payload(memoryview(data), count), offset, waiters)

    def portions(self, offset: int, count: int) -> Iterator[tuple[int, int]]:
        """Cut a range of bytes into what one request writes: (begin, end) of each.

        Cuts are between blocks, so that no new block is written twice.
        """
        return cut(offset, count, self._portion)

    def _write_again(self, payload: Payload, offset: int, waiters: Waiters | None) -> None:
        self.request(lambda: self.write(payload, offset, self.check_writable), waiters=waiters)

    def check_writable(self) -> None:
        """Raise unless clients may write. Inside the gate, or with it closed, it stays true."""
        if self.read_only:
            raise ReadOnlyVolume(f"volume {self.name} is read-only")

    def check_change(self, offset: int, count: int) -> None:
        """Raise unless a range may be changed by a client."""
        if offset + count > self.size:
            raise self._out_of_range(offset, count, write=True)
        self.check_writable()
        self.core.modes.check_writable()

    def request(
        self,
        attempt: Callable[[], None],
        *,
        writes: bool = True,
        waiters: Waiters | None = None,
        queues: bool = True,
    ) -> None:
        """Run `attempt` inside the gate, until it needs to wait for nothing any more.

        Where a client asks, `waiters` are those of its connection that wait for space. Raises
        `NoSpace` when waiting for space was in vain, or at once unless it `queues`, and what
        `attempt` raises.
        """
        core = self.core
        space = SpaceWait(core, waiters, queues=queues)
        while True:
            space.attempt()
            try:
                self.gate.enter()
                try:
                    attempt()
                finally:
                    self.gate.leave()
                break
            except NoDataSpace as error:
                space.for_blocks(error)
            except NoMetadataRoom as error:
                space.for_metadata(error)
            except DeviceError as error:
                if not writes:
                    raise
                space.for_device(error)
            except TransactionBroken:
                # For a look-up; a write is refused.
                core.settle()
            except Exception as error:
                core.settle_after(error)
                raise
        if writes:
            core.throttle()

    # --- inside the gate ------------------------------------------------------------------------

    def _read(self, into: memoryview, offset: int) -> None:
        size, device, stop = self._block_size, self._device, offset + len(into)
        last = -(-stop // size)
        while into:
            block, within = divmod(offset, size)
            entry = self._entries[block] or self._look_up(block, last)
            count = min(size - within, len(into))
            if entry:
                following = entry
                while count < len(into):
                    block += 1
                    following += _STEP
                    # Nothing but the data block counts: a run may be writable in part.
                    if self._entries[block] >> DATA_SHIFT != following >> DATA_SHIFT:
                        break
                    count = min(count + size, len(into))
                device.read(into[:count], (entry >> DATA_SHIFT) * size + within)
            else:
                _clear(into[:count])
            into = into[count:]
            offset += count

    def _look_up(self, block: int, last: int) -> int:
        """Ask the metadata for a block, and for some that follow; its entry, 0 if unmapped."""
        with self.core.lock:
            self.core.check_whole()
            if self.core.metadata.lacks(self.dev_id, block, block + 1):
                # No entry is kept of that: what follows would be brought in again each time.
                return 0
            self.fill(block, last)
            return self._entries[block]

    def fill(self, block: int, last: int, own: Cell | None = None) -> None:
        """Bring blocks block..last-1, and some that follow, into the table. Lock held.

        What others' cells cover comes in as shared: `own` is the caller's, who copies none of it.
        """
        core = self.core
        end = min(max(last, block + FILL_BLOCKS), self.blocks)
        try:
            for number, run in enumerate(core.metadata.runs(self.dev_id, block, end)):
                if number >= FILL_RUNS and run.begin >= last:
                    break
                for part, in_place in core.parts(run):
                    if in_place:
                        self._show_in_place(part, own)
                    else:
                        self.table.set_run(part.begin, part.data_begin, part.length, writable=False)
        except ThinMetaError:
            # The damage may be beside what was asked for.
            mapping = core.metadata.lookup(self.dev_id, block)
            if mapping is not None:
                self.table.set_run(block, mapping.data_block, 1, writable=False)

    def _show_in_place(self, run: Run, own: Cell | None) -> None:
        """Let a run be written in place, but for what others' cells cover. Lock held.

        Their holders may be copying a block that was shared when they looked: what was written into
        it now would not be in the copy that takes its place.
        """
        at, end = run.begin, run.begin + run.length
        step = run.data_begin - run.begin
        for cell in sorted(self.cells.covering(at, end)):
            begin, stop = cell
            if cell is own or stop <= at:
                continue
            if at < begin:
                self.table.set_run(at, at + step, begin - at, writable=True)
            for block in range(max(at, begin), min(stop, end)):
                # What is there already its holder has stored, or it was in place before.
                if not self._entries[block]:
                    self.table.set_run(block, block + step, 1, writable=False)
            at = max(at, stop)
        if at < end:
            self.table.set_run(at, at + step, end - at, writable=True)

    def write(
        self,
        payload: Payload,
        offset: int,
        check: Callable[[], None],
        *,
        keep_holes: bool = False,
    ) -> None:
        """Write a payload, inside the gate; with `keep_holes` zeroes leave holes alone.

        A payload that is longer than what one stay moves takes several: `check` is called in each,
        before it changes anything, and raises what ends the request.
        """
        size, moved = self._block_size, 0
        while payload.count:
            # Each time: `provision` may have left the gate, and entered it again.
            check()
            entries = self._entries
            block, within = divmod(offset, size)
            entry = entries[block]
            if entry & IN_PLACE == IN_PLACE:
                most = min(payload.count, MAX_RUN_BYTES)
                count = min(size - within, most)
                following = entry + _STEP
                while count < most:
                    block += 1
                    if entries[block] != following:
                        break
                    following += _STEP
                    count = min(count + size, most)
                provision.put(self.core, payload, count, (entry >> DATA_SHIFT) * size + within)
            else:
                count = provision.write(self, payload, offset, check, keep_holes=keep_holes)
            payload = payload.after(count)
            offset += count
            moved += count
            if moved >= MAX_RUN_BYTES and payload.count:
                with self.gate.outside():
                    moved = 0

    def _out_of_range(self, offset: int, count: int, *, write: bool) -> OutOfRange:
        return OutOfRange(
            f"{count} bytes at {offset} reach past the end of volume {self.name}, which has "
            f"{self.size}",
            write=write,
        )


def cut(offset: int, count: int, most: int) -> Iterator[tuple[int, int]]:
    """Cut a range of bytes at the multiples of `most`: (begin, end) of each piece."""
    stop = offset + count
    while offset < stop:
        end = min(stop, offset - offset % most + most)
        yield offset, end
        offset = end


def _clear(into: memoryview) -> None:
    while into:
        piece = min(len(into), len(ZEROES))
        into[:piece] = ZEROES[:piece]
        into = into[piece:]
