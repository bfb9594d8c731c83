"""Places where nothing can be written, and what a directory holds, to be compared.

Thread-safety: one thread.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.support.tools import run

# A user of whom there is nothing else here.
SOMEBODY = 61_234


def contents(directory: Path) -> dict[str, tuple[int | str, ...]]:
    """All that is in a directory: names, modes, owners, sizes, times of change, and bytes."""
    found: dict[str, tuple[int | str, ...]] = {}
    for path in sorted((directory, *directory.rglob("*"))):
        facts = path.lstat()
        octets = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path.relative_to(directory))] = (
            *(facts.st_mode, facts.st_uid, facts.st_size, facts.st_mtime_ns, octets),
        )
    return found


@contextmanager
def mounted(directory: Path, scratch: Path) -> Iterator[Path]:
    """A read-only mount of a directory, whose file system may be written elsewhere."""
    with _mounted(scratch, "--bind", str(directory)):
        run("mount", "-o", "remount,bind,ro", str(scratch))
        yield scratch


@contextmanager
def packed(directory: Path, scratch: Path) -> Iterator[Path]:
    """A copy of a directory in a squashfs."""
    image = scratch.with_suffix(".squashfs")
    run("mksquashfs", str(directory), str(image), "-quiet", "-no-progress", "-comp", "lzo")
    with _mounted(scratch, "-t", "squashfs", "-o", "loop,ro", str(image)):
        yield scratch


@contextmanager
def forbidden(directory: Path, scratch: Path) -> Iterator[Path]:
    """A directory that its owner has no right to write, nor its files; root acts as the owner."""
    everything = [directory, *directory.rglob("*")]
    before = [(path, path.lstat()) for path in everything if not path.is_socket()]
    for path, facts in before:
        if os.geteuid() == 0:
            os.chown(path, SOMEBODY, SOMEBODY)
        path.chmod(facts.st_mode & 0o555)
    try:
        yield directory
    finally:
        for path, facts in before:
            os.chown(path, facts.st_uid, facts.st_gid)
            path.chmod(facts.st_mode & 0o7777)


PLACES: dict[str, Callable[[Path, Path], AbstractContextManager[Path]]] = {
    "mounted": mounted,
    "packed": packed,
    "forbidden": forbidden,
}


@contextmanager
def _mounted(point: Path, *words: str) -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    point.mkdir()
    done = run("mount", *words, str(point), check=False)
    if done.returncode != 0:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    try:
        yield
    finally:
        run("umount", "--lazy", str(point))
