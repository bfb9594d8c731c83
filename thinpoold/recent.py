"""Changes of mappings that no commit holds yet: noted as they are made, durable when flushed.

A client that was answered counts on what it wrote, flushed or not, for as long as the machine stays
up: a disk does not forget what is in its cache because a program died. Data that went to the data
device is in the page cache and survives the daemon; the mapping that points at it is in the
daemon's memory. So each such change is noted in a small file of the pool's directory.

A flush has the notes synced, which is one write of a sector or two, where a commit would write
metadata, wait, write the page that makes it count, and wait again. The commit comes later.

There are two files, one for the open transaction and one for the one being committed. A file
says which commit its changes come on top of; changes whose commit is there already are skipped.

`notes` has what is in them.

Invariants

1. What a file holds is of one transaction, on top of the commit of its header's generation.
2. A change is noted before it is answered, and in the order of the metadata's changes.
3. What is before a synced mark is never written again, and no record is in two sectors: a write
   that a power cut tears harms what it writes alone.
4. After another boot just what is before the last mark counts. A mark is written when the data of
   what is before it is durable; it counts once it, and all before it, were synced (`sync`).
5. Marks are made only within the room that was written and synced when the files were made, where
   a sync has nothing of the file system's to write.
6. Failing to note or to sync costs only this: it is logged, `incomplete` is called, a flush is a
   commit then, and nothing else fails. After a sync has failed none is tried again: it would prove
   nothing.
7. While `complete`, the files hold every change that was noted and is in no durable commit: who
   goes back to the last commit may carry them out again, and has lost nothing.

What an administrator does is not noted: it is answered after its commit.

Thread-safety: the caller holds the metadata lock, but for `sync` and `vouch`, which wait for the
disk: a round calls them, and nobody else changes what they look at.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from zlib import crc32

from thinpoold import boot, poolfiles
from thinpoold.notes import (
    BODY,
    CRC_BYTES,
    END,
    INSERT,
    KIND_SHIFT,
    MARK,
    RECORD_BYTES,
    RECORDS_AT,
    REMOVE,
    Change,
    Leftover,
    header,
    read,
    record,
    seed_of,
)

log = logging.getLogger(__name__)

_SIZE: Final = 256 << 10
# A mark, and the end behind it.
_ROOM: Final = _SIZE - 2 * RECORD_BYTES


@dataclass(slots=True)
class _File:
    path: Path
    fd: int
    generation: int = 0
    # The CRC of the header, which each record's begins with.
    seed: int = 0
    # Where its next record went when it was last the file at hand, and how many marks it has.
    end: int = RECORDS_AT
    marks: int = 0
    # Whether a change of its transaction is missing.
    lacks: bool = False
    # How many changes a synced mark vouches for, and where that mark ends.
    flushed: int = 0
    flushed_end: int = RECORDS_AT

    @property
    def noted(self) -> int:
        """How many changes it holds, when it is not the file at hand."""
        return (self.end - RECORDS_AT) // RECORD_BYTES - self.marks


class RecentChanges:
    """The changes since the last commit of the pool with `uuid`, in the files `paths`.

    Without paths, or where the system does not tell its boots apart, nothing is noted.
    Look at `leftovers` first: `begin` erases them. `incomplete` is called when from here on changes
    are missing.
    """

    def __init__(
        self,
        paths: Sequence[Path] = (),
        uuid: bytes = bytes(16),
        incomplete: Callable[[], None] = lambda: None,
    ) -> None:
        self._incomplete = incomplete
        self._paths = tuple(paths)
        self._uuid = uuid
        self._boot = boot.current().id
        # In which boot a process has noted what counts without having been flushed; empty: in none.
        self._trusted_boot = self._boot
        # The open transaction's first.
        self._files: list[_File] = []
        # Its marks, what the one under way vouches for, and where that ends.
        self._marks = self._marked = self._mark_end = 0
        # Whether `sync` has never failed.
        self._syncs = True
        # Whether of what a process left just what was flushed counts, which no file says.
        self._flushed_alone = False
        # Whether changes that were flushed wait for the next opening.
        self._kept = False
        # The file at hand, where its next record goes, and its seed. -1: nothing is noted.
        self._fd = -1
        self._end = 0
        self._seed = 0
        # The last record, if that is an insertion, which may be lengthened. -1: it is not.
        self._last_dev = -1
        self._last_block = self._last_data = self._last_count = 0

    def leftovers(self) -> list[Leftover]:
        """What a process left that died, oldest first; maybe empty. Raises `OSError`.

        All that it noted, if that was in this boot of the machine, else what was flushed.
        """
        read_all = (read(path, self._trusted_boot, self._uuid) for path in self._paths)
        found = sorted(
            (left for left in read_all if left is not None), key=lambda left: left.generation
        )
        if self._flushed_alone:
            found = [replace(left, changes=left.changes[: left.flushed]) for left in found]
        return found

    def distrust(self) -> None:
        """The boot's id does not tell whether the machine was restarted since a process died."""
        self._trusted_boot = b""

    def check_untold(self) -> None:
        """Raise `OSError` if writing out the files has failed and nobody was told."""
        for path in self._paths:
            poolfiles.check_written(path)

    def keep_flushed(self, *, read_only: bool = False) -> None:
        """Of what a process left that died, let just what was flushed count from now on.

        With `read_only` for this process alone. Raises `OSError`.
        """
        if read_only:
            self._flushed_alone = True
            return
        for path in self._paths:
            left = read(path, self._trusted_boot, self._uuid)
            if left is not None:
                fd = poolfiles.open_file(path, os.O_WRONLY)
                try:
                    _put_end(fd, left.seed, left.flushed, left.flushed_end)
                finally:
                    os.close(fd)

    def begin(self, generation: int) -> None:
        """Begin anew, on top of the commit `generation`; only from now on is anything noted."""
        if not self._boot:
            log.warning(
                "nothing tells one boot of this machine from another: what is not flushed would "
                "not survive the end of this process"
            )
            self._incomplete()
            return
        self._kept = False
        if self._files:
            # The one that was on top of the other holds nothing: it must not follow a later commit.
            self._put_end_of(self._files[1], nothing=True)
            self._start(generation)
            return
        try:
            for path in self._paths:
                fd = poolfiles.open_file(path, os.O_RDWR | os.O_CREAT)
                self._files.append(_File(path, fd))
                os.ftruncate(fd, _SIZE)
                _put(fd, bytes(_SIZE), 0)
                os.fsync(fd)
            if self._files:
                _sync_directory(self._paths[0].parent)
        except OSError as error:
            self._failed(error)
            # What cannot be overwritten must not be taken for a later transaction's.
            self.close()
            for path in self._paths:
                poolfiles.remove(path)
            return
        if self._files:
            self._start(generation)

    def inserted(self, dev_id: int, block: int, data_block: int, count: int) -> None:
        """Virtual blocks were mapped."""
        fd, at = self._fd, self._end
        if fd < 0:
            return
        if (
            self._last_dev == dev_id
            and self._last_block + self._last_count == block
            and self._last_data + self._last_count == data_block
        ):
            at -= RECORD_BYTES
            block, data_block = self._last_block, self._last_data
            count += self._last_count
        body = BODY.pack(INSERT << KIND_SHIFT | dev_id, block, data_block, count)
        try:
            packed = body + crc32(body, self._seed).to_bytes(CRC_BYTES, "little")
            if os.pwrite(fd, packed, at) != RECORD_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._failed(error)
            return
        self._end = at + RECORD_BYTES
        self._last_dev, self._last_block = dev_id, block
        self._last_data, self._last_count = data_block, count

    def removed(self, dev_id: int, begin: int, end: int) -> None:
        """Virtual blocks begin..end-1 were unmapped."""
        self._append(REMOVE << KIND_SHIFT | dev_id, begin, end - begin)

    # --- flushing ---------------------------------------------------------------------------------

    def room(self) -> int:
        """Bytes free on the file system of the notes; 0 if they cannot be marked."""
        if self._fd < 0 or not self._syncs or self._end > _ROOM:
            return 0
        return self.free_bytes()

    def free_bytes(self) -> int:
        """Bytes free on the file system of the notes; 0 where that is not known."""
        try:
            facts = os.fstatvfs(self._files[0].fd)
        except (OSError, IndexError):
            return 0
        return facts.f_bavail * facts.f_frsize

    def prepare(self) -> bool:
        """What is noted by now is to be marked, once its data is durable; False if it is."""
        self._last_dev = -1
        self._marked = (self._end - RECORDS_AT) // RECORD_BYTES - self._marks
        return self._marked != self._files[0].flushed

    def mark(self) -> bool:
        """The data behind what was noted at `prepare` is durable; False if it cannot be noted."""
        if self._end > _ROOM:
            return False
        self._append(MARK << KIND_SHIFT, self._marked, 0)
        self._marks += 1
        self._mark_end = self._end
        return self._fd >= 0

    def sync(self) -> bool:
        """Make the last mark durable; False if that fails. No lock is needed.

        The file is that of the open transaction until the round that calls this is over.
        """
        file = self._files[0]
        try:
            os.fdatasync(file.fd)
        except OSError as error:
            self._syncs = False
            log.warning("flushes are commits from now on: %s: %s", file.path, error.strerror)
            return False
        file.flushed, file.flushed_end = self._marked, self._mark_end
        return True

    def flushed(self, generation: int) -> list[Change]:
        """The changes on top of the commit `generation` that were flushed; maybe empty.

        Raises `OSError` if they cannot be read.
        """
        found: list[Change] = []
        for file in sorted(self._files, key=lambda file: file.generation):
            if file.flushed and file.generation >= generation:
                left = self._read(file)
                if len(left.changes) < file.flushed:
                    raise _unreadable(file)
                found += left.changes[: file.flushed]
                if file.flushed < file.noted:
                    # What is on top counts only where all of this does.
                    break
        return found

    # --- going back -------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Whether all that was noted since the last durable commit is in the files."""
        return bool(self._files) and not any(file.lacks for file in self._files)

    def hold(self) -> None:
        """Note nothing any more, and keep what there is for the next opening."""
        self._leave()
        self._fd = -1
        self._kept = True

    def release(self) -> None:
        """What was held is committed: nothing is kept for the next opening."""
        self._kept = False

    def held(self, generation: int) -> list[Leftover]:
        """All changes on top of that commit, oldest first. After `hold`. Raises `OSError`."""
        found = []
        for file in self._files:
            if file.generation >= generation:
                left = self._read(file)
                if len(left.changes) != file.noted:
                    raise _unreadable(file)
                found.append(left)
        found.sort(key=lambda left: left.generation)
        while found and not found[-1].changes:
            found.pop()
        return found

    def vouch(self) -> None:
        """The data behind all that is held is durable; so is this then. Raises `OSError`.

        No lock is needed.
        """
        if not self._syncs:
            # What that sync did not write no later one does.
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        # The older first: what is on top of it counts only where all of it does.
        for file in sorted(self._files, key=lambda file: file.generation):
            if file.noted != file.flushed:
                noted = file.noted
                _put(file.fd, record(file.seed, MARK << KIND_SHIFT, noted), file.end)
                file.end += RECORD_BYTES
                file.marks += 1
                # Its size as well: it may have grown beyond the room that was made for marks.
                try:
                    os.fsync(file.fd)
                except OSError:
                    self._syncs = False
                    raise
                file.flushed, file.flushed_end = noted, file.end

    # --- transactions -----------------------------------------------------------------------------

    def committed(self) -> None:
        """The frozen transaction is durable."""
        if self._files:
            self._files[1].lacks = False

    def freeze(self) -> None:
        """The open transaction is being committed; what follows is noted on top of it."""
        if self._files:
            self._leave()
            # The other file's transaction is durable: one commit is made at a time.
            generation = self._files[0].generation + 1
            self._files.reverse()
            self._start(generation)

    def abandon(self) -> None:
        """The transactions noted here will never be: those who made the changes were told.

        But for those changes that were flushed, which wait for the next opening.
        """
        for file in self._files:
            self._put_end_of(file)
            self._kept = self._kept or file.flushed > 0
        self._fd = -1

    def close(self) -> None:
        """Note nothing any more. The files stay."""
        self._fd = -1
        while self._files:
            os.close(self._files.pop().fd)

    def erase(self) -> None:
        """Close the files, and if all there is to know is committed, or was given up, have nothing
        in them. They stay: a full disk would have no room for new ones.
        """
        files = {file.path: file.fd for file in self._files}
        for path in self._paths if not self._kept else ():
            try:
                _put(files[path], bytes(RECORDS_AT), 0)
            except (KeyError, OSError):
                poolfiles.remove(path)
        self.close()

    def _put_end_of(self, file: _File, *, nothing: bool = False) -> None:
        flushed, at = (0, RECORDS_AT) if nothing else (file.flushed, file.flushed_end)
        try:
            _put_end(file.fd, file.seed, flushed, at)
        except OSError as error:
            self._failed(error)

    def _read(self, file: _File) -> Leftover:
        left = read(file.path, self._boot, self._uuid)
        if left is None:
            raise _unreadable(file)
        return left

    def _leave(self) -> None:
        """Remember of the file at hand what only the attributes say."""
        if self._files and self._fd >= 0:
            self._files[0].end, self._files[0].marks = self._end, self._marks

    def _start(self, generation: int) -> None:
        file = self._files[0]
        file.end, file.marks, file.lacks = RECORDS_AT, 0, False
        head = header(generation, self._boot, self._uuid)
        file.generation, file.seed = generation, seed_of(head)
        file.flushed, file.flushed_end = 0, RECORDS_AT
        self._fd, self._end, self._seed = file.fd, RECORDS_AT, file.seed
        self._last_dev, self._marks = -1, 0
        try:
            if os.fstat(file.fd).st_size > _SIZE:
                os.ftruncate(file.fd, _SIZE)
            _put(file.fd, head, 0)
        except OSError as error:
            self._failed(error)

    def _append(self, what: int, block: int, count: int) -> None:
        if self._fd < 0:
            return
        self._last_dev = -1
        try:
            _put(self._fd, record(self._seed, what, block, count), self._end)
        except OSError as error:
            self._failed(error)
            return
        self._end += RECORD_BYTES

    def _failed(self, error: OSError) -> None:
        # Until the next commit nothing is noted: later changes may rest on the one that is missing.
        self._leave()
        self._fd = -1
        if self._files:
            self._files[0].lacks = True
        self._incomplete()
        log.warning(
            "what was not flushed would not survive the end of this process: %s: %s",
            self._paths[0].parent,
            error.strerror,
        )


def _unreadable(file: _File) -> OSError:
    return OSError(errno.EIO, f"{file.path} does not hold what was written to it")


def _put(fd: int, octets: bytes, at: int) -> None:
    if os.pwrite(fd, octets, at) != len(octets):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _put_end(fd: int, seed: int, flushed: int, at: int) -> None:
    """Let the first `flushed` changes count alone: over what comes first behind their mark."""
    _put(fd, record(seed, END << KIND_SHIFT, flushed), at)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
