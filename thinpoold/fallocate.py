"""fallocate(2) with its modes, which Python's os module lacks.

Offsets and counts are bytes. The functions return False when the file system or device cannot do
it, and raise `OSError` when it failed. ctypes lets the GIL go during the call.

Thread-safety: no state.
"""

import ctypes
import errno
import os
from typing import Final

_KEEP_SIZE: Final = 0x01
_PUNCH_HOLE: Final = 0x02
_ZERO_RANGE: Final = 0x10

_CANNOT: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV})

_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_fallocate.restype = ctypes.c_int


def punch_hole(fd: int, offset: int, count: int) -> bool:
    """Deallocate a range, which then reads as zero. On a block device this discards it."""
    return _call(fd, _PUNCH_HOLE | _KEEP_SIZE, offset, count)


def zero_range(fd: int, offset: int, count: int) -> bool:
    """Zero a range, which stays or becomes allocated."""
    return _call(fd, _ZERO_RANGE | _KEEP_SIZE, offset, count)


def _call(fd: int, mode: int, offset: int, count: int) -> bool:
    while _fallocate(fd, mode, offset, count):
        number = ctypes.get_errno()
        if number in _CANNOT:
            return False
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
    return True
