"""The daemon as a service manager runs it: in the foreground, with what it is handed."""

import fcntl
import os
import select
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from tests.support.pools import BIN, PoolRig
from tests.support.tools import PATIENCE

# Where copies of the sockets lie until the shell puts them where they belong.
_HIGH = 200
_FIRST = 3


class Daemon:
    """A daemon started by the test; what it writes to stderr can be waited for."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        self.process = process
        self.stderr: IO[bytes] = process.stderr

    @property
    def pid(self) -> int:
        return self.process.pid

    def terminate(self) -> int:
        """SIGTERM, and the exit status."""
        self.process.terminate()
        return self.process.wait(PATIENCE)

    def says(self, words: str) -> None:
        """Reads stderr up to a line with `words`."""
        for line in self.stderr:
            if words in line.decode(errors="replace"):
                return
        raise AssertionError(f"it ended without saying {words!r}")


@contextmanager
def daemon(
    rig: PoolRig,
    *words: str,
    sockets: Sequence[socket.socket] = (),
    prefix: Sequence[str] = (),
    **variables: str,
) -> Iterator[Daemon]:
    """Starts `thinpoold --foreground`, with sockets as a socket unit hands them over."""
    argv = [*prefix, str(BIN / "thinpoold"), "--foreground", str(rig.directory), *words]
    with ExitStack() as copies:
        fds = [fcntl.fcntl(given.fileno(), fcntl.F_DUPFD_CLOEXEC, _HIGH) for given in sockets]
        for fd in fds:
            copies.callback(os.close, fd)
        if sockets:
            # A shell becomes the daemon, and so knows its process id beforehand.
            moves = " ".join(f"{_FIRST + at}<&{fd} {fd}<&-" for at, fd in enumerate(fds))
            script = f'exec {moves}; export LISTEN_PID=$$ LISTEN_FDS={len(fds)}; exec "$@"'
            argv = ["bash", "-c", script, "bash", *argv]
        environment = {**rig.env, **variables}
        process = subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE, pass_fds=fds)
    with process:
        try:
            yield Daemon(process)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)


def listener(path: Path) -> socket.socket:
    """A listening socket, as a socket unit makes it."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(path))
    made.listen()
    return made


class Manager:
    """The socket that a service manager reads notifications from."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(PATIENCE)

    def receive(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.socket.recv(65536).decode().split("\n"))

    def expect(self, **fields: str) -> dict[str, str]:
        """Receives up to a message that has these fields."""
        while True:
            message = self.receive()
            if fields.items() <= message.items():
                return message

    def waiting(self) -> list[dict[str, str]]:
        """All that has come so far."""
        messages = []
        while select.select([self.socket], [], [], 0)[0]:
            messages.append(self.receive())
        return messages
