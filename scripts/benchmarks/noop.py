"""An nbdkit plugin that does nothing: what is left of nbdkit's Python when the work behind it is
none. Run by nbdkit, not by the benchmarks: nbdkit python noop.py size=BYTES.
"""

from typing import Any

import nbdkit

API_VERSION = 2
_size = 0


def config(key: str, value: str) -> None:
    global _size
    if key == "size":
        _size = int(value)


def thread_model() -> int:
    return int(nbdkit.THREAD_MODEL_PARALLEL)


def open(readonly: bool) -> int:
    return 1


def get_size(handle: Any) -> int:
    return _size


def can_multi_conn(handle: Any) -> bool:
    return True


def pread(handle: Any, buf: Any, offset: int, flags: int) -> None:
    pass


def pwrite(handle: Any, buf: Any, offset: int, flags: int) -> None:
    pass


def flush(handle: Any, flags: int) -> None:
    pass
