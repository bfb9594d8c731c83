"""Child processes that serve, each on a Unix socket of its own, each ended by its process id."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

START_TIMEOUT = 30.0  # seconds


class Server:
    """A child process that listens on a Unix socket.

    Raises RuntimeError when it does not start.
    """

    def __init__(self, command: list[str], path: Path) -> None:
        path.unlink(missing_ok=True)
        self.uri = f"nbd+unix:///?socket={path}"
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        try:
            self._await(path)
        except BaseException:
            self.stop()
            raise

    def _await(self, path: Path) -> None:
        # A whole handshake: to a client that only connects and goes the servers would object.
        probe = ["nbdinfo", "--size", self.uri]
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline and self._process.poll() is None:
            if path.exists():
                answer = subprocess.run(probe, check=False, capture_output=True)
                if answer.returncode == 0:
                    return
            time.sleep(0.01)
        raise RuntimeError(f"{self._process.args!r} did not start")

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(START_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def processor_seconds(pid: int) -> float:
    """What all the process's threads have used of the processors, for itself and in the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def private_memory(pid: int) -> int:
    """Bytes that would be free without this process: not what it shares, nor the page cache."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    fields = dict(line.split(":", 1) for line in text.splitlines()[1:])
    return sum(int(fields[key].split()[0]) << 10 for key in ("Private_Clean", "Private_Dirty"))
