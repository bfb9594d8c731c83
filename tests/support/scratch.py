"""Where tests may keep their files when nothing they prove needs a disk: memory, if there is room.

Most of what a command's test waits for is fsync. A tmpfs keeps what those tests look at: sparse
files, punched holes, extended attributes. What it does not keep is anything past a power cut, so
the tests of that stay where pytest puts them.

Thread-safety: one thread.
"""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from thinpoold import fallocate

MEMORY = Path("/dev/shm")
# All that the tests of the verbs leave is far below this.
ROOM = 4 << 30
_PIECE = 1 << 20
# Behind it stands the process, so that what a killed run left is known for what it is.
_PREFIX = "thinpoold-test-"


class Scratch:
    """A directory of directories: what the tests use of pytest.TempPathFactory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def mktemp(self, basename: str, numbered: bool = True) -> Path:
        """Make a new directory and return its path."""
        if not numbered:
            path = self.directory / basename
            path.mkdir(mode=0o700)
            return path
        # Short: a Unix socket's path must fit.
        return Path(tempfile.mkdtemp(prefix=basename, dir=self.directory))


def memory(config: pytest.Config) -> Path | None:
    """A new directory in memory; None when the user chose a place, or it will not do here."""
    if config.getoption("basetemp") and not hasattr(config, "workerinput"):
        return None
    try:
        if shutil.disk_usage(MEMORY).free < ROOM:
            return None
        _sweep()
        directory = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=MEMORY))
    except OSError:
        return None
    if _will_do(directory / "probe"):
        return directory
    shutil.rmtree(directory)
    return None


def _sweep() -> None:
    """Remove what runs that were killed have left: memory is no place to forget files in."""
    for left in MEMORY.glob(f"{_PREFIX}*-*"):
        number = left.name.removeprefix(_PREFIX).partition("-")[0]
        if not Path("/proc", number).exists() and left.stat().st_uid == os.geteuid():
            shutil.rmtree(left, ignore_errors=True)


def _will_do(probe: Path) -> bool:
    """Whether a file there can have holes and an extended attribute."""
    with probe.open("w+b") as file:
        try:
            file.write(b"x" * _PIECE)
            file.flush()
            os.setxattr(file.fileno(), "user.thinpoold.probe", b"x")
            punched = fallocate.punch_hole(file.fileno(), 0, _PIECE)
            return punched and os.fstat(file.fileno()).st_blocks == 0
        except OSError:
            return False
        finally:
            probe.unlink()
