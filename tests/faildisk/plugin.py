"""nbdkit's script for a disk that fails when told: an image, beside files that say what fails.

    IMAGE                   the bytes
    IMAGE.pread, .pwrite, .flush     while it is there, such requests fail with EIO
    IMAGE.hang              while it is there, flushes wait

Run by nbdkit's own Python, so it knows nothing of the project.
"""

import errno
import os
import time

import nbdkit

API_VERSION = 2

_image = ""
_fd = -1


def config(key: str, value: str) -> None:
    global _image
    if key != "image":
        raise ValueError(f"unknown parameter {key}")
    _image = os.path.abspath(value)


def open(readonly: int) -> int:
    global _fd
    if _fd < 0:
        _fd = os.open(_image, os.O_RDWR)
    return 1


def get_size(h: int) -> int:
    return os.lseek(_fd, 0, os.SEEK_END)


def can_flush(h: int) -> bool:
    return True


def pread(h: int, buf: bytearray, offset: int, flags: int) -> None:
    _meet("pread")
    os.preadv(_fd, [buf], offset)


def pwrite(h: int, buf: bytearray, offset: int, flags: int) -> None:
    _meet("pwrite")
    os.pwritev(_fd, [buf], offset)


def flush(h: int, flags: int) -> None:
    # A disk that does not answer: whoever ends the wait is a test, which waits for nothing itself.
    while os.path.exists(f"{_image}.hang"):
        time.sleep(0.01)
    _meet("flush")


def _meet(what: str) -> None:
    if os.path.exists(f"{_image}.{what}"):
        nbdkit.set_error(errno.EIO)
        raise OSError(errno.EIO, "told to fail")
