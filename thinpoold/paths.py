"""Where a pool's files lie: its directory, and the directory of its sockets while it runs.

    POOL/                 the pool: metadata.lmdb, data, recent-0 and -1, ledger, lock, ...
    RUN/                  0700: nbd.sock, control.sock (0600), thinpoold.pid

A daemon that serves the pool read-only has all its files in RUN, which is never in POOL then: its
log, too, and a lock, held while it lives.

Invariants

1. The paths follow from the pool's real directory, the user and the environment, and from whether a
   daemon of this user serves the pool read-only: so every command finds the sockets that the daemon
   made without asking anything else. They are without symbolic links.
2. A socket's path always fits the 107 bytes that the kernel gives it.

Nothing here touches the disk but to look; safe from any thread.
"""

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

from thinpoold import poolfiles
from thinpoold.errors import DeviceError, NoSuchPool
from thinpoold.names import check_name

MAX_SOCKET_PATH = 107
_ANYBODYS = Path(os.path.realpath("/tmp"))
METADATA_FILE = "metadata.lmdb"
NBD_SOCKET = "nbd.sock"
CONTROL_SOCKET = "control.sock"
PID_FILE = "thinpoold.pid"
# All that a run leaves in its directory; stale when the pool is not locked.
RUN_FILES = (NBD_SOCKET, CONTROL_SOCKET, PID_FILE)


@dataclass(frozen=True)
class PoolPaths:
    """The paths of the pool in `directory`, which is absolute and without symbolic links."""

    directory: Path
    run_dir: Path
    # Whether they are those of a daemon that serves the pool read-only.
    read_only: bool = False

    def for_read_only(self) -> "PoolPaths":
        """Return the paths of a daemon that serves the pool read-only."""
        run_dir = self.run_dir
        if run_dir.parent == self.directory:
            run_dir = _short_run_dir(self.directory)
        return replace(self, run_dir=run_dir, read_only=True)

    @property
    def name(self) -> str:
        """What the pool is called when nobody named it."""
        return self.directory.name

    @property
    def metadata(self) -> Path:
        return self.directory / METADATA_FILE

    @property
    def data(self) -> Path:
        """The data file that `init` makes when it is given no other."""
        return self.directory / "data"

    @property
    def lock(self) -> Path:
        return self.directory / "lock"

    @property
    def recent(self) -> tuple[Path, Path]:
        """Where changes are noted that no commit holds yet."""
        return self.directory / "recent-0", self.directory / "recent-1"

    @property
    def ledger(self) -> Path:
        """Where it is noted who has what open, and what is lost."""
        return self.directory / "ledger"

    @property
    def losses(self) -> Path:
        """What is known of what is lost."""
        return self.directory / "losses.json"

    @property
    def log(self) -> Path:
        return (self.run_dir if self.read_only else self.directory) / "thinpoold.log"

    @property
    def old_log(self) -> Path:
        """Where the log goes that has become long."""
        return self.log.with_name(self.log.name + ".1")

    @property
    def files(self) -> tuple[Path, ...]:
        """All that the pool keeps, or makes while it runs, but a data file somewhere else."""
        # LMDB names its lock file after the other.
        readers = readers_file(self.metadata)
        return (
            *(self.metadata, readers, self.data, *self.recent, self.ledger, self.losses),
            *(self.lock, self.log, self.old_log),
            *(self.run_dir / name for name in RUN_FILES),
            self.run_lock,
        )

    @property
    def shared_run_parents(self) -> tuple[Path, ...]:
        """The directories above `run_dir` that lie where anybody may make one."""
        return () if self.run_dir.parent == self.directory else shared_parents(self.run_dir)

    @property
    def trusted(self) -> frozenset[int]:
        """The users whose daemon may be the pool's: root, this one, the directory's owner."""
        owner = poolfiles.owner_of(self.directory)
        return frozenset({0, os.geteuid()} if owner is None else {0, os.geteuid(), owner})

    @property
    def nbd_socket(self) -> Path:
        return self.run_dir / NBD_SOCKET

    @property
    def control_socket(self) -> Path:
        return self.run_dir / CONTROL_SOCKET

    @property
    def pid_file(self) -> Path:
        return self.run_dir / PID_FILE

    @property
    def run_lock(self) -> Path:
        """What a daemon holds locked that serves read-only."""
        return self.run_dir / "lock"

    def require_pool(self) -> "PoolPaths":
        """Return self when a pool lies here. Raises NoSuchPool, DeviceError where none may look."""
        try:
            found = os.path.lexists(self.metadata)
        except OSError as error:
            raise DeviceError(f"{self.metadata}: {error.strerror}", error.errno or 0) from None
        if not found:
            raise NoSuchPool(
                f"no pool in {self.directory}: it has no {METADATA_FILE}; "
                "make one with 'thinpool init', or name another with -p"
            )
        return self


def default_directory() -> Path:
    """Return the directory where a pool given by name alone lies.

    Raises NoSuchPool for a user who has no such directory, for want of a home.
    """
    found = _default_directory()
    if found is None:
        raise NoSuchPool(
            f"user {os.geteuid()} has no home directory for pools known by name: name the pool by "
            "its path, with a '/', or set HOME or XDG_DATA_HOME"
        )
    return found


def _default_directory() -> Path | None:
    if os.geteuid() == 0:
        return Path("/var/lib/thinpoold")
    data_home = os.environ.get("XDG_DATA_HOME", "")
    if os.path.isabs(data_home):
        return Path(data_home) / "thinpoold"
    # As it is where neither HOME nor the system's users tell.
    home = os.path.expanduser("~") if os.environ.get("HOME") != "" else ""
    return Path(home) / ".local/share/thinpoold" if os.path.isabs(home) else None


def resolve_pool(text: str) -> PoolPaths:
    """Return the paths of the pool that `text` names: a directory, or a name.

    Text with a `/` is a path. A bare word is a pool in the working directory where there is one,
    and otherwise a name under the default directory. Raises InvalidName for a word that is no name.
    """
    if "/" in text or text in (".", ".."):
        return pool_paths(Path(text))
    check_name(text, "pool")
    here, default = Path(text), _default_directory()
    if (here / METADATA_FILE).exists():
        return pool_paths(here)
    if here.is_dir() and (default is None or not (default / text).is_dir()):
        return pool_paths(here)
    return pool_paths(default_directory() / text)


def pool_paths(directory: Path) -> PoolPaths:
    """Return the paths of the pool in `directory`."""
    real = Path(os.path.realpath(directory))
    paths = PoolPaths(real, _run_dir(real))
    reading = paths.for_read_only()
    return reading if _is_served(reading) else paths


def _is_served(reading: PoolPaths) -> bool:
    """Whether a daemon of this user's holds the run directory of read-only paths."""
    try:
        if any(one.lstat().st_uid != os.geteuid() for one in reading.shared_run_parents):
            # Somebody else has made it first.
            return False
    except OSError:
        return False
    try:
        return poolfiles.is_locked(reading.run_lock)
    except OSError:
        # Nobody can tell: who serves it would.
        return True


def readers_file(metadata: Path) -> Path:
    """Return the file in which LMDB notes who reads a metadata file."""
    return metadata.with_name(metadata.name + "-lock")


def shared_parents(directory: Path) -> tuple[Path, ...]:
    """Return the directories above this one that lie where anybody may make one."""
    parent = directory.parent
    return (parent,) if parent.parent == _ANYBODYS else ()


def _run_dir(directory: Path) -> Path:
    base, default = _runtime_base(), _default_directory()
    named = default is not None and directory.parent == Path(os.path.realpath(default))
    if base is not None and named:
        run_dir = base / "thinpoold" / directory.name
    else:
        run_dir = directory / "run"
    if len(os.fsencode(run_dir / CONTROL_SOCKET)) <= MAX_SOCKET_PATH:
        return run_dir
    return _short_run_dir(directory)


def _short_run_dir(directory: Path) -> Path:
    base = _runtime_base()
    digest = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    short_base = base / "thinpoold" if base is not None else _ANYBODYS / f"thinpoold-{os.geteuid()}"
    return short_base / digest


def _runtime_base() -> Path | None:
    if os.geteuid() == 0:
        return Path("/run")
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    return Path(os.path.realpath(runtime)) if os.path.isabs(runtime) else None
