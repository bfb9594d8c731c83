"""Changes of mappings that no commit holds yet, kept for when only the process dies.

A client that was answered counts on what it wrote, flushed or not, for as long as the machine stays
up: a disk does not forget what is in its cache because a program died. Data that went to the data
device is in the page cache and survives the daemon; the mapping that points at it is in the
daemon's memory. So each such change is noted in a small file of the pool's directory, which is
never synced: a page cache's worth of durability is what is wanted.

There are two files, one for the open transaction and one for the one being committed. A file
says which commit its changes come on top of; changes whose commit is there already are skipped.

    header    magic, generation of the commit before, boot id, pool's uuid, CRC-32
    records   kind and device, virtual block, data block, count, CRC-32; in the order of the changes

Invariants

1. What a file holds is of one transaction, on top of the commit of its header's generation.
2. A change is noted before it is answered, and in the order of the metadata's changes.
3. After a boot, or in another pool, the files say nothing: neither they nor the data were synced.
4. Failing to note anything costs only this protection: it is logged, and nothing else fails.

What an administrator does is not noted: it is answered after its commit.

Thread-safety: the caller holds the metadata lock.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

_MAGIC: Final = b"tprecent"
_HEADER: Final = struct.Struct("<8sQ16s16sI")
_RECORD: Final = struct.Struct("<IQQQI")
_CRC_BYTES: Final = 4
# Above the 24 bits of a device's number.
_KIND_SHIFT: Final = 24
_INSERT: Final = 1
_REMOVE: Final = 2
# No insertion follows this one.
_NOTHING: Final = (-1, 0, 0, 0)
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Change:
    """`count` virtual blocks of a device from `block` on were mapped to data blocks from
    `data_block` on, or unmapped if that is None."""

    dev_id: int
    block: int
    count: int
    data_block: int | None


@dataclass(frozen=True, slots=True)
class Leftover:
    """Changes of one transaction that came on top of the commit `generation`."""

    generation: int
    changes: Sequence[Change]


class RecentChanges:
    """The changes since the last commit of the pool with `uuid`, in the files `paths`.

    Without paths, or where the system does not tell its boots apart, nothing is noted.
    Look at `leftovers` first: `begin` erases them.
    """

    def __init__(self, paths: Sequence[Path] = (), uuid: bytes = bytes(16)) -> None:
        self._paths = tuple(paths)
        self._uuid = uuid
        self._boot = _boot_id()
        self._fds: list[int] = []
        # The file at hand, where its next record goes, and the last insertion, to lengthen, as
        # device, block, data block, count.
        self._fd = -1
        self._end = 0
        self._last = _NOTHING
        self._generation = 0

    def leftovers(self) -> list[Leftover]:
        """What a process that died in this boot of the machine left, oldest first; maybe empty."""
        found = [
            left
            for path in self._paths
            if (left := _read(path, self._boot, self._uuid)) is not None
        ]
        return sorted(found, key=lambda left: left.generation)

    def begin(self, generation: int) -> None:
        """Begin anew, on top of the commit `generation`; only from now on is anything noted."""
        if not self._boot:
            return
        try:
            for path in self._paths:
                flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
                self._fds.append(os.open(path, flags, 0o600))
        except OSError as error:
            self._failed(error)
            self.close()
            return
        if self._fds:
            self._start(self._fds[0], generation)

    def inserted(self, dev_id: int, block: int, data_block: int, count: int) -> None:
        """Virtual blocks were mapped."""
        last_dev, last_block, last_data, last_count = self._last
        end = self._end
        if (
            last_block + last_count == block
            and last_data + last_count == data_block
            and last_dev == dev_id
        ):
            end -= _RECORD.size
            block, data_block, count = last_block, last_data, last_count + count
        self._note(_INSERT << _KIND_SHIFT | dev_id, block, data_block, count, end)
        self._last = (dev_id, block, data_block, count)

    def removed(self, dev_id: int, begin: int, end: int) -> None:
        """Virtual blocks begin..end-1 were unmapped."""
        self._note(_REMOVE << _KIND_SHIFT | dev_id, begin, 0, end - begin, self._end)
        self._last = _NOTHING

    def freeze(self) -> None:
        """The open transaction is being committed; what follows is noted on top of it."""
        if self._fds:
            # The other file's transaction is durable: one commit is made at a time.
            self._fds.reverse()
            self._start(self._fds[0], self._generation + 1)

    def abandon(self) -> None:
        """The transactions noted here will never be: those who made the changes were told."""
        for fd in self._fds:
            try:
                os.ftruncate(fd, 0)
            except OSError as error:
                self._failed(error)
        self._fd = -1

    def close(self) -> None:
        """Note nothing any more. The files stay."""
        self._fd = -1
        while self._fds:
            os.close(self._fds.pop())

    def erase(self) -> None:
        """Close, and remove the files: all there is to know is committed, or was given up."""
        self.close()
        for path in self._paths:
            path.unlink(missing_ok=True)

    def _start(self, fd: int, generation: int) -> None:
        self._generation = generation
        self._fd, self._end, self._last = fd, _HEADER.size, _NOTHING
        packed = _HEADER.pack(_MAGIC, generation, self._boot, self._uuid, 0)
        try:
            os.ftruncate(fd, 0)
            _put(fd, _sealed(packed), 0)
        except OSError as error:
            self._failed(error)

    def _note(self, what: int, block: int, data_block: int, count: int, at: int) -> None:
        if self._fd < 0:
            return
        packed = _RECORD.pack(what, block, data_block, count, 0)
        try:
            _put(self._fd, _sealed(packed), at)
        except OSError as error:
            self._failed(error)
            return
        self._end = at + _RECORD.size

    def _failed(self, error: OSError) -> None:
        # Until the next commit nothing is noted: later changes may rest on the one that is missing.
        self._fd = -1
        log.warning(
            "what was not flushed would not survive the end of this process: %s: %s",
            self._paths[0].parent,
            error.strerror,
        )


def _boot_id() -> bytes:
    """Return the 16 bytes that tell this boot of the machine from others, empty if none do."""
    try:
        return bytes.fromhex(_BOOT_ID.read_text().strip().replace("-", ""))
    except (OSError, ValueError):
        return b""


def _sealed(packed: bytes) -> bytes:
    """Return a packed structure with the CRC-32 of what is before its last four bytes."""
    body = packed[:-_CRC_BYTES]
    return body + zlib.crc32(body).to_bytes(_CRC_BYTES, "little")


def _put(fd: int, octets: bytes, at: int) -> None:
    if os.pwrite(fd, octets, at) != len(octets):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _read(path: Path, boot: bytes, uuid: bytes) -> Leftover | None:
    try:
        octets = path.read_bytes()
    except OSError:
        return None
    head = octets[: _HEADER.size]
    if not boot or len(head) < _HEADER.size or head != _sealed(head):
        return None
    magic, generation, its_boot, its_uuid, _ = _HEADER.unpack(head)
    if (magic, its_boot, its_uuid) != (_MAGIC, boot, uuid):
        return None
    changes = []
    for at in range(_HEADER.size, len(octets) - _RECORD.size + 1, _RECORD.size):
        packed = octets[at : at + _RECORD.size]
        if packed != _sealed(packed):
            break
        what, block, data_block, count, _ = _RECORD.unpack(packed)
        kind, dev_id = what >> _KIND_SHIFT, what & (1 << _KIND_SHIFT) - 1
        changes.append(Change(dev_id, block, count, data_block if kind == _INSERT else None))
    return Leftover(generation, changes)
