"""The machine as the checks see it: its programs, its files below a root, its limits.

A test gives another root and another search path.
"""

import os
import resource
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

_PATIENCE = 30.0
# Debian keeps nbd-client and blkid there, which a user's PATH may lack.
_SYSTEM = ("/usr/sbin", "/sbin")


def _search_path() -> str:
    from thinpoold.daemon import search_path

    return os.pathsep.join((search_path(), *_SYSTEM))


def _limits() -> dict[str, int]:
    return {
        # The hard one: the daemon goes up to it.
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        "address space": resource.getrlimit(resource.RLIMIT_AS)[0],
    }


@dataclass(frozen=True)
class Machine:
    """`path` is where programs are sought, `root` what stands for `/`.

    `limits` are those that a daemon would have that this process starts.
    A limit of resource.RLIM_INFINITY, which is negative, is none.
    """

    path: str = field(default_factory=_search_path)
    root: Path = Path("/")
    limits: dict[str, int] = field(default_factory=_limits)

    def program(self, *names: str) -> str | None:
        """Return the path of the first of these programs that is installed."""
        for name in names:
            found = shutil.which(name, path=self.path)
            if found is not None:
                return found
        return None

    def run(self, *command: str) -> tuple[int, str]:
        """Run a program; return its exit status, and what it said on both streams.

        -1 stands for one that could not be run, or did not end.
        """
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PATH": self.path, "LC_ALL": "C"},
                timeout=_PATIENCE,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return -1, str(error)
        return done.returncode, done.stdout.decode("utf-8", "replace")

    def file(self, path: str) -> Path:
        """Return a path below the root."""
        return self.root / path.lstrip("/")

    def text(self, path: str) -> str:
        """Return what a small file holds, '' for one that cannot be read."""
        try:
            return self.file(path).read_text("utf-8", "replace").strip()
        except OSError:
            return ""
