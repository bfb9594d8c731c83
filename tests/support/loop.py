"""Block devices for tests: loop devices over sparse files, which need root.

Thread-safety: one thread.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.tools import run


class Loops:
    """Loop devices; `detach_all` at the end."""

    def __init__(self) -> None:
        self._attached: list[str] = []

    def attach(self, backing: Path, *options: str) -> Path:
        """A block device over a file, with options of losetup; skips where there can be none."""
        if os.geteuid() != 0:
            pytest.skip("a loop device needs root")
        done = run("losetup", "--find", "--show", *options, str(backing), check=False)
        if done.returncode:
            pytest.skip(f"no loop device here: {done.stderr.strip()}")
        self._attached.append(done.stdout.strip())
        return Path(self._attached[-1])

    def make(self, backing: Path, size: int) -> Path:
        """A block device over a new sparse file."""
        backing.touch()
        os.truncate(backing, size)
        return self.attach(backing)

    @staticmethod
    def resize(device: Path, backing: Path, size: int) -> None:
        """Make a device larger or smaller."""
        os.truncate(backing, size)
        run("losetup", "--set-capacity", str(device))

    def detach_all(self) -> None:
        for device in self._attached:
            run("losetup", "--detach", device)


@contextmanager
def loop_devices() -> Iterator[Loops]:
    """Loop devices that are gone at the end, whatever happens."""
    loops = Loops()
    try:
        yield loops
    finally:
        loops.detach_all()
