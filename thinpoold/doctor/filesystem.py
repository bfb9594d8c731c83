"""The file system that pools lie on: tried on a file of our own, which is removed."""

import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from thinpoold import fallocate
from thinpoold.doctor.finding import Finding
from thinpoold.sizes import format_size

_FICLONE = 0x40049409  # linux/fs.h
_PIECE = 1 << 20
_LEAST_FREE = 1 << 30
# What a file system answers that cannot do something, rather than fails at it.
_CANNOT = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS})


def filesystem(directory: Path) -> Iterator[Finding]:
    """Look at the file system where `directory` is, or will be once it is made."""
    there = next(one for one in (directory, *directory.parents) if one.exists())
    name, purpose = f"pools in {directory}", "where a pool lies that is named without a path"
    if not os.access(there, os.W_OK | os.X_OK):
        remedy = f"mkdir -p {directory} && chown {os.geteuid()} {directory}, as root"
        yield Finding(name, False, f"{there} is not writable", purpose, remedy)
        return
    free = os.statvfs(there)
    room = free.f_bavail * free.f_frsize
    roomy = room >= _LEAST_FREE
    remedy = "" if roomy else "thinpool init DIR, on a larger file system"
    shown = f"{format_size(room // _LEAST_FREE * _LEAST_FREE if roomy else room // 512 * 512)} free"
    yield Finding(name, roomy, shown, purpose, remedy)
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            yield from _tried(file.fileno(), there)
    except OSError as error:
        yield Finding("a file there", False, str(error.strerror), purpose, f"dmesg; df {there}")


def _tried(fd: int, there: Path) -> Iterator[Finding]:
    os.pwrite(fd, b"x" * _PIECE, 0)
    other = "mkfs.xfs or mkfs.ext4 on the disk for pools"
    punched = fallocate.punch_hole(fd, 0, _PIECE) and os.fstat(fd).st_blocks * 512 < _PIECE
    yield Finding(
        "punching holes",
        punched,
        _can(punched),
        "gives the space of deleted and discarded blocks back",
        "" if punched else other,
    )
    marked = _marks(fd)
    yield Finding(
        "extended attributes",
        marked,
        _can(marked),
        "mark a data file as its pool's, so that no other takes it",
        "" if marked else other,
    )
    cloned = _clones(fd, there)
    yield Finding(
        "reflinks",
        cloned,
        _can(cloned),
        "copy shared blocks of over 1M (init --block-size) without moving the data",
        "" if cloned else "mkfs.xfs on the disk for pools; without, they are copied",
    )


def _can(can: bool) -> str:
    return "supported" if can else "not supported"


def _marks(fd: int) -> bool:
    try:
        os.setxattr(fd, "user.thinpoold.doctor", b"x")
    except OSError:
        return False
    return True


def _clones(fd: int, there: Path) -> bool:
    with tempfile.TemporaryFile(dir=there) as copy:
        try:
            fcntl.ioctl(copy.fileno(), _FICLONE, fd)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            return False
    return True
