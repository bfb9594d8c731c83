"""The data device opened with O_DIRECT, under a data cache: the setting cache=bufio.

The kernel's page cache holds nothing of it: memory is bounded by the cache's figure, and what a
virtual machine caches itself is not kept twice. Writes reach the device before they return, so a
flush has only the device's own cache to empty.

Invariants: those of `device`, and what the cache says of itself; everything that changes the device
goes through the cache or tells it.

Thread-safety: as `DataDevice`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from thinpoold.datacache import PIECE_BYTES, DataCache
from thinpoold.device import ZEROES, Buffer, DataDevice, failure
from thinpoold.errors import DeviceError
from thinpoold.sizes import format_size

_BLKSSZGET: Final = 0x1268  # linux/fs.h: _IO(0x12, 104)

# statx(2), which Python 3.11 lacks, for what direct I/O must be aligned to.
_AT_EMPTY_PATH: Final = 0x1000
_STATX_DIOALIGN: Final = 0x2000
_STATX_BYTES: Final = 256
_STATX_OFFSET_ALIGN: Final = 0x9C  # u32 stx_dio_offset_align

# What file systems ask for that do not tell: none asks for more than a page.
_USUAL_ALIGNMENT: Final = 4096


class DirectDevice(DataDevice):
    """An open data device past the page cache. Use `open_direct`."""

    direct = True
    # There are no folios to keep small.
    _most = sys.maxsize

    def __init__(self, path: Path, fd: int, *, read_only: bool, cache_bytes: int) -> None:
        super().__init__(path, fd, read_only=read_only)
        # copy_file_range would take the way through the page cache.
        self._can_copy = False
        try:
            self.cache = DataCache(self, cache_bytes, _alignment(fd, regular=self.regular))
        except BaseException as error:
            self.writeout.close()
            if isinstance(error, OSError):
                raise failure(f"a data cache of {format_size(cache_bytes)}", error) from None
            raise
        self.prefetch_bytes = self.cache.limit_bytes // 4

    @classmethod
    def open_direct(cls, path: Path, cache_bytes: int, *, read_only: bool = False) -> Self:
        """Open and lock the device at `path` under a cache of `cache_bytes` bytes.

        Raises `DeviceError`, also where there is no O_DIRECT; nothing is touched then.
        """
        try:
            fd = cls.open_fd(path, os.O_DIRECT, read_only=read_only)
        except DeviceError as error:
            if error.errno == errno.EINVAL:
                raise _refusal(path) from None
            raise
        try:
            _try_out(fd, path)
            return cls(path, fd, read_only=read_only, cache_bytes=cache_bytes)
        except BaseException:
            os.close(fd)
            raise

    def close(self) -> None:
        super().close()
        self.cache.close()

    # --- the cache's source ---------------------------------------------------------------------

    def read_at(self, buffers: Sequence[memoryview], offset: int) -> None:
        rest = list(buffers)
        while rest:
            done = os.preadv(self.fd, rest, offset)
            if not done:
                raise OSError(errno.EIO, "the data device ends early")
            offset += done
            while rest and done >= len(rest[0]):
                done -= len(rest.pop(0))
            if done:
                rest[0] = rest[0][done:]

    def write_at(self, buffers: Sequence[memoryview], offset: int) -> None:
        self._write_on(list(buffers), 0, offset)

    # --- data -----------------------------------------------------------------------------------

    def read(self, into: bytearray | memoryview, offset: int) -> None:
        try:
            self.cache.read(memoryview(into), offset)
        except OSError as error:
            raise failure("read of the data device", error) from None

    def write(self, data: Buffer, offset: int) -> None:
        self._write_through([data], offset)

    def write_all(self, parts: list[Buffer], offset: int) -> None:
        self._write_through(parts, offset)

    def _write_through(self, parts: list[Buffer], offset: int) -> None:
        try:
            self.cache.write(parts, offset)
        except OSError as error:
            raise failure("write to the data device", error) from None

    def prefetch(self, offset: int, count: int) -> None:
        try:
            self.cache.prefetch(offset, count)
        except OSError:
            pass

    def age(self) -> None:
        self.cache.age()

    # --- space ----------------------------------------------------------------------------------

    def zero(self, offset: int, count: int) -> None:
        try:
            with self.cache.change(offset, count):
                done = self._zero_range(offset, count)
        except OSError as error:
            raise failure("zeroing of the data device", error) from None
        while count and not done:
            piece = min(count, len(ZEROES))
            self._write_through([ZEROES[:piece]], offset)
            offset, count = offset + piece, count - piece

    def punch(self, offset: int, count: int) -> bool:
        with self.cache.change(offset, count):
            return super().punch(offset, count)


def check_direct(path: Path) -> None:
    """Raise `DeviceError` unless the device at `path` can be opened with O_DIRECT."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise _refusal(path) from None
        raise failure(f"data device {path}", error) from None
    try:
        _try_out(fd, path)
    finally:
        os.close(fd)


def _try_out(fd: int, path: Path) -> None:
    """Raise `DeviceError` where O_DIRECT is taken at opening, and refused when it is used."""
    with mmap.mmap(-1, PIECE_BYTES) as memory:
        try:
            os.preadv(fd, [memory], 0)
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise _refusal(path) from None
            raise failure(f"read of data device {path}", error) from None


def _refusal(path: Path) -> DeviceError:
    return DeviceError(
        f"data device {path} cannot be opened with O_DIRECT, which cache=bufio needs: have it on "
        "another file system, or use cache=page",
        errno.EINVAL,
    )


def _alignment(fd: int, *, regular: bool) -> int:
    """Return what offset and length of direct I/O must be multiples of, in bytes."""
    if not regular:
        size: int = struct.unpack("i", fcntl.ioctl(fd, _BLKSSZGET, bytes(4)))[0]
        if PIECE_BYTES % size:
            raise DeviceError(
                f"the data device has sectors of {size} bytes, too large for cache=bufio: use "
                "cache=page"
            )
        return size
    told = ctypes.create_string_buffer(_STATX_BYTES)
    statx = getattr(ctypes.CDLL(None), "statx", None)
    if statx is not None and not statx(fd, b"", _AT_EMPTY_PATH, _STATX_DIOALIGN, told):
        (mask,) = struct.unpack_from("=I", told, 0)
        (align,) = struct.unpack_from("=I", told, _STATX_OFFSET_ALIGN)
        if mask & _STATX_DIOALIGN and align:
            return int(align)
    return _USUAL_ALIGNMENT
