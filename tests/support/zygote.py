"""Runs `thinpool` without starting Python anew: a process that has it loaded forks for each.

What a command costs is mostly the start of its interpreter, and tests run thousands. A command that
is forked is what the program is once its modules are loaded: it has its own argv, environment,
working directory and standard streams, and ends as any process of Python's does. Where the start
itself is in question, or who starts it (a prefix, another user), tests run the program.

    test ── Unix socket ── zygote ── fork: monitor ── fork: the command
              argv, environment, cwd, three descriptors ->    <- its exit status

Invariants:
1. The zygote runs none of the product's code but its imports, so what it forks is as new.
2. It ends when the process that started it does, and a command when its test gives up waiting.

Thread-safety: any thread may call `Zygote.run`.
"""

import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import thinpoold
from thinpoold.cli import main as thinpool

# What only nbdkit can load.
_NOT_LOADED: Final = "thinpoold.nbd"
_LENGTH: Final = struct.Struct("!I")
_LARGEST: Final = 1 << 20


# --- in the test's process ------------------------------------------------------------------------


class Zygote:
    """A zygote of this process's own; `program` is what its commands are called."""

    def __init__(self, program: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="zygote-")
        self._path = str(Path(self._folder.name) / "s")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(self._path)
        listener.listen(64)
        # Held open by this process alone: its end tells the zygote.
        alive, self._alive = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(program), str(listener.fileno()), str(alive)],
            pass_fds=(listener.fileno(), alive),
            stdin=subprocess.DEVNULL,
            cwd=Path(__file__).parents[2],
        )
        os.close(alive)
        listener.close()

    def run(
        self,
        argv: list[str],
        *,
        env: Mapping[str, str],
        timeout: float,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end with nothing to read, and capture what it says.

        Raises subprocess.TimeoutExpired.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(self._path)
            out, err = os.pipe(), os.pipe()
            nothing = os.open(os.devnull, os.O_RDONLY)
            theirs = [nothing, out[1], err[1]]
            request = json.dumps([argv, dict(env), os.getcwd()]).encode()
            try:
                socket.send_fds(connection, [_LENGTH.pack(len(request))], theirs)
            finally:
                for fd in theirs:
                    os.close(fd)
            connection.sendall(request)
            return _to_the_end(["thinpool", *argv], connection, out[0], err[0], timeout)


def _to_the_end(
    argv: list[str], connection: socket.socket, out: int, err: int, timeout: float
) -> subprocess.CompletedProcess[str]:
    """What a command says until its streams are closed, and how it ends."""
    said = {out: bytearray(), err: bytearray()}
    poll = select.poll()
    for fd in said:
        poll.register(fd, select.POLLIN)
    left = set(said)
    try:
        while left:
            ready = poll.poll(timeout * 1000)
            if not ready:
                raise subprocess.TimeoutExpired(argv, timeout)
            for fd, _ in ready:
                data = os.read(fd, 1 << 16)
                said[fd] += data
                if not data:
                    poll.unregister(fd)
                    left.discard(fd)
        connection.settimeout(timeout)
        (status,) = _LENGTH.unpack(connection.recv(_LENGTH.size, socket.MSG_WAITALL))
    except TimeoutError:
        raise subprocess.TimeoutExpired(argv, timeout) from None
    finally:
        for fd in said:
            os.close(fd)
    code = os.waitstatus_to_exitcode(status)
    return subprocess.CompletedProcess(argv, code, said[out].decode(), said[err].decode())


# --- in the zygote --------------------------------------------------------------------------------


def serve(program: str, listener: socket.socket, alive: int) -> bool:
    """Fork for each command until the test's process ends; whether this is a command."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    poll.register(alive, select.POLLIN)
    while True:
        if any(fd == alive for fd, _ in poll.poll()):
            return False
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            os.close(alive)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            monitor(program, connection)
            return True
        connection.close()


def monitor(program: str, connection: socket.socket) -> None:
    """Fork one command, tell how it ended, and end; return in the command alone."""
    head, fds, _, _ = socket.recv_fds(connection, _LENGTH.size, 3)
    (length,) = _LENGTH.unpack(head)
    assert length <= _LARGEST
    argv, environment, folder = json.loads(connection.recv(length, socket.MSG_WAITALL))
    child = os.fork()
    if child == 0:
        connection.close()
        for number, fd in enumerate(fds):
            os.dup2(fd, number)
            os.close(fd)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        # As Python makes them when it starts.
        sys.stdin = _stream(0, "r")
        sys.stdout = _stream(1, "w")
        sys.stderr = _stream(2, "w", buffering=1, errors="backslashreplace")
        sys.argv = [program, *argv]
        return
    for fd in (0, 1, 2, *fds):
        os.close(fd)
    ended = os.pidfd_open(child)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    # Nothing more is said here: readable, it has been closed.
    poll.register(connection, select.POLLIN)
    if all(fd != ended for fd, _ in poll.poll()):
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    try:
        connection.sendall(_LENGTH.pack(status))
    except BrokenPipeError:
        pass
    os._exit(0)


def _stream(fd: int, mode: str, **more: Any) -> Any:
    return open(fd, mode, closefd=False, **more)


def main() -> None:
    """The zygote: python -m tests.support.zygote PROGRAM LISTENER ALIVE"""
    for module in pkgutil.walk_packages(thinpoold.__path__, "thinpoold."):
        if module.name != _NOT_LOADED:
            importlib.import_module(module.name)
    program, listener, alive = sys.argv[1:]
    listening = socket.socket(fileno=int(listener))
    if serve(program, listening, int(alive)):
        thinpool()


if __name__ == "__main__":
    main()
