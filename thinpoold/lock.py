"""The lock of a pool: who holds it may open the pool for writing.

It is flock on POOL/lock. The lock belongs to the open file description, so the daemon takes it,
checks, and hands it on through exec to nbdkit; it goes when the last copy of the descriptor is
closed, however the process ended. The file holds the holder's process id and what it does, for
messages alone: whether the pool is locked only flock says.

Thread-safety: functions over a file descriptor; no state.
"""

import fcntl
import os
import time
from dataclasses import dataclass

from thinpoold import poolfiles
from thinpoold.errors import DeviceError, PoolLocked
from thinpoold.paths import PoolPaths

# What the daemon says it does.
DAEMON = "thinpoold"

_RETRY = 0.02


@dataclass(frozen=True)
class Holder:
    """Who wrote itself into the lock file last. `pid` is 0 when that cannot be told."""

    pid: int
    what: str


def acquire(paths: PoolPaths, what: str, wait: float = 0.0) -> int:
    """Take the pool's lock and return its file descriptor, which is not inherited.

    `what` names the taker in others' messages; `wait` is how many seconds to try for. Raises
    PoolLocked when another holds it, DeviceError when the lock file cannot be opened.
    """
    try:
        fd = poolfiles.open_file(paths.lock, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise DeviceError(f"{paths.lock}: {error.strerror}", error.errno or 0) from None
    try:
        _lock(fd, paths, time.monotonic() + wait)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n{what}\n".encode(), 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _lock(fd: int, paths: PoolPaths, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            # A daemon will not be gone in a moment.
            if time.monotonic() >= deadline or _is_daemon(holder(paths)):
                raise locked(paths) from None
            # flock cannot wait with a limit; the holder may be a command of a few milliseconds.
            time.sleep(_RETRY)


def holder(paths: PoolPaths) -> Holder:
    """Return who took the lock last, whether or not it still holds it."""
    try:
        pid, what, *_ = poolfiles.read(paths.lock).decode(errors="replace").split("\n")
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
    """Whether some process holds the lock right now."""
    try:
        fd = poolfiles.open_file(paths.lock, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def await_released(paths: PoolPaths) -> None:
    """Return once no process holds the lock. Raises DeviceError when it cannot be opened."""
    try:
        fd = poolfiles.open_file(paths.lock, os.O_RDWR)
    except FileNotFoundError:
        return
    except OSError as error:
        raise DeviceError(f"{paths.lock}: {error.strerror}", error.errno or 0) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)


def locked(paths: PoolPaths) -> PoolLocked:
    """Return the error that says who holds the pool."""
    who = holder(paths)
    if who.pid == 0:
        by = "by another process"
    else:
        by = f"by process {who.pid}" + (f" ({who.what})" if who.what else "")
    hint = "it runs already" if who.what == DAEMON else "wait for it to end"
    return PoolLocked(f"pool {paths.directory} is locked {by}; {hint}", who.pid)
