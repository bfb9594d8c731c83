"""Starting and stopping the daemon of a pool from another process.

The daemon inherits the writing end of a pipe and writes one line when it serves, or why it cannot;
when it dies first, the end of the pipe says so and the log says why. Its stderr is another pipe,
to the program that keeps its log (`logkeeper`), which ends when the daemon does.

Thread-safety: one thread at a time a pool.
"""

import fcntl
import json
import os
import re
import select
import sys
from collections.abc import Callable, Sequence
from typing import Any

from thinpoold import lock, logkeeper, poolfiles
from thinpoold.control.client import ControlClient
from thinpoold.control.codes import one_line
from thinpoold.errors import ControlError, DeviceError, PoolNotRunning, ThinPoolError
from thinpoold.paths import PoolPaths
from thinpoold.runtime import LOG_KEPT, READY_FD
from thinpoold.waiting import Waiting

_REASON_BYTES = 8192
# The log's pipe: what the daemon may say in one go. More is refused to some users.
_PIPE_BYTES = 1 << 20
# The program that keeps the log of a daemon that has just died is through with it at once.
_LOG_SECONDS = 10.0
_TIME = re.compile(r"^[-\d]{10} [:\d]{8},\d{3} ")


def start(paths: PoolPaths, options: Sequence[str] = ()) -> dict[str, Any]:
    """Start the daemon in the background with `options` of thinpoold; return its run facts.

    Returns when the pool serves. Raises ThinPoolError, with the daemon's reason, when it cannot.
    """
    paths.require_pool()
    if lock.is_held(paths) and lock.holder(paths).what == lock.DAEMON:
        raise lock.locked(paths)
    log_start = _log_size(paths)
    ready, ready_child = os.pipe()
    log_fd = -1
    try:
        keeper, log_fd = _spawn_keeper(paths)
        pid = _spawn(paths, options, log_fd, ready_child)
        for fd in (ready_child, log_fd):
            os.close(fd)
        ready_child = log_fd = -1
        try:
            with Waiting(f"process {pid} to open the pool", f"until it serves; see {paths.log}"):
                message = _read_line(ready)
        except KeyboardInterrupt:
            os.kill(pid, 15)
            raise
        return _outcome(paths, pid, keeper, message, log_start)
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
        pid = client.server_pid
        if not pid:
            return _stop(client, "the pool's daemon", lambda: lock.await_released(paths))
        # Opened before the request, so that the process meant is the one waited for.
        try:
            process = os.pidfd_open(pid)
        except ProcessLookupError:
            raise PoolNotRunning("the pool is not running: it has just stopped") from None
        try:
            daemon = f"the pool's daemon, process {pid},"
            return _stop(client, daemon, lambda: select.select([process], [], []))
        finally:
            os.close(process)


def _stop(client: ControlClient, who: str, await_end: Callable[[], object]) -> dict[str, Any]:
    """Ask the daemon to end, and wait for that; return what it answered."""
    answer: dict[str, Any] = client.call("stop")
    client.close()
    with Waiting(f"{who} to end", "until all is written out, and clients have had their answers"):
        await_end()
    return answer


def _log_size(paths: PoolPaths) -> int:
    """Return how long the log is. Raises DeviceError if none can be written."""
    try:
        fd = poolfiles.open_file(paths.log, os.O_RDWR | os.O_APPEND | os.O_CREAT)
    except OSError as error:
        raise DeviceError(f"{paths.log}: {error.strerror}", error.errno or 0) from None
    try:
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


def _spawn_keeper(paths: PoolPaths) -> tuple[int, int]:
    """Start the program that keeps the log; return its process id, and where to write."""
    pipe, log_fd = os.pipe()
    try:
        fcntl.fcntl(log_fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    except OSError:
        pass
    # Whoever says something never waits for it to be written.
    os.set_blocking(log_fd, False)
    # -I and -S: it needs nothing but the standard library, and starts at once.
    argv = [sys.executable, "-I", "-S", logkeeper.__file__, str(paths.log), str(paths.old_log)]
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        actions = [
            (os.POSIX_SPAWN_DUP2, pipe, 0),
            (os.POSIX_SPAWN_DUP2, null, 1),
            (os.POSIX_SPAWN_DUP2, null, 2),
        ]
        return (
            os.posix_spawn(sys.executable, argv, os.environ, file_actions=actions, setsid=True),
            log_fd,
        )
    finally:
        os.close(pipe)
        os.close(null)


def _spawn(paths: PoolPaths, options: Sequence[str], log_fd: int, ready: int) -> int:
    # -P: not what lies in the directory that the caller stands in.
    argv = [sys.executable, "-P", "-m", "thinpoold.daemon", "--foreground", *options]
    argv += ["--", str(paths.directory)]
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.posix_spawn(
            sys.executable,
            argv,
            {**os.environ, READY_FD: str(ready), LOG_KEPT: "1"},
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


def _outcome(
    paths: PoolPaths, pid: int, keeper: int, message: bytes, log_start: int
) -> dict[str, Any]:
    try:
        report = json.loads(message) if message else {}
    except ValueError:
        report = {}
    facts = report.get("ready")
    if isinstance(facts, dict):
        return facts
    _, status = os.waitpid(pid, 0)
    _await_end(keeper, _LOG_SECONDS)
    reason = report.get("error") or _last_words(paths, log_start)
    if reason:
        raise ThinPoolError(f"cannot start pool {paths.directory}: {reason}")
    raise ThinPoolError(
        f"cannot start pool {paths.directory}: {_ending(status)} and said nothing; see {paths.log}"
    )


def _await_end(pid: int, seconds: float) -> None:
    """Wait for a child to end, for so long at most."""
    process = os.pidfd_open(pid)
    try:
        if select.select([process], [], [], seconds)[0]:
            os.waitpid(pid, 0)
    finally:
        os.close(process)


def _ending(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"signal {-code} ended it" if code < 0 else f"it ended with status {code}"


def _last_words(paths: PoolPaths, log_start: int) -> str:
    """Return the last line that the daemon or nbdkit wrote since `log_start`, or ''."""
    with open(poolfiles.open_file(paths.log, os.O_RDONLY), "rb") as log:
        log.seek(0, os.SEEK_END)
        log.seek(max(log_start, log.tell() - _REASON_BYTES))
        lines = log.read().decode("utf-8", "replace").splitlines()
    said = [_TIME.sub("", line).strip() for line in lines if line.strip()]
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
