"""fallocate(2) with its modes, and BLKDISCARD, which Python's os module lacks.

Offsets and counts are bytes. The functions return False when the file system or device cannot do
it, and raise `OSError` when it failed. ctypes lets the GIL go during the call.

Thread-safety: no state.
"""

import ctypes
import errno
import fcntl
import os
import struct
from typing import Final

_KEEP_SIZE: Final = 0x01
_PUNCH_HOLE: Final = 0x02
_ZERO_RANGE: Final = 0x10
_BLKDISCARD: Final = 0x1277  # linux/fs.h: _IO(0x12, 119)

_CANNOT: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV})

_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_fallocate.restype = ctypes.c_int


def punch_hole(fd: int, offset: int, count: int) -> bool:
    """Deallocate a range of a file, which then reads as zero.

    On a block device this would only write zeroes where it can do so cheaply; use `discard`.
    """
    return _call(fd, _PUNCH_HOLE | _KEEP_SIZE, offset, count)


def zero_range(fd: int, offset: int, count: int) -> bool:
    """Zero a range, which stays or becomes allocated."""
    return _call(fd, _ZERO_RANGE | _KEEP_SIZE, offset, count)


def discard(fd: int, offset: int, count: int) -> bool:
    """Tell a block device that a range's content does not matter any more."""
    try:
        fcntl.ioctl(fd, _BLKDISCARD, struct.pack("QQ", offset, count))
    except OSError as error:
        if error.errno in _CANNOT:
            return False
        raise
    return True


def _call(fd: int, mode: int, offset: int, count: int) -> bool:
    while _fallocate(fd, mode, offset, count):
        number = ctypes.get_errno()
        if number in _CANNOT:
            return False
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
    return True
