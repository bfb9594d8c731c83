"""Starts, kills and reaches the stand-in of `plugin.py`, with the rigs' interface to a pool."""

import os
import select
import signal
import subprocess
from pathlib import Path

from tests.support.client import NbdClient
from tests.support.rpc import Rpc
from tests.support.tools import PATIENCE, program

PLUGIN = Path(__file__).with_name("plugin.py")


class FakeRig:
    """One directory of plain files and, at times, an nbdkit over it."""

    def __init__(self, directory: Path, fault: str = "") -> None:
        self.directory = directory
        self.fault = fault
        self._server: subprocess.Popen[bytes] | None = None
        directory.mkdir()

    @property
    def socket(self) -> str:
        return str(self.directory / "nbd.sock")

    @property
    def _control(self) -> Path:
        return self.directory / "control.sock"

    def start(self) -> None:
        for left in (Path(self.socket), self._control):
            left.unlink(missing_ok=True)
        # nbdkit writes the pid file once it listens: the pipe says so without polling.
        readable, writable = os.pipe()
        try:
            self._server = subprocess.Popen(
                [
                    program("nbdkit"),
                    "--foreground",
                    f"--unix={self.socket}",
                    f"--pidfile=/proc/self/fd/{writable}",
                    "python",
                    str(PLUGIN),
                    f"dir={self.directory}",
                    f"control={self._control}",
                    f"fault={self.fault}",
                ],
                pass_fds=[writable],
                stdin=subprocess.DEVNULL,
            )
        finally:
            os.close(writable)
        try:
            ready, _, _ = select.select([readable], [], [], PATIENCE)
            assert ready, "nbdkit did not start"
            assert os.read(readable, 100), "nbdkit ended before it listened"
        finally:
            os.close(readable)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def start_and_kill(self, seconds: float) -> None:
        """Nothing happens in the stand-in's start."""

    def stop(self) -> None:
        """Ends it with nothing lost."""
        with self.rpc() as rpc:
            names = [entry["name"] for entry in rpc.call("list")["volumes"]]
        for name in names:
            with self.connect(name) as client:
                client.flush()
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        assert self._server is not None
        self._server.send_signal(number)
        self._server.wait(PATIENCE)
        self._server = None

    @property
    def pid(self) -> int:
        assert self._server is not None
        return self._server.pid

    @property
    def running(self) -> bool:
        return self._server is not None

    def connect(self, volume: str, *, strict: bool = True) -> NbdClient:
        return NbdClient(self.socket, volume, strict=strict)

    def rpc(self) -> Rpc:
        return Rpc(self._control)

    def inspect(self) -> list[str]:
        """There is no metadata to check."""
        return []

    def log_tail(self, count: int = 40) -> str:
        return ""
