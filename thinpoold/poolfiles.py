"""The files of a pool's directory, opened so that who may write there has nobody open others.

Whoever owns a pool's directory can put anything under the names of its files: a symbolic link to a
file of root's, a hard link, a pipe. Root's commands come by all the same, and other users' do.

Invariants

1. No symbolic link is followed: the directory is walked to from the root, name by name, and what it
   holds is opened relative to it.
2. A file is a regular one. Where somebody else could have put it there, it also belongs to the
   directory's owner, or to this process's user and has no other name.
3. Root acts with the rights of the directory's owner: what root makes there is the owner's, and
   root opens nothing that the owner may not open. `acting_as_owner` is for what is opened by its
   path alone: by LMDB, and the data device.
4. An error names its file (`filename`), and says in `strerror` what to do about it.

Paths are absolute and without symbolic links, as `paths.pool_paths` makes them.

Thread-safety: any thread. Rights are the calling thread's alone; a thread started under
`acting_as_owner` would keep them, so none is.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from thinpoold import pagecache
from thinpoold.errors import DeviceError

_WALK: Final = os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC
# A pipe must not make us wait for whoever opens its other end.
_ALWAYS: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
# No user has it: asks, and changes nothing.
_ASK: Final = (1 << 32) - 1

_libc = ctypes.CDLL(None)
for _function in (_libc.setfsuid, _libc.setfsgid):
    _function.argtypes, _function.restype = [ctypes.c_uint32], ctypes.c_uint32


def open_file(path: Path, flags: int, mode: int = 0o600) -> int:
    """Open a file of a pool's directory as `os.open` does. Raises `OSError`.

    The file is not truncated: ask for that when it is known to be the right one.
    """
    with _directory(path) as (fd, found):
        try:
            opened = os.open(path.name, flags | _ALWAYS, mode, dir_fd=fd)
        except OSError as error:
            raise _told(error, path, found) from None
    try:
        _check(os.fstat(opened), path, found)
        os.set_blocking(opened, True)
    except BaseException:
        os.close(opened)
        raise
    return opened


def read(path: Path) -> bytes:
    """Return all that a file holds. Raises `OSError`."""
    with open(open_file(path, os.O_RDONLY), "rb") as file:
        return file.read()


def replace(path: Path, octets: bytes) -> None:
    """Put a file with this content in the place of the one there is. Raises `OSError`."""
    scratch = f".{path.name}.new"
    with _directory(path) as (fd, _):
        # One that a crash left, or that somebody put there.
        with suppress(FileNotFoundError):
            os.unlink(scratch, dir_fd=fd)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _ALWAYS
        try:
            with open(os.open(scratch, flags, 0o600, dir_fd=fd), "wb") as file:
                file.write(octets)
            os.replace(scratch, path.name, src_dir_fd=fd, dst_dir_fd=fd)
        except BaseException:
            with suppress(OSError):
                os.unlink(scratch, dir_fd=fd)
            raise


def move(path: Path, name: str) -> None:
    """Give a file another name in its directory, that of a file there is. Raises `OSError`."""
    with _directory(path) as (fd, _):
        os.replace(path.name, name, src_dir_fd=fd, dst_dir_fd=fd)


def remove(path: Path) -> None:
    """Remove a file, if there is one. Raises `OSError`."""
    with suppress(FileNotFoundError), _directory(path) as (fd, _):
        os.unlink(path.name, dir_fd=fd)


def check(path: Path) -> None:
    """Raise `OSError` if there is something under this path that `open_file` would not open."""
    with _directory(path) as (fd, directory):
        try:
            found = os.stat(path.name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return
        _check(found, path, directory)


def make_private(directory: Path) -> int:
    """Make a directory in a pool's, for its owner alone, and return a descriptor of it.

    Raises `OSError`, also where somebody else made it.
    """
    with _directory(directory) as (fd, parent):
        with suppress(FileExistsError):
            os.mkdir(directory.name, 0o700, dir_fd=fd)
        try:
            made = os.open(directory.name, _WALK & ~os.O_PATH, dir_fd=fd)
        except OSError as error:
            raise _told(error, directory, parent) from None
        try:
            owner = os.fstat(made).st_uid
            if owner != (parent.st_uid if os.geteuid() == 0 else os.geteuid()):
                raise _error(errno.EPERM, f"belongs to user {owner}: have it removed", directory)
            os.fchmod(made, 0o700)
        except BaseException:
            os.close(made)
            raise
        return made


@contextmanager
def acting_as_owner(directory: Path) -> Iterator[Path]:
    """Have this thread, if it is root's, open and make files with the rights of the owner.

    Yields a path to the directory that holds meanwhile, also where the owner may not go all the way
    to it. Raises `OSError`. No thread may be started meanwhile.
    """
    fd = _walk(directory)
    try:
        found = os.fstat(fd)
        with _acting_as(found, directory):
            yield Path(f"/proc/self/fd/{fd}") if _acts(found) else directory
    finally:
        os.close(fd)


@contextmanager
def opening_device(directory: Path) -> Iterator[Callable[[Path], Path]]:
    """Have the data device of the pool in `directory` opened with the rights of its owner.

    Where it is the owner says: a link there, or the pool's record, may name any disk. Yields what
    makes of the device's path the one to open it by.
    """
    # Not later, when it may be out of sight.
    owner = owner_of(directory)
    with acting_as_owner(directory) as reached:

        def reach(path: Path) -> Path:
            inside = path.is_relative_to(directory)
            return reached / path.relative_to(directory) if inside else path

        try:
            yield reach
        except DeviceError as error:
            if os.geteuid() != 0 or not owner:
                raise
            text = str(error).replace(str(reached), str(directory))
            if error.errno in (errno.EACCES, errno.EPERM):
                text += f": user {owner}, whose pool it is, may not open it"
            raise DeviceError(text, error.errno) from None


def give(path: Path) -> None:
    """Let a socket that root has just made here be the directory's owner's. Raises `OSError`."""
    parent = _walk(path.parent)
    try:
        directory = os.fstat(parent)
        if os.geteuid() != 0 or directory.st_uid == 0:
            return
        fd = os.open(path.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            found = os.fstat(fd)
            if stat.S_ISSOCK(found.st_mode) and found.st_uid == 0 and found.st_nlink == 1:
                os.chown(f"/proc/self/fd/{fd}", directory.st_uid, directory.st_gid)
        finally:
            os.close(fd)
    finally:
        os.close(parent)


def mount_point(directory: Path) -> Path:
    """Return where the read-only file system is mounted that a directory is on."""
    point = directory
    with suppress(OSError):
        device = directory.stat().st_dev
        for above in directory.parents:
            # Of a read-only mount of a part of a file system the rest may be writable.
            writable = not os.statvfs(above).f_flag & os.ST_RDONLY
            if writable or above.stat().st_dev != device:
                break
            point = above
    return point


def is_locked(path: Path) -> bool:
    """Whether some process holds flock on a file alone; False where it cannot be opened.

    Raises `OSError` of a file system without locks.
    """
    try:
        fd = open_file(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def check_written(path: Path) -> None:
    """Raise `OSError` if writing out what a file holds has failed and nobody was told.

    A file that is not there is no failure.
    """
    try:
        fd = open_file(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        pagecache.check_written(fd)
    finally:
        os.close(fd)


def owner_of(directory: Path) -> int | None:
    """Return whose a directory is, None where there is none to see."""
    try:
        return directory.lstat().st_uid
    except OSError:
        return None


@contextmanager
def _directory(path: Path) -> Iterator[tuple[int, os.stat_result]]:
    """The directory of `path`, and what it is; meanwhile root acts as its owner."""
    fd = _walk(path.parent)
    try:
        found = os.fstat(fd)
        with _acting_as(found, path.parent):
            yield fd, found
    finally:
        os.close(fd)


def _walk(directory: Path) -> int:
    fd = os.open("/", _WALK)
    try:
        for name in directory.absolute().parts[1:]:
            try:
                below = os.open(name, _WALK, dir_fd=fd)
            except OSError as error:
                raise _error(error.errno, error.strerror, directory) from None
            fd, above = below, fd
            os.close(above)
    except BaseException:
        os.close(fd)
        raise
    return fd


@contextmanager
def _acting_as(directory: os.stat_result, path: Path) -> Iterator[None]:
    # Not os.seteuid: that is the whole process's, and takes other rights away as well.
    if not _acts(directory):
        yield
        return
    group, user = _libc.setfsgid(directory.st_gid), _libc.setfsuid(directory.st_uid)
    try:
        if _libc.setfsuid(_ASK) != directory.st_uid:
            why = f"cannot act as user {directory.st_uid}, whose directory it is"
            raise _error(errno.EPERM, why, path)
        yield
    finally:
        _libc.setfsuid(user)
        _libc.setfsgid(group)


def _acts(directory: os.stat_result) -> bool:
    """Whether this process is root's, and the directory somebody else's."""
    return os.geteuid() == 0 and directory.st_uid != 0


def _check(found: os.stat_result, path: Path, directory: os.stat_result) -> None:
    """Raise `OSError` unless what was found may be the pool's."""
    if stat.S_ISLNK(found.st_mode):
        raise _error(errno.ELOOP, _A_LINK, path)
    if not stat.S_ISREG(found.st_mode):
        raise _error(errno.EINVAL, "is no regular file: remove it", path)
    owner, here = directory.st_uid, os.geteuid()
    if owner in (0, here) and not directory.st_mode & _OTHERS_WRITE:
        # Nobody else can have put it there.
        return
    if found.st_uid != owner and not (found.st_uid == here and found.st_nlink == 1):
        raise _error(errno.EPERM, _anothers(found, path, directory), path)


def _error(number: int | None, text: str | None, path: Path) -> OSError:
    return OSError(number, text, os.fspath(path))


_A_LINK: Final = "is a symbolic link, which is not followed in a pool's directory: remove it"


def _anothers(found: os.stat_result, path: Path, directory: os.stat_result) -> str:
    return (
        f"belongs to user {found.st_uid}, and its directory to user {directory.st_uid}: if it is "
        f"the pool's, 'chown {directory.st_uid} {path}' as root"
    )


def _told(error: OSError, path: Path, directory: os.stat_result) -> OSError:
    """An error of opening `path`, with what to do where that is known."""
    if error.errno in (errno.ELOOP, errno.ENOTDIR) and path.is_symlink():
        return _error(errno.ELOOP, _A_LINK, path)
    text = explained(error.errno, error.strerror or str(error), path, directory)
    return _error(error.errno, text, path)


def is_anothers(path: Path) -> bool:
    """Whether a file is there that is not its directory's owner's."""
    try:
        return path.lstat().st_uid != path.parent.lstat().st_uid
    except OSError:
        return False


def explained(
    number: int | None, text: str, path: Path, directory: os.stat_result | None = None
) -> str:
    """Return what an error of opening `path` is called, with what to do where that is known."""
    if number not in (errno.EACCES, errno.EPERM):
        return text
    try:
        found = path.lstat()
        directory = directory or path.parent.lstat()
    except OSError:
        return text
    if found.st_uid == directory.st_uid:
        if os.geteuid() != 0 or not directory.st_uid:
            return text
        return f"{text}: user {directory.st_uid}, whose directory it is, may not open it"
    return f"{text}: it {_anothers(found, path, directory)}"
