"""Bounded write-out: what the page cache holds unwritten of the data device, and who must wait.

Left to the kernel, a fifth of the machine's memory is unwritten before anybody slows down, and the
next flush takes as long as that takes. Here a thread begins to write at half of a bound, and a
volume that has more than its share of it unwritten waits until that is done.

    write .. write .. credit used up -> renew: charge the volume -> over the bound, and its share?
                                                  wait : new credit
    half the bound is charged -> is as much unwritten, says the kernel?
                                                  no   : what was charged too much is taken off
                                                  yes  : a thread writes it out, and waits for the
                                                         disk -> taken off

The bound is what the disk writes in a second, as it did of late: so long a flush after a flood may
take. It is `FIRST_BYTES` until that is known, and stays between `LEAST_BYTES` and `MOST_BYTES`, and
below what the kernel lets be unwritten before it slows down all who write.

What is written over and over again is charged each time, and is one page to write: only the kernel
knows. It counts the pages of all files together, so what it says is never too little.

Volumes write on credit, so that a write costs one subtraction and whoever writes without Python
needs nothing but the address of a counter. A credit counts as written when it is given.

Invariants

1. About the bound is unwritten at most, a sixteenth more for each volume, and for each
   volume that starts while others are over the bound no more than an equal share. Charges may be
   more than what is unwritten; they are less by no more than the volumes' credits, and what the
   device itself zeroed or copied, for which the kernel's own bound has to do.
2. A volume with less than an equal share of the bound never waits.
3. Nobody waits unless the thread runs: it alone ends the waiting, which a flush may do as well.
4. Whoever waits for writing is told of an error, and marks it as told: a process that opens the
   file later would not learn of it any more. So while the thread waits, `syncing` says so, and what
   it is told goes to `failed` before it does anything else. It works on a descriptor of its own, so
   this process's next flush is told as well.

Thread-safety: any thread. `_changed` guards all but the credits, which lose a write now and then.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import monotonic
from typing import Final

from thinpoold import pagecache
from thinpoold.committer import Timer

FIRST_BYTES: Final = 256 << 20
LEAST_BYTES: Final = 64 << 20
MOST_BYTES: Final = 4 << 30

GRANT_SHARE: Final = 16
"""A credit is one in so many of the bound: whoever writes without Python seldom has to ask."""

_SECONDS: Final = 1.0

# So much of the file is written, and waited for, at a time: enough for a disk to write in sequence,
# and little to wait behind for a read. With 64 MiB the slowest reads took three times as long.
_STRETCH: Final = 16 << 20
# But a file that holds much, most of it clean, is not gone through in many more steps than this.
_STEPS: Final = 4096

_SYNC_FILE_RANGE_WRITE: Final = 2
_SYNC_FILE_RANGE_WAIT_AFTER: Final = 4

# What it says where a file or a kernel has none: that is no failure to write.
_NO_SUCH_CALL: Final = frozenset({errno.ENOSYS, errno.EINVAL, errno.ESPIPE})

_sync_file_range = ctypes.CDLL(None, use_errno=True).sync_file_range
_sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_sync_file_range.restype = ctypes.c_int


class Account:
    """What one volume writes. `credit[0]` is how many bytes more it may write before `renew`."""

    __slots__ = ("_out", "credit", "pending", "unwritten")

    def __init__(self, out: WriteOut) -> None:
        self._out = out
        self.credit = array("q", [0])
        # Charged and unwritten, in bytes; and how much of that nobody has begun to write out.
        self.unwritten = 0
        self.pending = 0

    @property
    def address(self) -> int:
        """Where the credit is in memory, for code that subtracts without Python."""
        return self.credit.buffer_info()[0]

    def renew(self) -> None:
        """Take new credit; waits when the volume has written too much. Not inside a gate."""
        self._out.charge(self)


class WriteOut:
    """Writes out what the page cache holds of `fd`, once its thread runs.

    `syncing` is the context in which it waits; `failed` is called with an error that it is told.
    """

    def __init__(
        self,
        fd: int,
        *,
        syncing: Callable[[], AbstractContextManager[None]] = nullcontext,
        failed: Callable[[OSError], None] = lambda error: None,
    ) -> None:
        self._syncing = syncing
        self._failed = failed
        # A description of its own: invariant 4.
        self._fd = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        self._changed = threading.Condition(threading.Lock())
        # Those with something unwritten.
        self._accounts: set[Account] = set()
        self._unwritten = 0
        self._pending = 0
        self.limit_bytes = FIRST_BYTES
        self._most_bytes = MOST_BYTES
        self._measured = False
        self._timer = Timer("write-out", self._look, None)

    @property
    def unwritten(self) -> int:
        """About how many bytes were written and have not reached the disk."""
        return self._unwritten

    def start(self) -> None:
        """Start the thread."""
        self._timer.start()

    def stop(self) -> None:
        """End the thread, and with it all waiting."""
        self._timer.stop()
        with self._changed:
            self._changed.notify_all()

    def forgive(self) -> None:
        """What was to be told until now is known: have the descriptor told, too."""
        try:
            os.fdatasync(self._fd)
        except OSError:
            pass

    def close(self) -> None:
        """Close the descriptor; the thread has ended."""
        os.close(self._fd)

    def account(self) -> Account:
        """Return an account for one volume more."""
        return Account(self)

    def charge(self, account: Account) -> None:
        """Charge an account what it has overdrawn and a new credit; may wait first."""
        with self._changed:
            while self._over_share(account):
                self._timer.kick()
                self._changed.wait()
            overdrawn = -account.credit[0]
            if overdrawn < 0:
                # Another of its threads was here.
                return
            grant = self.limit_bytes // GRANT_SHARE
            account.credit[0] = grant
            amount = overdrawn + grant
            account.unwritten += amount
            account.pending += amount
            self._unwritten += amount
            self._pending += amount
            self._accounts.add(account)
            if self._pending >= self.limit_bytes // 2:
                self._timer.kick()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """The context writes out all that was charged before it."""
        with self._changed:
            begun = [(account, account.pending) for account in self._accounts if account.pending]
            for account, _ in begun:
                account.pending = 0
            self._pending = 0
        try:
            yield
        finally:
            # After a failure, too: nobody will write it again.
            with self._changed:
                for account, amount in begun:
                    self._take_off(account, amount)
                self._changed.notify_all()

    def _over_share(self, account: Account) -> bool:
        if self._unwritten < self.limit_bytes or not self._timer.running:
            return False
        return account.unwritten >= self.limit_bytes // len(self._accounts)

    def _take_off(self, account: Account, amount: int) -> None:
        account.unwritten -= amount
        self._unwritten -= amount
        if not account.unwritten:
            self._accounts.discard(account)

    def _look(self) -> None:
        """Write out what is charged, unless the kernel says that it is not that much."""
        with self._changed:
            self._settle()
            amount = self._pending
            if not amount or self._unwritten < self.limit_bytes // 2:
                return
        began = monotonic()
        with self._syncing(), self.writing():
            try:
                _write_file(self._fd)
            except OSError as error:
                self._failed(error)
                return
        rate = amount / max(monotonic() - began, 1e-6)
        limit = int(rate * _SECONDS)
        if self._measured:
            limit = (limit + self.limit_bytes) // 2
        self._measured = True
        with self._changed:
            self.limit_bytes = max(LEAST_BYTES, min(limit, self._most_bytes))
            # Who looked since the writing ended waits under the old bound.
            self._changed.notify_all()

    def _settle(self) -> None:
        """Take off what was charged and is not unwritten, from all alike. `_changed` is held."""
        kernel = pagecache.unwritten()
        if kernel is None:
            return
        self._most_bytes = min(MOST_BYTES, kernel.free)
        if self._pending <= kernel.now:
            return
        kept = kernel.now / self._pending
        for account in list(self._accounts):
            amount = account.pending - int(account.pending * kept)
            account.pending -= amount
            self._pending -= amount
            self._take_off(account, amount)
        self._changed.notify_all()


def _write_file(fd: int) -> None:
    """Write what the page cache holds of a file, a stretch at a time, and wait for each.

    Raises `OSError` at the first that fails.
    """
    size = os.lseek(fd, 0, os.SEEK_END)
    # A block device has all it can hold.
    held = os.fstat(fd).st_blocks * 512 or size
    stretch = max(_STRETCH, min(held, size) // _STEPS)
    offset = 0
    while (offset := _next_data(fd, offset, size)) < size:
        how = _SYNC_FILE_RANGE_WRITE | _SYNC_FILE_RANGE_WAIT_AFTER
        if _sync_file_range(fd, offset, stretch, how):
            number = ctypes.get_errno()
            if number in _NO_SUCH_CALL:
                return
            raise OSError(number, os.strerror(number))
        offset += stretch


def _next_data(fd: int, offset: int, size: int) -> int:
    """Return where data begins from `offset` on, as far as the file system tells; or `size`."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        return size if error.errno == errno.ENXIO else offset
