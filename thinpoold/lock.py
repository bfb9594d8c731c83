"""The lock of a pool: who holds it alone may write the pool, who shares it may read it.

It is flock on POOL/lock. The lock belongs to the open file description, so the daemon takes it,
checks, and hands it on through exec to nbdkit; it goes when the last copy of the descriptor is
closed, however the process ended. The file holds the process id of who held it alone last, and what
it does, for messages alone: whether the pool is locked only flock says.

    alone     the daemon; a command that changes a stopped pool
    shared    a daemon that serves read-only; a command that looks at a stopped pool

To share it takes a file that can be read, no more: it works on a read-only file system, and there
too it keeps everybody from writing who reaches the same file, by whichever mount. Who shares it
leaves nothing in the file.

A daemon that serves read-only holds a second lock alone, RUN/lock: there may be several for one
pool, each with a run directory of its own.

Thread-safety: functions over a file descriptor; no state.
"""

import errno
import fcntl
import os
import time
from dataclasses import dataclass
from pathlib import Path

from thinpoold import poolfiles
from thinpoold.errors import DeviceError, PoolLocked
from thinpoold.paths import PoolPaths

# What the daemon says it does.
DAEMON = "thinpoold"

_LOCKS = Path("/proc/locks")
_RETRY = 0.02
# A command that looks whether there is a daemon holds its lock for a moment.
_RUN_WAIT = 1.0


@dataclass(frozen=True)
class Holder:
    """Who wrote itself into the lock file last. `pid` is 0 when that cannot be told."""

    pid: int
    what: str


def acquire(paths: PoolPaths, what: str, wait: float = 0.0) -> int:
    """Take the pool's lock alone and return its file descriptor, which is not inherited.

    `what` names the taker in others' messages; `wait` is how many seconds to try for. Raises
    PoolLocked when another holds it, DeviceError when the lock file cannot be opened to write.
    """
    try:
        fd = poolfiles.open_file(paths.lock, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise _unwritable(paths, error) from None
    return _taken(fd, paths.lock, paths, what, wait)


def share(paths: PoolPaths, wait: float = 0.0) -> int:
    """Share the pool's lock, to read the pool; return a descriptor as `acquire` does.

    Raises PoolLocked when another holds it alone, DeviceError when the lock file cannot be opened
    to read.
    """
    try:
        try:
            fd = poolfiles.open_file(paths.lock, os.O_RDONLY)
        except FileNotFoundError:
            fd = poolfiles.open_file(paths.lock, os.O_RDONLY | os.O_CREAT)
    except OSError as error:
        text = f"{paths.lock}: {error.strerror}"
        if error.errno == errno.EROFS:
            text = (
                f"{paths.lock} is missing, and nothing keeps others from changing the pool while "
                "it is read: put an empty file there before the file system becomes read-only"
            )
        raise DeviceError(text, error.errno or 0) from None
    return _taken(fd, paths.lock, paths, "", wait)


def acquire_run(paths: PoolPaths) -> int:
    """Take the run directory of a daemon that serves read-only; return a descriptor as `acquire`.

    Raises PoolLocked when another daemon has it, DeviceError.
    """
    try:
        fd = poolfiles.open_file(paths.run_lock, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise DeviceError(f"{paths.run_lock}: {error.strerror}", error.errno or 0) from None
    return _taken(fd, paths.run_lock, paths, DAEMON, _RUN_WAIT)


def _taken(fd: int, path: Path, paths: PoolPaths, what: str, wait: float) -> int:
    """The descriptor `fd` of the lock file `path`, locked: alone where `what` is to be noted."""
    try:
        _lock(fd, path, paths, time.monotonic() + wait, shared=not what)
        if what:
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n{what}\n".encode(), 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _lock(fd: int, path: Path, paths: PoolPaths, deadline: float, *, shared: bool) -> None:
    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        try:
            fcntl.flock(fd, how | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            # A daemon will not be gone in a moment.
            if time.monotonic() >= deadline or _is_daemon(_holder(path)):
                raise _refusal(fd, path, paths) from None
        except OSError as error:
            # A file system without locks.
            raise DeviceError(
                f"{path}: cannot be locked: {error.strerror}", error.errno or 0
            ) from None
        # flock cannot wait with a limit; the holder may be a command of a few milliseconds.
        time.sleep(_RETRY)


def _refusal(fd: int, path: Path, paths: PoolPaths) -> PoolLocked:
    """Why `fd` could not be locked."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _locked(path, paths)
    # This process is one of them now, until its descriptor is closed.
    pids = _readers(fd)
    by = f"process {', '.join(map(str, pids))}" if pids else "another process"
    return PoolLocked(
        f"pool {paths.directory} is being read by {by}, a command or a daemon that serves it "
        "read-only: wait for it to end, or stop it",
        pids[0] if pids else 0,
    )


def _readers(fd: int) -> list[int]:
    """The processes that share the lock of `fd`, as far as the kernel tells this one."""
    facts = os.fstat(fd)
    device = f"{os.major(facts.st_dev):02x}:{os.minor(facts.st_dev):02x}"
    try:
        lines = _LOCKS.read_text().splitlines()
    except OSError:
        return []
    # Number, FLOCK, ADVISORY, READ, process id, and which file. See proc(5).
    found = [line.split() for line in lines]
    this = f"{device}:{facts.st_ino}"
    pids = {int(one[4]) for one in found if one[1] == "FLOCK" and this in one}
    return sorted(pids - {0, -1, os.getpid()})


def check_writable(paths: PoolPaths) -> None:
    """Raise DeviceError where the lock file cannot be opened to write; changes nothing."""
    try:
        os.close(poolfiles.open_file(paths.lock, os.O_RDWR))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _unwritable(paths, error) from None


def is_writable(paths: PoolPaths) -> bool:
    """Whether `check_writable` has nothing against it."""
    try:
        check_writable(paths)
    except DeviceError:
        return False
    return True


def _unwritable(paths: PoolPaths, error: OSError) -> DeviceError:
    why = f"{paths.lock}: {error.strerror}"
    if error.errno == errno.EROFS:
        point = poolfiles.mount_point(paths.directory)
        why = f"its file system, mounted on {point}, is read-only"
    elif error.errno not in (errno.EACCES, errno.EPERM):
        return DeviceError(why, error.errno or 0)
    return DeviceError(
        f"pool {paths.directory} cannot be changed: {why}; 'thinpool start --read-only' serves it "
        "to be read",
        error.errno,
    )


def holder(paths: PoolPaths) -> Holder:
    """Return who took the lock alone last, whether or not it still holds it.

    Of paths of a daemon that serves read-only, that daemon.
    """
    return _holder(_file(paths))


def _file(paths: PoolPaths) -> Path:
    return paths.run_lock if paths.read_only else paths.lock


def _holder(path: Path) -> Holder:
    try:
        pid, what, *_ = poolfiles.read(path).decode(errors="replace").split("\n")
        return Holder(int(pid), what)
    except (OSError, ValueError):
        return Holder(0, "")


def _is_daemon(who: Holder) -> bool:
    """Whether the holder is a daemon: one that lives, for a new holder may not have said yet."""
    if who.what != DAEMON or who.pid <= 0:
        return False
    try:
        os.kill(who.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def is_held(paths: PoolPaths) -> bool:
    """Whether some process holds the lock alone right now.

    Of paths of a daemon that serves read-only, whether that daemon runs.
    """
    return poolfiles.is_locked(_file(paths))


def await_released(paths: PoolPaths) -> None:
    """Return once `is_held` is false. Raises DeviceError when the file cannot be opened."""
    path = _file(paths)
    try:
        fd = poolfiles.open_file(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    except OSError as error:
        raise DeviceError(f"{path}: {error.strerror}", error.errno or 0) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)


def locked(paths: PoolPaths) -> PoolLocked:
    """Return the error that says who holds the pool."""
    return _locked(_file(paths), paths)


def _locked(path: Path, paths: PoolPaths) -> PoolLocked:
    who = _holder(path)
    if path == paths.run_lock:
        return PoolLocked(
            f"pool {paths.directory} is served read-only, by process {who.pid}; 'thinpool stop' "
            "ends that",
            who.pid,
        )
    if who.pid == 0:
        by = "by another process"
    else:
        by = f"by process {who.pid}" + (f" ({who.what})" if who.what else "")
    hint = "it runs already" if who.what == DAEMON else "wait for it to end"
    return PoolLocked(f"pool {paths.directory} is locked {by}; {hint}", who.pid)
