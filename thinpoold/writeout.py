"""sync_file_range(2), which Python's os module lacks: having the page cache written out early.

ctypes lets the GIL go during the call. Thread-safety: no state.
"""

import ctypes
from typing import Final

_SYNC_FILE_RANGE_WRITE: Final = 2

_sync_file_range = ctypes.CDLL(None, use_errno=True).sync_file_range
_sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_sync_file_range.restype = ctypes.c_int


def start_writing(fd: int) -> None:
    """Start to write out what the page cache holds of a file; none of it is waited for.

    A failure is not told: it is found again, by the flush that counts.
    """
    _sync_file_range(fd, 0, 0, _SYNC_FILE_RANGE_WRITE)
