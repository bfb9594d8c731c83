"""What the process of a running pool has besides the pool: control socket, lock, readiness, end.

`thinpoold` prepares all this and becomes nbdkit; the plugin finds it again here:

    runtime = from_environment()          first thing in after_fork
    pool = Pool.open(..., runtime.lock_fd)
    runtime.serve(pool)                   last thing in after_fork; runtime.fail(error) on failure
    runtime.close()                       first thing in cleanup

Invariants

1. Readiness is reported once, when control socket and pool both answer, or with the reason why not.
2. The end has one way in: SIGTERM, SIGINT or SIGQUIT, which `thinpoold` blocked before it became
   nbdkit, and which one thread waits for. nbdkit alone would wait for idle clients to speak before
   it ends; so the thread hangs up on the clients first. What they have asked for is carried out,
   and answered where nbdkit can be had to (see thinpoold.clients); a client that connects again
   repeats what was not answered, and none is told that it failed.
3. SIGHUP, which would have nbdkit end as well, has the settings read again. That may wait for a
   commit, so a thread of its own does it: the end waits for nothing. All other signals are left to
   the kernel: those that end a process end this one at once, as SIGKILL does.

Thread-safety: the four calls come from nbdkit's main thread. `run_facts` and `stop` may come from
any.
"""

import ctypes
import json
import logging
import os
import signal
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from thinpoold import buffers, clients, notify, poolfiles, ratelimit
from thinpoold.committer import Timer
from thinpoold.control.codes import one_line
from thinpoold.control.dispatch import Dispatcher
from thinpoold.control.server import ControlServer
from thinpoold.fastpath import Choice
from thinpoold.handshakes import Handshakes
from thinpoold.paths import CONTROL_SOCKET, NBD_SOCKET, PoolPaths
from thinpoold.sizes import format_size

log = logging.getLogger(__name__)

# One variable, one JSON document: what `thinpoold` leaves to the process it becomes.
ENVIRONMENT = "THINPOOLD_RUNTIME"
READY_FD = "THINPOOLD_READY_FD"
# Set when stderr goes to a program that keeps the log (`logkeeper`).
LOG_KEPT = "THINPOOLD_LOG_KEPT"

_LOOK_AGAIN = 0.1
# How long clients may take their answers at the end. Longer than a write that is slow; one that
# waits for space would wait for longer.
_FINISH_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_BY_HAND = Choice(None, "nbdkit was run by hand")

# nbdkit handles these four, each as its end.
_RELOAD = signal.SIGHUP
_OURS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, _RELOAD})


@dataclass
class Runtime:
    """The process's own side of a running pool. Without `run_dir`, nbdkit was run by hand."""

    lock_fd: int | None = None
    ready_fd: int | None = None
    run_dir: Path | None = None
    server_uri: str = ""
    run_files: list[str] = field(default_factory=list)
    # The C filter that nbdkit was given, or why it was given none.
    fastpath: Choice = _BY_HAND
    notifier: notify.Notifier = field(default_factory=notify.Notifier)
    pool: Any = None
    # The pool's, where `thinpoold` has said so.
    directory: Path | None = None
    # No volume is opened any more: its client would have to be hung up on.
    stopping: bool = False
    # How many of nbdkit's threads serve one connection; 0 when that is not known.
    threads: int = 0
    # Whether a program keeps the log, to which connections are to be introduced.
    log_kept: bool = False
    # Where nbdkit waits for clients.
    addresses: clients.Addresses = frozenset()
    # Whether nothing of the pool is to be written.
    read_only: bool = False
    _server: ControlServer | None = field(default=None, repr=False)
    _heart: notify.Heart | None = field(default=None, repr=False)
    _handshakes: Handshakes | None = field(default=None, repr=False)
    _reloader: Timer | None = field(default=None, repr=False)

    @property
    def answers_in_turn(self) -> bool:
        """Whether a connection's requests are answered one after the other."""
        return self.threads == 1

    @property
    def control_socket(self) -> Path | None:
        return self.run_dir / CONTROL_SOCKET if self.run_dir is not None else None

    def serve(self, pool: Any) -> None:
        """Open the control socket over `pool` and report readiness. Raises OSError."""
        self.pool = pool
        path = self.control_socket
        if path is None:
            return
        self._reloader = Timer("reload", self._reload, None)
        self._reloader.start()
        if NBD_SOCKET in self.run_files and path.with_name(NBD_SOCKET).exists():
            poolfiles.give(path.with_name(NBD_SOCKET))
        server = ControlServer(path, Dispatcher(self).answer)
        server.start()
        self._server = server
        self._report({"ready": self.run_facts()})
        core = pool.core
        self._heart = notify.Heart(
            self.notifier, lambda: core.ticks, self._status_line, core.motion, lambda: core.rounds
        )
        self._heart.start()
        ports = clients.ports(self.addresses)
        if ports:
            clients.keep_alive(ports)
            self._handshakes = Handshakes(ports, pool.openers.places)
            self._handshakes.start()

    def fail(self, error: BaseException) -> NoReturn:
        """Report that the pool cannot be served, and end the process with status 1.

        Raising instead would make nbdkit print a traceback.
        """
        reason = one_line(error)
        self._report({"error": reason})
        self.notifier.send(STATUS=reason)
        if os.environ.get("THINPOOL_DEBUG"):
            log.error("cannot start", exc_info=error)
        sys.stderr.write(f"thinpoold: {reason}\n")
        sys.stderr.flush()
        self._remove_run_files()
        os._exit(1)

    def close(self) -> None:
        """End the control socket; requests under way are answered first."""
        if self._heart is not None:
            self._heart.stop()
        if self._handshakes is not None:
            self._handshakes.stop()
        if self._reloader is not None:
            self._reloader.stop()
        if self._server is not None:
            self._server.close()
            self._server = None
        self._remove_run_files()

    def run_facts(self) -> dict[str, Any]:
        """Return what `status` says of the process."""
        path = self.control_socket
        return {
            "running": True,
            "pid": os.getpid(),
            "uri": self.server_uri,
            "control_socket": str(path) if path is not None else None,
            "fastpath_reason": self.fastpath.reason,
        }

    def stop(self) -> None:
        """Begin to shut down; returns at once."""
        os.kill(os.getpid(), signal.SIGTERM)

    def reload(self) -> None:
        """Have the settings read again, from now on; returns at once."""
        if self._reloader is not None:
            self._reloader.kick()

    def _reload(self) -> None:
        try:
            self.pool.reload()
        except Exception as error:
            log.error("the settings cannot be read again: %s", error)
        else:
            log.info("the settings were read again")

    def take_leave(self) -> None:
        """Have clients let go, before nbdkit knows that it ends."""
        ratelimit.ENDING.set()
        # Once it knows that it ends, nbdkit answers requests with an error, and a kernel that has
        # the volume mounted takes that for a bad disk. Hung up on before, it repeats them when we
        # are back.
        self.stopping = True
        try:
            if self.answers_in_turn:
                clients.finish_all(self.addresses, _FINISH_SECONDS)
            clients.hang_up(self.addresses)
        finally:
            if self.pool is not None:
                self.pool.core.modes.end()

    def _report(self, message: dict[str, Any]) -> None:
        fd, self.ready_fd = self.ready_fd, None
        if fd is None:
            return
        try:
            os.write(fd, json.dumps(message).encode() + b"\n")
        except OSError:
            # Whoever started the daemon did not wait for it.
            pass
        os.close(fd)

    def _status_line(self) -> str:
        from thinpoold import admin

        status = admin.status(self.pool)
        used, size = (format_size(status["data"][key]) for key in ("used", "size"))
        return (
            f"{status['mode']}: {used} of {size} used, {status['volumes']} volumes, "
            f"{status['clients']} clients"
        )

    def _remove_run_files(self) -> None:
        if self.run_dir is not None:
            for name in self.run_files:
                poolfiles.remove(self.run_dir / name)


def environment(
    lock_fd: int,
    ready_fd: int | None,
    paths: PoolPaths,
    uri: str,
    threads: int,
    run_files: list[str],
    choice: Choice = _BY_HAND,
    run_lock_fd: int | None = None,
) -> str:
    """Return the value of ENVIRONMENT that `from_environment` reads.

    `run_files` are the names in `run_dir` that go with this run; others' sockets are not.
    """
    return json.dumps(
        {
            "lock_fd": lock_fd,
            "ready_fd": ready_fd,
            "run_lock_fd": run_lock_fd,
            "read_only": paths.read_only,
            "directory": str(paths.directory),
            "run_dir": str(paths.run_dir),
            "uri": uri,
            "threads": threads,
            "run_files": run_files,
            "filter": str(choice.filter) if choice.filter is not None else None,
            "no_filter": choice.reason,
        }
    )


def from_environment() -> Runtime:
    """Return what `thinpoold` left for this process, and start to wait for signals."""
    buffers.forget_preloading()
    text = os.environ.pop(ENVIRONMENT, None)
    if text is None:
        return Runtime()
    left = json.loads(text)
    for fd in (left["lock_fd"], left["run_lock_fd"], left["ready_fd"]):
        if fd is not None:
            os.set_inheritable(fd, False)
    runtime = Runtime(
        left["lock_fd"],
        left["ready_fd"],
        Path(left["run_dir"]),
        left["uri"],
        left["run_files"],
        Choice(Path(left["filter"]) if left["filter"] else None, left["no_filter"]),
        notify.from_environment(),
    )
    runtime.directory = Path(left["directory"])
    runtime.threads = left["threads"]
    runtime.read_only = left["read_only"]
    runtime.log_kept = os.environ.pop(LOG_KEPT, "") == "1"
    # nbdkit listens already. Later there may be too many clients to look.
    runtime.addresses = clients.listening()
    _outlive_parent()
    signals = threading.Thread(target=_wait_for_end, args=(runtime,), name="signals", daemon=True)
    signals.start()
    return runtime


def block_signals() -> None:
    """Leave nbdkit's signals to the thread of `from_environment`. The mask survives exec."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _OURS)


def _outlive_parent() -> None:
    """Undo that nbdkit in the foreground ends with its parent, which is a command that ends soon.

    It asked the kernel for a signal; the thread that asked must take it back, and that is this one.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0)


def _wait_for_end(runtime: Runtime) -> None:
    while (number := signal.sigwait(_OURS)) == _RELOAD:
        runtime.reload()
    for step in (runtime.notifier.stopping, runtime.take_leave):
        try:
            step()
        except Exception as error:
            # Whatever fails, the process is to end: nobody else takes the signal.
            log.error("while it ends: %s", error)
    # Now to nbdkit's own handler, on this thread.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    signal.raise_signal(number)
    # nbdkit may be about to accept one more, so look again until there is none.
    while _any_left(runtime.addresses):
        threading.Event().wait(_LOOK_AGAIN)


def _any_left(addresses: clients.Addresses) -> bool:
    try:
        return clients.hang_up(addresses)
    except OSError as error:
        log.warning("cannot look for clients: %s", error)
        return True
