"""What a process holds, and that it lets go of it; and a client that must not notice anything.

Thread-safety: `Vitals` is a value; a `Bystander` is used by the thread that made it.
"""

import hashlib
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.pools import PoolRig
from tests.support.tools import PATIENCE

_LOOK_AGAIN = 0.1
_PIECE = 4096


def fuzz_seconds() -> float:
    """How long each of the random runs takes."""
    return float(os.environ.get("FUZZ_SECONDS", "20"))


@dataclass(frozen=True)
class Vitals:
    """Descriptors, threads, and resident bytes of a process."""

    fds: int
    threads: int
    resident: int

    @classmethod
    def of(cls, pid: int) -> Self:
        proc = Path(f"/proc/{pid}")
        status = dict(
            line.split(":", 1) for line in (proc / "status").read_text().splitlines() if ":" in line
        )
        return cls(
            len(os.listdir(proc / "fd")),
            int(status["Threads"]),
            int(status["VmRSS"].split()[0]) << 10,
        )


def settled(pid: int, before: Vitals, slack: int) -> Vitals:
    """The vitals of a process once they are back at `before`, but for `slack` bytes of memory.

    Fails when they do not come back.
    """
    deadline = time.monotonic() + PATIENCE / 3
    while True:
        now = Vitals.of(pid)
        back = now.fds <= before.fds and now.threads <= before.threads
        if back and now.resident <= before.resident + slack:
            return now
        assert time.monotonic() < deadline, f"{before} before, {now} after"
        time.sleep(_LOOK_AGAIN)


class Bystander:
    """A client that writes and reads back its own volume all the while, byte for byte.

    A second volume, which nobody opens meanwhile, must be the same at the end.
    """

    def __init__(self, rig: PoolRig, volume: str = "calm", sealed: str = "sealed") -> None:
        self._rig = rig
        self._sealed = sealed
        for name in (volume, sealed):
            if name not in rig.volumes():
                rig.create(name, "4M")
        with rig.connect(sealed) as client:
            client.write(0, os.urandom(1 << 20))
            client.flush()
        self._digest = self._read_sealed()
        self._client = rig.connect(volume)
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="bystander")
        self.rounds = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._client.close()
        if kind is None:
            if self._failure is not None:
                raise self._failure
            assert self._read_sealed() == self._digest

    def goes_on(self) -> None:
        """Wait until it has been served again. Fails when it is not."""
        seen, deadline = self.rounds, time.monotonic() + PATIENCE
        while self.rounds < seen + 2:
            assert self._failure is None, self._failure
            assert time.monotonic() < deadline, "the other client is not served"
            time.sleep(_LOOK_AGAIN)

    def _read_sealed(self) -> str:
        with self._rig.connect(self._sealed) as client:
            return hashlib.sha256(client.read(0, 4 << 20)).hexdigest()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                place = self.rounds % 512 * 2 * _PIECE
                data = self.rounds.to_bytes(8, "little") * (_PIECE // 8)
                self._client.write(place, data)
                if self.rounds % 64 == 0:
                    self._client.flush()
                assert self._client.read(place, _PIECE) == data
                assert self._client.read(place + _PIECE, 512) == bytes(512)
                self.rounds += 1
                # Not to measure, only to be there.
                self._stop.wait(0.002)
        except BaseException as error:
            self._failure = error
