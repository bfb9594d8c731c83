"""The data device: the file or block device that holds the pool's data blocks.

Offsets and counts are bytes. Every call does all it was asked or raises `DeviceError` with the
system's errno; a short read or write is continued.

Invariants

1. `flush` returns when everything written before it began is durable. After it, or the write-out,
   has been told of an error, the kernel may have thrown the data away and will not say so again: no
   flush succeeds any more, and the ledger knows it before whoever was told goes on.
2. `is_zero` never errs on the side of zero: what it vouches for reads as zero now.
3. Whoever opens a device holds a lock on it (flock, and O_EXCL on a block device), so two pools
   never share one.

Thread-safety: all calls but `resize` and `close` from any thread.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Self, TypeAlias

from thinpoold import fallocate, pagecache
from thinpoold.errors import DeviceError, ThinPoolError
from thinpoold.ledger import Ledger, State
from thinpoold.writeout import WriteOut

log = logging.getLogger(__name__)

Buffer: TypeAlias = bytes | bytearray | memoryview

_BLKROGET = 0x125E  # linux/fs.h: _IO(0x12, 94)
_PIECE = 1 << 20
ZEROES = memoryview(bytes(_PIECE))
"""A mebibyte of zeroes, to write from and to copy from."""

# IOV_MAX of Linux.
_MAX_BUFFERS = 1024

# No write to the page cache goes past a multiple of this. A call makes folios as large as what it
# writes, and ext4 goes through all the buffers of a folio at each later write into it: writing
# 4 KiB into one of 1 MiB takes 20 us, into one of 128 KiB 6. As in plugins/fastpath/volume.c.
FOLIO_BYTES = 128 << 10


class DataDevice:
    """An open data device. `size` is in bytes, `regular` tells a file from a block device.

    `direct` is true of one past the page cache; `writeout` keeps what is unwritten in it bounded.
    """

    direct = False
    # The most that one request may have prefetched: whoever waits for it must not wait long.
    prefetch_bytes: int = 64 << 20
    _most = FOLIO_BYTES

    def __init__(self, path: Path, fd: int, *, read_only: bool = False) -> None:
        self.path = path
        self.fd = fd
        self.read_only = read_only
        self.regular = stat.S_ISREG(os.fstat(fd).st_mode)
        self.size = self._find_size()
        # Where errors are noted that the kernel tells once; the pool's, once it is open.
        self.ledger = Ledger()
        # What a flush, or the write-out, was told; called with it, by whoever was told.
        self.failed: DeviceError | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self.writeout = WriteOut(fd, syncing=self._syncing, failed=self._not_out)
        self._can_zero = True
        self._can_copy = True

    @classmethod
    def open(cls, path: Path, *, read_only: bool = False) -> Self:
        """Open and lock the device at `path`. Raises `DeviceError`; nothing is touched then."""
        fd = cls.open_fd(path, read_only=read_only)
        try:
            return cls(path, fd, read_only=read_only)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def open_fd(cls, path: Path, flags: int = 0, *, read_only: bool) -> int:
        """Open and lock the device at `path`, with `flags` besides: its descriptor."""
        flags |= os.O_CLOEXEC | (os.O_RDONLY if read_only else os.O_RDWR)
        try:
            mode = os.stat(path).st_mode
            if stat.S_ISBLK(mode):
                # Refused by the kernel while the device is mounted or part of another.
                flags |= 0 if read_only else os.O_EXCL
            elif not stat.S_ISREG(mode):
                raise DeviceError(f"data device {path} is neither a file nor a block device")
            fd = os.open(path, flags)
        except OSError as error:
            told = failure(f"data device {path}", error)
            if error.errno == errno.EROFS:
                told.args = (f"{told}; 'thinpool start --read-only' does not write it",)
            raise told from None
        try:
            if stat.S_ISBLK(mode) and not read_only:
                _check_writable(fd, path)
            _lock(fd, path, read_only)
            return fd
        except BaseException:
            os.close(fd)
            raise

    def close(self) -> None:
        """Close and unlock it. Nothing is flushed."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            self.writeout.close()
            os.close(fd)

    # --- data -----------------------------------------------------------------------------------

    def read(self, into: bytearray | memoryview, offset: int) -> None:
        """Fill `into` from `offset`."""
        try:
            done = os.preadv(self.fd, (into,), offset)
            if done != len(into):
                self._read_on(into, done, offset)
        except OSError as error:
            raise failure("read of the data device", error) from None

    def write(self, data: Buffer, offset: int) -> None:
        """Write `data` at `offset`."""
        try:
            count, done = len(data), 0
            if offset % FOLIO_BYTES + count <= FOLIO_BYTES:
                done = os.pwritev(self.fd, (data,), offset)
            if done != count:
                self._write_on([data], done, offset)
        except OSError as error:
            raise failure("write to the data device", error) from None

    def write_all(self, parts: list[Buffer], offset: int) -> None:
        """Write several buffers, one behind the other, from `offset` on."""
        try:
            count, done = sum(map(len, parts)), 0
            if offset % FOLIO_BYTES + count <= FOLIO_BYTES:
                done = os.pwritev(self.fd, parts[:_MAX_BUFFERS], offset)
            if done != count:
                self._write_on(parts, done, offset)
        except OSError as error:
            raise failure("write to the data device", error) from None

    def copy(self, source: int, target: int, count: int) -> None:
        """Copy `count` bytes within the device; the two ranges do not overlap."""
        try:
            while count and self._can_copy and self.regular:
                try:
                    done = os.copy_file_range(self.fd, self.fd, count, source, target)
                except OSError as error:
                    if error.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP):
                        raise
                    self._can_copy = False
                    break
                if done == 0:
                    raise OSError(errno.EIO, "the data device ends early")
                source, target, count = source + done, target + done, count - done
        except OSError as error:
            raise failure("copy within the data device", error) from None
        buffer = memoryview(bytearray(min(count, _PIECE)))
        while count:
            piece = buffer[: min(count, _PIECE)]
            self.read(piece, source)
            self.write(piece, target)
            source, target, count = source + len(piece), target + len(piece), count - len(piece)

    def flush(self) -> None:
        """Make everything written so far durable."""
        self._flush(os.fdatasync)

    def flush_all(self) -> None:
        """As `flush`, and a file's attributes, too."""
        self._flush(os.fsync)

    def _flush(self, sync: Callable[[int], None]) -> None:
        if self.failed is not None:
            raise self.failed
        with self.ledger.syncing():
            try:
                with self.writeout.writing():
                    sync(self.fd)
            except OSError as error:
                told = failure("flush of the data device", error)
                self.fail(told)
                raise told from None

    def check_written(self) -> None:
        """As `flush`, of a device that was opened read-only, and for whoever can note nothing.

        A block device is not asked: it would tell nobody else.
        """
        try:
            if self.regular:
                pagecache.check_written(self.fd)
        except OSError as error:
            raise failure("write-out of the data device", error) from None

    def check_untold(self) -> None:
        """Raise `DeviceError` unless no write-back has failed of which a process was told that is
        dead now.

        An error of a file is kept for its file system as well, for whoever syncs that (syncfs(2),
        Linux 5.8). Of a block device nothing is kept that a process can ask for. A device that was
        opened read-only asks nobody, for who is told must note it.
        """
        why = "the daemon died, and a write of the data device may have failed"
        if self.read_only:
            raise DeviceError(f"{why}: only a start that may write can ask")
        if not self.regular:
            raise DeviceError(f"{why}: a block device says so once")
        try:
            pagecache.sync_file_system(self.fd)
        except OSError as error:
            raise failure(why, error) from None

    def _syncing(self) -> AbstractContextManager[None]:
        # The ledger comes after the device.
        return self.ledger.syncing()

    def forgive(self) -> None:
        """Go on from what is on disk: what may be lost is noted. Nobody else uses the device.

        A page that the kernel could not write stays in the page cache, and counts as written. ext4
        then takes the page's extent for one that holds data, where on disk it is still marked as
        unwritten: whatever is written to the page later, and synced, reads as zeroes once the page
        is evicted. So every page goes before anybody writes. Raises `DeviceError` when the device
        still fails.
        """
        self.failed = None
        if not self.read_only:
            self.flush()
        self.writeout.forgive()
        pagecache.drop(self.fd)

    def _not_out(self, error: OSError) -> None:
        self.fail(failure("write-out of the data device", error))
        self.on_failure()

    def fail(self, error: DeviceError) -> None:
        """No flush succeeds any more: what was written may be lost. Noted for the next process."""
        if self.failed is not None:
            return
        self.failed = error
        try:
            self.ledger.note(State.FAILED, on=True, durable=True)
        except ThinPoolError as worse:
            # No flush succeeds any more in this life; the next would not know.
            log.critical("a failure of the data device cannot be noted: %s", worse)

    # --- space ----------------------------------------------------------------------------------

    @property
    def zeroes_fast(self) -> bool:
        """Whether `zero` is likely to be faster than writing zeroes."""
        return self.regular and self._can_zero

    def zero(self, offset: int, count: int) -> None:
        """Make a range read as zero; its space stays allocated."""
        try:
            if not self._zero_range(offset, count):
                self._write_on([], 0, offset, zeroes=count)
        except OSError as error:
            raise failure("zeroing of the data device", error) from None

    def _zero_range(self, offset: int, count: int) -> bool:
        """Zero a range without writing zeroes; False when the device cannot."""
        if self.regular and self._can_zero:
            self._can_zero = fallocate.zero_range(self.fd, offset, count)
            return self._can_zero
        return False

    def punch(self, offset: int, count: int) -> bool:
        """Give a range's space back; False when the device cannot.

        Of a file it reads as zero then; what a discarded block device holds, nobody knows.
        """
        try:
            if self.regular:
                return fallocate.punch_hole(self.fd, offset, count)
            return fallocate.discard(self.fd, offset, count)
        except OSError as error:
            raise failure("discard on the data device", error) from None

    def is_zero(self, offset: int, count: int) -> bool:
        """Whether the range is known to read as zero: a hole of a file, told by its file system."""
        if not self.regular:
            return False
        try:
            return os.lseek(self.fd, offset, os.SEEK_DATA) >= offset + count
        except OSError as error:
            if error.errno == errno.ENXIO:
                # No data from here to the end of the file.
                return offset + count <= self.size
            raise failure("look-up of holes in the data device", error) from None

    def prefetch(self, offset: int, count: int) -> None:
        """Start to read a range into the page cache; a hint, and never an error."""
        try:
            os.posix_fadvise(self.fd, offset, count, os.POSIX_FADV_WILLNEED)
        except OSError:
            pass

    def age(self) -> None:
        """Let go of memory that was not used for long; called each half minute."""

    def resize(self, size: int) -> None:
        """Make a file larger; look how large a block device has become.

        Raises `DeviceError` when it is smaller than `size` in the end.
        """
        try:
            if self.regular and self.size < size:
                os.ftruncate(self.fd, size)
            self.size = self._find_size()
        except OSError as error:
            raise failure(f"growing data device {self.path}", error) from None
        if self.size < size:
            raise DeviceError(
                f"data device {self.path} has {self.size} bytes, not {size}: make it larger first"
            )

    # --- pieces ---------------------------------------------------------------------------------

    def _find_size(self) -> int:
        return os.lseek(self.fd, 0, os.SEEK_END)

    def _read_on(self, into: bytearray | memoryview, done: int, offset: int) -> None:
        rest = memoryview(into)[done:]
        while rest:
            if not done:
                raise OSError(errno.EIO, "the data device ends early")
            offset += done
            done = os.preadv(self.fd, (rest,), offset)
            rest = rest[done:]

    def _write_on(self, parts: list[Buffer], done: int, offset: int, zeroes: int = 0) -> None:
        rest = [memoryview(part) for part in parts if len(part)]
        while rest or zeroes:
            offset += done
            while rest and done >= len(rest[0]):
                done -= len(rest.pop(0))
            if rest:
                rest[0] = rest[0][done:]
            elif zeroes:
                rest = [ZEROES[: min(zeroes, _PIECE)]]
                zeroes -= len(rest[0])
            else:
                return
            most = self._most - offset % self._most
            done = os.pwritev(self.fd, _front(rest[:_MAX_BUFFERS], most), offset)
            if not done:
                raise OSError(errno.EIO, "the data device takes nothing")


def _front(parts: list[memoryview], count: int) -> list[memoryview]:
    """Return the first `count` bytes of buffers, or all when there are no more."""
    front = []
    for part in parts:
        front.append(part[:count])
        count -= len(part)
        if count <= 0:
            break
    return front


def failure(what: str, error: OSError) -> DeviceError:
    """Return the `DeviceError` for an operating system's error in doing `what`."""
    return DeviceError(f"{what}: {error.strerror}", error.errno or errno.EIO)


def _check_writable(fd: int, path: Path) -> None:
    """Raise `DeviceError` for a write-protected disk: not every kernel refuses to open it."""
    (protected,) = struct.unpack("i", fcntl.ioctl(fd, _BLKROGET, bytes(4)))
    if protected:
        raise DeviceError(
            f"data device {path} is write-protected; 'thinpool start --read-only' does not write "
            "it",
            errno.EROFS,
        )


def _lock(fd: int, path: Path, read_only: bool) -> None:
    how = fcntl.LOCK_SH if read_only else fcntl.LOCK_EX
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DeviceError(
            f"data device {path} is in use by another pool: each needs one of its own", errno.EBUSY
        ) from None
    except OSError:
        # A file system without locks: the pool's own lock has to do.
        pass
