"""A block device of the kernel's that fails for a while when told to: loop over FUSE over nbdkit.

    /dev/loopN ── DIR/dev ── nbdfuse ── nbdkit python plugin.py ── IMAGE

What the daemon writes goes through the kernel's page cache, so it is the kernel that meets the
error, and tells of it as it does for any disk.

Thread-safety: one thread.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.tools import PATIENCE, program, run

PLUGIN = Path(__file__).with_name("plugin.py")
KINDS = ("pread", "pwrite", "flush")


class Disk:
    """A disk that works, but for what `fail` says; `device` is its block device."""

    def __init__(self, image: Path, device: str) -> None:
        self.image = image
        self.device = device

    def fail(self, *kinds: str) -> None:
        """From now on requests of these kinds fail."""
        for kind in kinds:
            self._switch(kind).touch()

    def hang(self) -> None:
        """From now on flushes wait."""
        self._switch("hang").touch()

    def heal(self) -> None:
        """All is well from now on."""
        for kind in (*KINDS, "hang"):
            self._switch(kind).unlink(missing_ok=True)

    @property
    def ill(self) -> bool:
        return any(self._switch(kind).exists() for kind in (*KINDS, "hang"))

    def forget(self) -> None:
        """Drop what the page cache has of it, so that what is read next is what it holds."""
        run("blockdev", "--flushbufs", self.device)

    def _switch(self, kind: str) -> Path:
        return self.image.with_name(f"{self.image.name}.{kind}")


@contextmanager
def failing_disk(directory: Path, size: int) -> Iterator[Disk]:
    """A disk of `size` bytes for as long as the context lasts; skips where there can be none."""
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("a failing disk needs root, FUSE and loop devices")
    directory.mkdir(parents=True)
    image, file = directory / "image", directory / "dev"
    for path, length in ((image, size), (file, 0)):
        with path.open("wb") as made:
            made.truncate(length)
    server = [program("nbdkit"), "-s", "--exit-with-parent", "python", str(PLUGIN)]
    # nbdkit's own Python, not the one of the tests.
    environment = {**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    command = [program("nbdfuse"), str(file), "--command", *server, f"image={image}"]
    # A line for each request that fails goes to the log: a pipe that nobody reads would fill, and
    # with it the disk would hang.
    with (
        (directory / "log").open("wb") as log,
        subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stderr=log) as fuse,
    ):
        disk: Disk | None = None
        try:
            _await(lambda: file.stat().st_size == size, "nbdfuse serves nothing", fuse)
            device = run("losetup", "--find", "--show", str(file)).stdout.strip()
            disk = Disk(image, device)
            yield disk
        finally:
            if disk is not None:
                # What hangs must go on, or nothing of this ever ends.
                disk.heal()
                run("losetup", "--detach", disk.device, check=False)
            _unmount(file)
            try:
                fuse.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                # A test that failed has left something open on it.
                fuse.kill()


@contextmanager
def file_system(disk: Disk, place: Path) -> Iterator[Path]:
    """ext4 on the disk, mounted; without a journal, whose failure would take it out of use."""
    run("mkfs.ext4", "-q", "-O", "^has_journal", "-E", "lazy_itable_init=0", disk.device)
    place.mkdir(parents=True)
    run("mount", "-o", "errors=continue", disk.device, str(place))
    try:
        yield place
    finally:
        disk.heal()
        _unmount(place)


def _unmount(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while os.path.ismount(path):
        if run("umount", str(path), check=False).returncode and time.monotonic() > deadline:
            run("umount", "--lazy", str(path))
            return


def _await(true: object, complaint: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    assert callable(true)
    while not true():
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(complaint)
        os.sched_yield()
