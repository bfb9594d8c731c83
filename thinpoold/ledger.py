"""What a pool knows of its clients beyond its own death: a small file beside the metadata.

The metadata says what volumes hold, the notes (`recent`) what changed since. This file says of each
volume who has it open, whether something written may not be on disk yet, and whether something that
was answered is lost; and of the pool which commit was its last, and whether its end was in order.
It is not in the metadata because it must be written when the metadata cannot be.

`ledger_format` has what is in it. What a slot says is in the page cache when the call returns, so
it outlives the process; `durable` calls sync it as well.

Invariants

1. A volume is marked OPEN and WRITTEN before its client's opening is answered. WRITTEN goes when it
   is not open any more and a flush of the data device that began after that has succeeded.
2. LOST is durable before anybody is told that the loss is over: before the notes of what is lost
   go, and before a flush succeeds. It goes when an administrator has accepted it (`admin.losses`).
3. The file is written to its full size and synced when it is made: marking never needs space, but
   for the 512th volume that is open at once.
4. `generation` is that of a commit which is durable: the last, or the one before it. The boot's
   uptime is that of the last write of the pool's slot in this boot.
5. Nobody waits for the disk with `_lock` held, for it is taken under the core's: what must be
   durable is written with it, and synced after that. `mark_opened` leaves that to its caller, who
   has the core's lock then, and has asked for room before.

Thread-safety: any thread. `_lock` guards all but syncing and growing; nothing is taken under it.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from time import time
from typing import Final

from thinpoold import pagecache, poolfiles
from thinpoold.boot import NO_BOOT, Boot, Since, current, uptime_ns
from thinpoold.errors import DeviceError, NoSpace
from thinpoold.ledger_format import (
    NO_MARK,
    NO_STATE,
    SLOT_BYTES,
    Entry,
    Found,
    Guest,
    Mark,
    State,
    name_digest,
    pack_pool,
    packed,
    read,
)

__all__ = [
    "NO_STATE",
    "Entry",
    "Found",
    "Guest",
    "Ledger",
    "Mark",
    "State",
    "name_digest",
    "other_commit",
    "read",
]

_STEP: Final = 64 << 10


def other_commit(generation: int, found: Found) -> str:
    """Return why a store's commit is not the pool's last; '' if it is, as far as is known.

    LMDB has two meta pages, and takes the one that says to be newer: a flipped bit makes it open
    the commit before, or lets the number jump. Of a process that died, the ledger may not know the
    last commit yet; after a power cut, or where none can be ruled out, it may be any number behind.
    """
    if found.state is None or not found.generation:
        return ""
    if generation < found.generation:
        return (
            f"metadata.lmdb opens at commit {generation}, but the pool made commit "
            f"{found.generation}: its newest page is damaged, or it is an older copy; what is "
            "there can be read, and 'thinpool export-metadata' saves it"
        )
    same_boot = current().since(found.boot) is Since.SAME
    if found.died and same_boot and generation > found.generation + 1:
        return (
            f"metadata.lmdb opens at commit {generation}, but the pool's last was "
            f"{found.generation}: its newest page is damaged, or it is not of this pool; what is "
            "there can be read, and 'thinpool export-metadata' saves it"
        )
    return ""


class Ledger:
    """The ledger of one pool. Without a path it is kept in memory alone.

    `found` is what an earlier process left; nothing is written before `open`.
    """

    def __init__(self, path: Path | None = None, uuid: bytes = bytes(16)) -> None:
        self._path = path
        self._uuid = uuid
        self.found = read(path, uuid) if path is not None else Found()
        self._lock = threading.Lock()
        # Held by the one that makes the file larger.
        self._growing = threading.Lock()
        self._entries = {entry.uuid: entry for entry in self.found.entries.values()}
        self._slots = {entry.uuid: slot for slot, entry in self.found.entries.items()}
        self._free: list[int] = []
        self._size = 0
        self._fd = -1
        self._state = NO_STATE
        self._generation = 0
        self._boot = NO_BOOT
        self._syncing = 0
        # What was found of it counts until `begin`, also if this process dies before.
        self._kept_state = NO_STATE
        self._begun = False
        # Those that are open in this process, and those of them that a client has open. The other
        # OPEN ones a client had open in an earlier process.
        self._opened: set[bytes] = set()
        self._present: set[bytes] = set()
        # Those that nobody has had open since `closed_unwritten`.
        self._flushing: set[bytes] = set()
        # Those whose opening is to be synced before it is answered.
        self._unsynced: set[bytes] = set()

    # --- the process's life -----------------------------------------------------------------------

    def open(self, *, read_only: bool = False) -> None:
        """Open the file, or make it: marks are written from now on, and the pool is not CLEAN.

        What was found stays until `begin`. With `read_only` the file is left as it is, and marks
        are made in memory. Raises `DeviceError`, `NoSpace`.
        """
        with self._lock:
            found = self.found
            self._state = (found.state or NO_STATE) & ~State.CLEAN
            self._kept_state = self._state & State.SYNCING
            self._generation, self._boot = found.generation, found.boot
            if self._path is None or read_only:
                return
            try:
                self._fd = poolfiles.open_file(self._path, os.O_RDWR | os.O_CREAT)
                self._size = os.fstat(self._fd).st_size // _STEP * _STEP
            except OSError as error:
                raise _failure(self._path, error) from None
            taken = {0, *self._slots.values()}
            slots = range(self._size // SLOT_BYTES - 1, -1, -1)
            self._free = [slot for slot in slots if slot not in taken]
        if not self._size:
            self._grow()
        with self._lock:
            self._put_pool()

    def begin(self, boot: Boot, generation: int) -> None:
        """Begin anew, in this boot, on top of that commit: what was lost before is marked.

        Raises `DeviceError`.
        """
        with self._lock:
            self._boot, self._generation = boot, generation
            self._state = NO_STATE if boot.own else State.CONTAINED
            self._kept_state = NO_STATE
            self._begun = True
            self._put_pool()
        self._sync()

    def end(self, *, clean: bool) -> None:
        """Close the file; `clean`: all is committed, and on disk."""
        if clean:
            with self._lock:
                self._state |= State.CLEAN
                self._put_pool()
            self._sync()
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    # --- the pool ---------------------------------------------------------------------------------

    def committed(self, generation: int) -> None:
        """A commit is durable. Raises `DeviceError`."""
        with self._lock:
            self._generation = generation
            self._put_pool()

    def note(self, state: State, *, on: bool, durable: bool = False) -> None:
        """Set a state of the pool, or take it back. Raises `DeviceError`."""
        with self._lock:
            wanted = self._state | state if on else self._state & ~state
            if wanted != self._state:
                self._put_state(wanted)
        if durable:
            self._sync()

    @contextmanager
    def syncing(self) -> Iterator[None]:
        """A call is under way that may be told of write errors. Raises `DeviceError`."""
        with self._lock:
            if not self._syncing:
                self._put_state(self._state | State.SYNCING)
            self._syncing += 1
        try:
            yield
        finally:
            with self._lock:
                self._syncing -= 1
                if not self._syncing:
                    self._put_state(self._state & ~State.SYNCING | self._kept_state)

    # --- volumes ----------------------------------------------------------------------------------

    def opened(self, uuid: bytes, guest: Guest | None = None) -> None:
        """A volume is being opened, by a client or by this process itself. Raises `DeviceError`."""
        if self.mark_opened(uuid, guest):
            self.sync_opened()

    def mark_opened(self, uuid: bytes, guest: Guest | None = None) -> bool:
        """As `opened`; whether the caller is to `sync_opened` before the opening is answered.

        Waits for the disk only without room (`make_room`).
        """
        self.make_room(uuid)
        with self._lock:
            entry = self._entries.get(uuid, Entry(uuid))
            marks = entry.marks | Mark.WRITTEN
            if guest is not None:
                marks |= Mark.OPEN | (Mark.NETWORK if guest.network else NO_MARK)
            self._flushing.discard(uuid)
            known = guest is None or (
                uuid in self._present and guest.name in (entry.name, bytes(16))
            )
            if not known or marks != entry.marks:
                away = guest is not None and guest.network and Mark.NETWORK not in entry.marks
                entry = replace(entry, marks=marks)
                if guest is not None:
                    # A client that came by a name is the one to remember: another could have it.
                    name = guest.name if any(guest.name) else entry.name
                    entry = replace(entry, since=int(time()), client=guest.client, name=name)
                self._put(entry)
                if away:
                    # A client elsewhere outlives a power cut here.
                    self._unsynced.add(uuid)
            self._opened.add(uuid)
            if guest is not None:
                self._present.add(uuid)
            # Whoever came before may still be at the syncing.
            return uuid in self._unsynced

    def sync_opened(self) -> None:
        """Make openings durable that `mark_opened` has marked. Raises `DeviceError`."""
        with self._lock:
            begun = set(self._unsynced)
        try:
            self._sync()
        except (DeviceError, NoSpace):
            # Who tries again has it written, and synced, again.
            with self._lock, suppress(DeviceError, NoSpace):
                for uuid in begun & self._entries.keys():
                    self._put(self._entries[uuid])
            raise
        with self._lock:
            self._unsynced -= begun

    def has_room(self, uuid: bytes) -> bool:
        """Whether a volume can be marked without waiting for `make_room`."""
        return self._fd < 0 or uuid in self._slots or bool(self._free)

    def make_room(self, uuid: bytes) -> None:
        """Have room to mark a volume; waits for the disk where the file has to grow.

        Raises `DeviceError`, `NoSpace`.
        """
        if not self.has_room(uuid):
            with self._growing:
                if not self.has_room(uuid):
                    self._grow()

    def closed(self, uuid: bytes, *, comes_back: bool = False) -> None:
        """Nobody has the volume open any more; who `comes_back` is still remembered."""
        with self._lock:
            self._opened.discard(uuid)
            if uuid not in self._present:
                return
            self._present.discard(uuid)
            entry = self._entries.get(uuid)
            if entry is not None and not comes_back:
                marks = entry.marks & ~Mark.OPEN
                if Mark.WRITTEN not in marks:
                    # Else a power cut could still take what a client elsewhere was answered.
                    marks &= ~Mark.NETWORK
                self._put(Entry(uuid, marks, entry.since))

    def entry(self, uuid: bytes) -> Entry:
        """What is known of a volume."""
        return self._entries.get(uuid, Entry(uuid))

    def entries(self) -> list[Entry]:
        """All volumes of which something is known."""
        with self._lock:
            return list(self._entries.values())

    def absent(self, uuid: bytes) -> Entry | None:
        """Who had the volume open when an earlier process ended, and has not come back."""
        entry = self._entries.get(uuid)
        if entry is None or Mark.OPEN not in entry.marks or uuid in self._present:
            return None
        return entry

    def holder(self, name: str) -> Entry | None:
        """Whose client has a volume open by this name, and would find another under it one day."""
        digest = name_digest(name)
        with self._lock:
            found = [one for one in self._entries.values() if one.name == digest]
        return next((one for one in found if Mark.OPEN in one.marks), None)

    def forget(self, uuid: bytes) -> None:
        """Who had the volume open is not expected back."""
        with self._lock:
            if uuid in self._entries and uuid not in self._present:
                entry = self._entries[uuid]
                self._put(Entry(uuid, entry.marks & ~(Mark.OPEN | Mark.NETWORK), entry.since))

    def remove(self, uuid: bytes) -> None:
        """The volume is gone for good."""
        with self._lock:
            if uuid in self._entries:
                self._put(Entry(uuid))

    def unwritten(self) -> list[bytes]:
        """Volumes of which something may not be on disk."""
        with self._lock:
            return [one.uuid for one in self._entries.values() if Mark.WRITTEN in one.marks]

    @property
    def flushable(self) -> bool:
        """Whether a flush would bring something to disk of a volume that nobody has open."""
        with self._lock:
            return bool(self._closed_unwritten())

    def closed_unwritten(self) -> list[bytes]:
        """Those of them that nobody has open: all that was written to them was written by now."""
        with self._lock:
            self._flushing = self._closed_unwritten()
            return list(self._flushing)

    def _closed_unwritten(self) -> set[bytes]:
        # Each round asks, and most volumes that are known are open.
        closed = self._entries.keys() - self._opened
        return {uuid for uuid in closed if Mark.WRITTEN in self._entries[uuid].marks}

    def written(self, uuids: Iterable[bytes]) -> None:
        """A flush that began after `closed_unwritten` has brought to disk all that they hold."""
        for uuid in uuids:
            with self._lock:
                if uuid in self._flushing and uuid in self._entries:
                    entry = self._entries[uuid]
                    marks = entry.marks & ~Mark.WRITTEN
                    if Mark.OPEN not in marks:
                        marks &= ~Mark.NETWORK
                    self._put(replace(entry, marks=marks))

    def lose(self, uuids: Iterable[bytes]) -> None:
        """Something that was answered of these volumes is lost; durable. Raises `DeviceError`."""
        for uuid in uuids:
            self.make_room(uuid)
            with self._lock:
                entry = self._entries.get(uuid, Entry(uuid))
                self._put(replace(entry, marks=entry.marks | Mark.LOST, since=int(time())))
        self._sync()

    def doubt(self, uuids: Iterable[bytes]) -> None:
        """Marks may be missing: of each of these something may be lost, and a client may come back.

        Durable. Raises `DeviceError`.
        """
        for uuid in uuids:
            self.make_room(uuid)
            with self._lock:
                entry = self._entries.get(uuid, Entry(uuid))
                client = entry.client or "a client of which the note is lost"
                marks = entry.marks | Mark.LOST | Mark.OPEN
                self._put(replace(entry, marks=marks, since=int(time()), client=client))
        self._sync()

    def check_untold(self) -> None:
        """Raise `DeviceError` if what an earlier process noted beside the pool may be missing.

        That is where a write-back has failed on the file system of the ledger and the notes, and
        nobody was told. `DataDevice.check_untold` has more. Of a ledger that was opened read-only
        its own file alone is asked: who is told of the file system's must note it.
        """
        if self._path is None:
            return
        try:
            if self._fd < 0:
                poolfiles.check_written(self._path)
            else:
                pagecache.sync_file_system(self._fd)
        except OSError as error:
            raise _failure(self._path, error) from None

    def accept(self, uuid: bytes) -> None:
        """An administrator has accepted the loss, and whoever had it open is not expected back."""
        with self._lock:
            if uuid in self._entries:
                keep = self._entries[uuid].marks & Mark.WRITTEN
                self._put(Entry(uuid, keep))
        self._sync()

    def lost(self, uuid: bytes) -> bool:
        """Whether something that was answered is lost, and nobody has accepted that."""
        return Mark.LOST in self.entry(uuid).marks

    def all_lost(self) -> list[bytes]:
        """The volumes that are `lost`."""
        with self._lock:
            return [one.uuid for one in self._entries.values() if Mark.LOST in one.marks]

    # --- pieces -----------------------------------------------------------------------------------

    def _put(self, entry: Entry) -> None:
        """Write an entry; of a volume that has none yet, after `make_room`."""
        uuid = entry.uuid
        slot = self._slots.get(uuid)
        if not entry.marks:
            self._entries.pop(uuid, None)
            if slot is not None:
                self._write(bytes(SLOT_BYTES), slot * SLOT_BYTES)
                self._free.append(self._slots.pop(uuid))
            return
        if slot is None and self._fd >= 0:
            slot = self._free[-1]
        if slot is not None:
            self._write(packed(entry.pack(), self._uuid), slot * SLOT_BYTES)
            if uuid not in self._slots:
                self._slots[uuid] = self._free.pop()
        # Not before it is written: who finds it here takes it for written.
        self._entries[uuid] = entry

    def _put_state(self, state: State) -> None:
        """Write another state, and then remember it."""
        if self._begun:
            self._boot = replace(self._boot, uptime_ns=uptime_ns())
        self._write(packed(pack_pool(state, self._generation, self._boot), self._uuid), 0)
        self._state = state

    def _put_pool(self) -> None:
        self._put_state(self._state)

    def _grow(self) -> None:
        """Make room for more slots, written and synced. Nobody else writes there meanwhile."""
        try:
            self._write(bytes(_STEP), self._size)
            # Its size is synced as well.
            self._sync()
        except (DeviceError, NoSpace):
            # With its pages: `DataDevice.forgive` says what becomes of those that were not written.
            with suppress(OSError):
                os.ftruncate(self._fd, self._size)
            raise
        with self._lock:
            first = max(1, self._size // SLOT_BYTES)
            self._size += _STEP
            self._free = [*range(self._size // SLOT_BYTES - 1, first - 1, -1), *self._free]

    def _write(self, octets: bytes, at: int) -> None:
        if self._fd < 0:
            return
        assert self._path is not None
        try:
            if os.pwrite(self._fd, octets, at) != len(octets):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise _failure(self._path, error) from None

    def _sync(self) -> None:
        if self._fd < 0:
            return
        assert self._path is not None
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise _failure(self._path, error) from None


def _failure(path: Path, error: OSError) -> DeviceError | NoSpace:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"{path}: {error.strerror}: make room on its file system")
    return DeviceError(f"{path}: {error.strerror}", error.errno or 0)
