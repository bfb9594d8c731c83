"""Small file systems, so that a disk is full when a test says so. Needs root."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.tools import run


class SmallDisk:
    """A tmpfs of a stated size, mounted on `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def resize(self, size: str) -> None:
        """Gives the file system another size; `size` as mount takes it."""
        run("mount", "-o", f"remount,size={size}", str(self.path))

    def free(self) -> int:
        """Bytes that may still be written."""
        facts = os.statvfs(self.path)
        return facts.f_bavail * facts.f_frsize


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[SmallDisk]:
    """Mounts a tmpfs for as long as the context lasts; skips where that is not allowed."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system of a given size needs root")
    path.mkdir(parents=True)
    done = run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path), check=False)
    if done.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs here: {done.stderr.strip()}")
    try:
        yield SmallDisk(path)
    finally:
        run("umount", "--lazy", str(path))
