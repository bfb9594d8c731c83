"""The program `thinpoold`: makes sure that a pool may be served, and becomes nbdkit.

Invariants

1. The pool's lock is taken here and handed through exec: from before the first check to the end of
   nbdkit it is never free, so the sockets of an earlier run are known to be stale and are removed.
2. The process id does not change: the one in the lock file, the one systemd started and nbdkit's
   are the same.
3. A daemon that serves read-only shares the pool's lock, and has its run directory's alone; both go
   through exec. It leaves nothing in the pool's directory, so it needs no right to write there.

Everything happens in one thread, before any other exists.
"""

import contextlib
import ipaddress
import os
import re
import resource
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import thinpoold
from thinpoold import activation, buffers, fastpath, launch, lock, notify, poolfiles, tls
from thinpoold.errors import ThinPoolError, UserError
from thinpoold.paths import NBD_SOCKET, RUN_FILES, PoolPaths
from thinpoold.runtime import ENVIRONMENT, READY_FD, block_signals, environment
from thinpoold.uri import tcp_uri, unix_uri

# A command on the stopped pool may hold the lock for a moment.
LOCK_WAIT = 10.0
DEFAULT_THREADS = 4
DEFAULT_LISTEN = "unix"

# In these versions, from the first and before the second, nbdkit aborts when a client hangs up that
# has several answers to come, or sends one of them to another client:
# https://bugzilla.redhat.com/show_bug.cgi?id=2173054
# With one thread a connection there is never more than one answer to come.
_ONE_THREAD = ((1, 32, 4), (1, 33, 10))


@dataclass(frozen=True)
class Options:
    """What `thinpoold` was told.

    `threads` is None for as many as are safe; `cache_size` is in bytes, None for the pool's own
    choice. `tls` is a directory as `tls.load` takes it; `insecure`: without one, addresses beyond
    loopback will do all the same. `fastpath` is one of `fastpath.MODES`, None for what the
    environment says. `read_only`: nothing of the pool is written.
    """

    listen: str = DEFAULT_LISTEN
    threads: int | None = None
    cache_size: int | None = None
    tls: Path | None = None
    insecure: bool = False
    fastpath: str | None = None
    read_only: bool = False


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the program."""
    # Not imported above: the process that becomes nbdkit has no use for the rest of this module.
    from thinpoold.cli import complete
    from thinpoold.cli.daemon import command
    from thinpoold.cli.run import run

    if "_THINPOOLD_COMPLETE" in os.environ:
        complete()
    run(command, argv)


def background(paths: PoolPaths, options: Options) -> dict[str, object]:
    """Start the daemon detached, and return its run facts once it serves."""
    paths = _paths_to_serve(paths, options)
    listen_options(paths, options)
    words = ["--listen", options.listen]
    if options.read_only:
        words += ["--read-only"]
    if options.threads is not None:
        words += ["--threads", str(options.threads)]
    if options.tls is not None:
        words += ["--tls", str(options.tls.absolute())]
    if options.insecure:
        words += ["--insecure-no-tls"]
    if options.cache_size is not None:
        words += ["--cache-size", str(options.cache_size)]
    if options.fastpath is not None:
        words += ["--fastpath", options.fastpath]
    return launch.start(paths, words)


def foreground(paths: PoolPaths, options: Options) -> NoReturn:
    """Become the daemon. Raises ThinPoolError while that can still be refused."""
    ready = os.environ.pop(READY_FD, None)
    ready_fd = int(ready) if ready is not None else None
    try:
        _become(paths, options, ready_fd)
    except ThinPoolError as error:
        if ready_fd is not None:
            launch.report_failure(ready_fd, error)
        notify.from_environment().send(STATUS=str(error))
        raise


def _paths_to_serve(paths: PoolPaths, options: Options) -> PoolPaths:
    """Return the paths of the daemon to be; one that serves read-only has its run directory then.

    Raises `PoolLocked` where this user's daemon serves the pool read-only already, `DeviceError`
    where the pool cannot be written and is to be.
    """
    paths.require_pool()
    if paths.read_only:
        raise lock.locked(paths)
    if options.read_only:
        paths = paths.for_read_only()
        _make_run_dir(paths)
    else:
        lock.check_writable(paths)
    return paths


def _become(paths: PoolPaths, options: Options, ready_fd: int | None) -> NoReturn:
    paths = _paths_to_serve(paths, options)
    sockets = activation.handed_over()
    if sockets:
        # nbdkit finds them as this process does, and takes no options of where beside them.
        listen, uri, keep = given_sockets(paths, sockets, options)
    else:
        listen, uri = listen_options(paths, options)
        keep = frozenset()
    nbdkit, script = find_nbdkit(), find_plugin()
    version = nbdkit_version(nbdkit)
    choice = fastpath.choose(options.fastpath, script, version)
    if options.read_only:
        lock_fd, run_lock_fd = lock.share(paths, LOCK_WAIT), lock.acquire_run(paths)
    else:
        lock_fd, run_lock_fd = lock.acquire(paths, lock.DAEMON, LOCK_WAIT), None
    run_files = make_run_dir(paths, keep)
    _write_pid_file(paths)
    argv = [nbdkit, "--foreground", *listen]
    threads = options.threads or safe_threads(version)
    argv += ["--threads", str(threads)]
    if choice.filter is not None:
        argv += ["--filter", str(choice.filter)]
    if os.environ.get("THINPOOL_DEBUG"):
        argv += ["--verbose"]
    # Shown alone: nbdkit hands a plugin no path that is not UTF-8, so the environment has it too.
    shown = os.fsencode(paths.directory).decode("utf-8", "replace")
    argv += ["python", f"script={script}", f"pool={shown}"]
    if options.cache_size is not None:
        argv += [f"cache-size={options.cache_size}"]
    for fd in (lock_fd, run_lock_fd, ready_fd):
        if fd is not None:
            os.set_inheritable(fd, True)
    os.environ[ENVIRONMENT] = environment(
        lock_fd, ready_fd, paths, uri, threads, run_files, choice, run_lock_fd
    )
    os.environ["PATH"] = search_path()
    os.environ |= buffers.preloaded(buffers.place(script), os.environ)
    os.umask(0o077)
    # A connection takes up to three descriptors; the limit in force is often 1024 of many more.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    block_signals()
    os.execv(nbdkit, argv)


def listen_options(paths: PoolPaths, options: Options) -> tuple[list[str], str]:
    """Return nbdkit's options for `unix` or ADDR:PORT, with TLS or without, and the server's URI.

    Raises UserError for what is neither, not loopback though without TLS, or no TLS directory.
    """
    if options.listen == "unix":
        words, uri = ["--unix", str(paths.nbd_socket)], unix_uri(paths.nbd_socket)
    else:
        address, port = _split_address(options.listen)
        _require_tls(options, options.listen, address)
        words = ["--ipaddr", address, "--port", str(port)]
        uri = tcp_uri(_reachable(address), port)
    return _secured(options, words, uri)


def _secured(options: Options, words: list[str], uri: str) -> tuple[list[str], str]:
    if options.tls is None:
        return words, uri
    secured = tls.load(options.tls)
    return words + secured.options(), secured.uri(uri)


def given_sockets(
    paths: PoolPaths, fds: list[int], options: Options
) -> tuple[list[str], str, frozenset[str]]:
    """Return nbdkit's options and the server's URI on a service manager's sockets, and which run
    files are theirs.

    Raises UserError for sockets that will not do, and when `listen` asks for others.
    """
    if options.listen != DEFAULT_LISTEN:
        raise UserError(
            f"will not listen on {options.listen}: the service manager has opened sockets already; "
            "leave --listen out, or start without the socket unit"
        )
    addresses = [activation.address_of(fd) for fd in fds]
    for address in addresses:
        if isinstance(address, tuple):
            _require_tls(options, f"{address[0]}:{address[1]}", address[0])
    named = {os.path.realpath(address) for address in addresses if isinstance(address, Path)}
    own = os.path.realpath(paths.nbd_socket) in named
    words, uri = _secured(options, [], activation.uri_of(addresses[0]))
    return words, uri, frozenset([NBD_SOCKET] if own else [])


def _require_tls(options: Options, listen: str, address: str) -> None:
    if options.tls is None and not options.insecure and not _is_loopback(address):
        raise UserError(
            f"will not listen on {listen}: without TLS only loopback addresses are safe; say "
            "--tls DIR ('thinpool tls init' makes it), or use 127.0.0.1:PORT, [::1]:PORT or unix"
        )


def _reachable(address: str) -> str:
    """Return what clients connect to: for all of this host's addresses, its name."""
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(address).is_unspecified:
            return socket.gethostname()
    return address


def _split_address(listen: str) -> tuple[str, int]:
    address, colon, port = listen.rpartition(":")
    address = address.removeprefix("[").removesuffix("]")
    digits = port if port.isascii() and port.isdigit() else "0"
    if not colon or not address or not 0 < int(digits[:6]) < 65536:
        raise UserError(
            f"cannot listen on {listen!r}: it is neither 'unix' nor ADDR:PORT with a port from 1 "
            "to 65535; write 127.0.0.1:10809, say"
        )
    return address, int(digits)


def _is_loopback(address: str) -> bool:
    if address == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(address).is_loopback
    return False


def find_nbdkit() -> str:
    """Return the path of nbdkit. Raises ThinPoolError when it is not installed."""
    # Debian keeps it in /usr/bin, others in /usr/sbin, which a user's PATH may lack.
    found = shutil.which("nbdkit", path=os.pathsep.join((search_path(), "/usr/sbin", "/sbin")))
    if found is None:
        raise ThinPoolError(
            "nbdkit is not installed: install the packages nbdkit and nbdkit-plugin-python"
        )
    return found


def nbdkit_version(nbdkit: str) -> str:
    """Return the version of the program at that path, "" when it does not say."""
    try:
        done = subprocess.run([nbdkit, "--version"], capture_output=True, text=True, check=False)
    except OSError as error:
        raise ThinPoolError(f"{nbdkit}: {error.strerror}") from None
    return version_said(done.stdout)


def version_said(text: str) -> str:
    """Return the version in what nbdkit says of itself, "" when there is none."""
    match = re.match(r"nbdkit (\d\S*)", text)
    return match[1] if match else ""


def safe_threads(version: str) -> int:
    """Return how many threads a connection may have in that version of nbdkit."""
    first, mended = _ONE_THREAD
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    known = match is not None and not first <= tuple(map(int, match.groups())) < mended
    return DEFAULT_THREADS if known else 1


def find_plugin() -> Path:
    """Return nbdkit's script: the wheel's copy, or the checkout's."""
    package = Path(thinpoold.__file__).parent
    candidates = (package / "_plugin" / "thinpool.py", package.parent / "plugins" / "thinpool.py")
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise ThinPoolError(f"no nbdkit script at {candidates[0]}: the installation is incomplete")


def search_path() -> str:
    """Return PATH with this interpreter's directory first.

    That is how the interpreter inside nbdkit finds the virtual environment it belongs to.
    """
    path = os.environ.get("PATH", os.defpath)
    own = os.path.dirname(sys.executable)
    return own if not path else os.pathsep.join((own, path))


def make_run_dir(paths: PoolPaths, keep: frozenset[str] = frozenset()) -> list[str]:
    """Make the directory of the sockets, its owner's alone, and clear it of all but `keep`.

    Returns the names of what this run will leave there. The caller holds the lock.
    """
    ours = [name for name in RUN_FILES if name not in keep]
    _make_run_dir(paths)
    try:
        for name in ours:
            poolfiles.remove(paths.run_dir / name)
    except OSError as error:
        raise ThinPoolError(f"run directory {paths.run_dir}: {error.strerror}") from None
    return ours


def _make_run_dir(paths: PoolPaths) -> None:
    try:
        if paths.run_dir.parent == paths.directory:
            os.close(poolfiles.make_private(paths.run_dir))
        else:
            _make_own_run_dir(paths)
    except OSError as error:
        raise ThinPoolError(f"run directory {paths.run_dir}: {error.strerror}") from None


def _write_pid_file(paths: PoolPaths) -> None:
    """Write the process id, which does not change any more.

    nbdkit, which can do that too, would follow a symbolic link.
    """
    try:
        poolfiles.replace(paths.pid_file, f"{os.getpid()}\n".encode())
    except OSError as error:
        raise ThinPoolError(f"{paths.pid_file}: {error.strerror}") from None


def _make_own_run_dir(paths: PoolPaths) -> None:
    """Make a run directory that is not in the pool's. Raises OSError, ThinPoolError."""
    for directory in (*paths.shared_run_parents, paths.run_dir):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Under /tmp, another user could have made it first.
        found = directory.lstat()
        if found.st_uid != os.geteuid() or not stat.S_ISDIR(found.st_mode):
            raise ThinPoolError(f"{directory} belongs to user {found.st_uid}: have it removed")
        directory.chmod(0o700)


if __name__ == "__main__":
    main()
