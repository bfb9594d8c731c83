"""Starting and stopping the daemon of a pool from another process.

The daemon inherits the writing end of a pipe and writes one line when it serves, or why it cannot;
when it dies first, the end of the pipe says so and the log says why. Nothing is timed.

Thread-safety: one thread at a time a pool.
"""

import json
import os
import select
import sys
from collections.abc import Sequence
from typing import Any

from thinpoold import lock, poolfiles
from thinpoold.control.client import ControlClient
from thinpoold.control.codes import one_line
from thinpoold.errors import ControlError, DeviceError, PoolNotRunning, ThinPoolError
from thinpoold.paths import PoolPaths
from thinpoold.runtime import READY_FD
from thinpoold.waiting import Waiting

# At a start, a longer log is put aside as thinpoold.log.1.
MAX_LOG = 4 << 20
_REASON_BYTES = 8192


def start(paths: PoolPaths, options: Sequence[str] = ()) -> dict[str, Any]:
    """Start the daemon in the background with `options` of thinpoold; return its run facts.

    Returns when the pool serves. Raises ThinPoolError, with the daemon's reason, when it cannot.
    """
    paths.require_pool()
    if lock.is_held(paths) and lock.holder(paths).what == lock.DAEMON:
        raise lock.locked(paths)
    log_fd = _open_log(paths)
    log_start = os.lseek(log_fd, 0, os.SEEK_END)
    ready, ready_child = os.pipe()
    try:
        pid = _spawn(paths, options, log_fd, ready_child)
        os.close(ready_child)
        ready_child = -1
        try:
            with Waiting(f"process {pid} to open the pool", f"until it serves; see {paths.log}"):
                message = _read_line(ready)
        except KeyboardInterrupt:
            os.kill(pid, 15)
            raise
        return _outcome(paths, pid, message, log_start)
    finally:
        for fd in (log_fd, ready, ready_child):
            if fd >= 0:
                os.close(fd)


def stop(paths: PoolPaths) -> dict[str, Any]:
    """Stop the daemon and wait until its process is gone; return what it answered.

    Raises PoolNotRunning when there is none, ControlError when one is there but cannot be asked.
    """
    try:
        client = ControlClient.connect(paths.control_socket, paths.trusted)
    except PoolNotRunning:
        if lock.is_held(paths):
            who = lock.holder(paths)
            raise ControlError(
                f"process {who.pid} ({who.what}) holds the pool but does not answer; try again, "
                f"or end it with 'kill {who.pid}'"
            ) from None
        raise
    with client:
        # Opened before the request, so that the process meant is the one waited for.
        pid = client.server_pid
        try:
            process = os.pidfd_open(pid)
        except ProcessLookupError:
            raise PoolNotRunning("the pool is not running: it has just stopped") from None
        try:
            answer: dict[str, Any] = client.call("stop")
            client.close()
            until = "until all is written out, and clients have had their answers"
            with Waiting(f"the pool's daemon, process {pid}, to end", until):
                select.select([process], [], [])
        finally:
            os.close(process)
    return answer


def _open_log(paths: PoolPaths) -> int:
    try:
        fd = poolfiles.open_file(paths.log, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        if os.fstat(fd).st_size > MAX_LOG:
            os.close(fd)
            poolfiles.move(paths.log, paths.old_log.name)
            fd = poolfiles.open_file(paths.log, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        return fd
    except OSError as error:
        raise DeviceError(f"{paths.log}: {error.strerror}", error.errno or 0) from None


def _spawn(paths: PoolPaths, options: Sequence[str], log_fd: int, ready: int) -> int:
    # -P: not what lies in the directory that the caller stands in.
    argv = [sys.executable, "-P", "-m", "thinpoold.daemon", "--foreground", *options]
    argv += ["--", str(paths.directory)]
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.posix_spawn(
            sys.executable,
            argv,
            {**os.environ, READY_FD: str(ready)},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, null, 0),
                (os.POSIX_SPAWN_DUP2, log_fd, 1),
                (os.POSIX_SPAWN_DUP2, log_fd, 2),
                # Onto itself: that takes close-on-exec away, in the child alone.
                (os.POSIX_SPAWN_DUP2, ready, ready),
            ],
            setsid=True,
        )
    finally:
        os.close(null)


def _read_line(fd: int) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(fd, 65536)
        if not piece:
            break
        line += piece
    return line


def _outcome(paths: PoolPaths, pid: int, message: bytes, log_start: int) -> dict[str, Any]:
    try:
        report = json.loads(message) if message else {}
    except ValueError:
        report = {}
    facts = report.get("ready")
    if isinstance(facts, dict):
        return facts
    _, status = os.waitpid(pid, 0)
    reason = report.get("error") or _last_words(paths, log_start)
    if reason:
        raise ThinPoolError(f"cannot start pool {paths.directory}: {reason}")
    raise ThinPoolError(
        f"cannot start pool {paths.directory}: {_ending(status)} and said nothing; see {paths.log}"
    )


def _ending(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"signal {-code} ended it" if code < 0 else f"it ended with status {code}"


def _last_words(paths: PoolPaths, log_start: int) -> str:
    """Return the last line that the daemon or nbdkit wrote since `log_start`, or ''."""
    with open(poolfiles.open_file(paths.log, os.O_RDONLY), "rb") as log:
        log.seek(0, os.SEEK_END)
        log.seek(max(log_start, log.tell() - _REASON_BYTES))
        lines = log.read().decode("utf-8", "replace").splitlines()
    said = [line.strip() for line in lines if line.strip()]
    for place in range(len(said) - 1, -1, -1):
        if said[place].startswith(("thinpoold: ", "nbdkit: ")):
            line = said[place].removeprefix("thinpoold: ").removeprefix("nbdkit: error: ")
            # nbdkit's own line names the script alone; what Python said stands before it.
            cause = said[place - 1] if place and "nbdkit: error:" in said[place] else ""
            return f"{line}: {cause}" if cause else line
    return said[-1] if said else ""


def report_failure(ready_fd: int, error: Exception) -> None:
    """Tell `start`, which waits at the other end of `ready_fd`, why there will be no daemon."""
    try:
        os.write(ready_fd, json.dumps({"error": one_line(error)}).encode() + b"\n")
    except OSError:
        pass
