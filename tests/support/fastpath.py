"""The C filter in tests: its builds, and the points at which one of them can be held up.

A `Hold` holds up a request between its look-up and its I/O, and hears when a closer waits for it:
through FIFOs, so that nothing is timed. plugins/fastpath/hooks.c is the other side.

Thread-safety: one thread a hold; `note` from any.
"""

import os
import select
import subprocess
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from tests.support.pools import PoolRig
from tests.support.tools import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "plugins" / "fastpath"
FILTER = SOURCES / "build" / "thinpoold-fastpath.so"

READ, WRITE = "r", "w"
WAITS = "c"
DONE = "d"


def build(directory: Path, variant: str) -> Path:
    """A build of the filter: hooks, ungated, thread or address. See the Makefile."""
    _make(directory, f"VARIANT={variant}")
    return directory / f"thinpoold-fastpath-{variant}.so"


def build_program(directory: Path, source: Path, variant: str) -> Path:
    """A program over the filter's sources, without nbdkit: "", thread, address or racing."""
    _make(directory, f"VARIANT={variant}", f"PROGRAM={source}", "program")
    return directory / (f"{source.stem}-{variant}" if variant else source.stem)


def _make(directory: Path, *words: str) -> None:
    command = ["make", "-C", str(SOURCES), f"BUILD={directory}", *words]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Hold:
    """Holds up requests of a filter that was built with hooks."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        for name in ("reached", "go"):
            os.mkfifo(directory / name)
        # Both ends: nobody then waits for the other to open it.
        self._reached = os.open(directory / "reached", os.O_RDWR)
        self._go = os.open(directory / "go", os.O_RDWR)

    def take(self, rig: PoolRig, filter_: Path) -> None:
        """Have the rig's next daemon use this."""
        rig.env["THINPOOL_FASTPATH"] = str(filter_)
        rig.env["FASTPATH_TEST_HOOKS"] = str(self.directory)

    def arm(self, kind: str) -> None:
        """Have the next request of a kind, READ or WRITE, held up."""
        (self.directory / f"armed-{kind}").touch()

    def next(self) -> str:
        """Wait for what happens next: a request is held up, a closer waits, something is done."""
        ready, _, _ = select.select([self._reached], [], [], PATIENCE)
        assert ready, "nothing has happened"
        return os.read(self._reached, 1).decode()

    def note(self, future: "Future[Any]") -> None:
        """Have `next` return DONE when a future is done."""
        future.add_done_callback(lambda _: os.write(self._reached, DONE.encode()))

    def go(self) -> None:
        """Let the request that is held up go on."""
        os.write(self._go, b"g")

    def is_reached(self, kind: str, request: Callable[[], object]) -> bool:
        """Make a request; say whether it came as far as the hook."""
        self.arm(kind)
        # Ahead of time: it is not to be held up.
        self.go()
        request()
        armed = self.directory / f"armed-{kind}"
        if armed.exists():
            armed.unlink()
            os.read(self._go, 1)
            return False
        assert self.next() == kind
        return True

    def close(self) -> None:
        os.close(self._reached)
        os.close(self._go)
