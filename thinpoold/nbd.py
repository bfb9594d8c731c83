"""What nbdkit calls: the plugin's functions over one pool.

`plugins/thinpool.py` hands these to nbdkit by their names. The handle of a connection is a
`Connection`. Parameters: pool=DIRECTORY, cache-size=SIZE.

Threads start, and the pool is opened, in `after_fork`, never before. Errors leave here with the
errno that the client gets; the message goes to nbdkit's log as one line.

Thread-safety: nbdkit calls any of the connections' functions from several threads at once.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import nbdkit

from thinmeta.errors import NotFound, ThinMetaError
from thinpoold import access, discard, fastlib, openers, peers, runtime
from thinpoold.errnos import errno_of
from thinpoold.errors import NoSuchVolume, ThinPoolError
from thinpoold.extents import extents as find_extents
from thinpoold.extents import prefetch
from thinpoold.fastpath import Choice
from thinpoold.pool import Pool
from thinpoold.rotational import is_rotational as disk_turns
from thinpoold.sizes import format_size, parse_size
from thinpoold.threadstate import Kept
from thinpoold.threadstate import local as thread
from thinpoold.volume import Volume
from thinpoold.volumes import VolumeRecord, by_name

__all__ = [
    "API_VERSION",
    "after_fork",
    "block_size",
    "cache",
    "can_cache",
    "can_extents",
    "can_fast_zero",
    "can_flush",
    "can_fua",
    "can_multi_conn",
    "can_trim",
    "can_write",
    "can_zero",
    "cleanup",
    "close",
    "config",
    "config_complete",
    "default_export",
    "export_description",
    "extents",
    "flush",
    "get_size",
    "is_rotational",
    "list_exports",
    "open",
    "pread",
    "pwrite",
    "thread_model",
    "trim",
    "zero",
]

log = logging.getLogger(__name__)

API_VERSION = 2

# NBD's own limits on what a server may say of block sizes, in bytes.
_LARGEST_PREFERRED = 32 << 20
_LARGEST_REQUEST = 64 << 20
# nbdkit fails the whole list for one more.
_MOST_EXPORTS = 10_000
_HOLE_AND_ZERO = nbdkit.EXTENT_HOLE | nbdkit.EXTENT_ZERO

P = ParamSpec("P")
R = TypeVar("R")

_given: dict[str, str] = {}
_pool: Pool
_runtime: runtime.Runtime


class Connection:
    """One client's connection to one volume; `size` is the volume's when it was opened."""

    __slots__ = ("kept", "opening", "read_only", "size", "volume")

    def __init__(self, volume: Volume, size: int, read_only: bool, peer: access.Peer) -> None:
        self.volume = volume
        self.size = size
        self.read_only = read_only
        self.opening = _pool.openers.add(volume.uuid, peer, read_only)
        self.kept = Kept()


def reported(function: Callable[P, R]) -> Callable[P, R]:
    """Give what a function raises its errno, and what nobody meant to raise to the log in full."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            _report(error)
            raise

    return wrapper


def _report(error: Exception) -> None:
    nbdkit.set_error(errno_of(error))
    if not isinstance(error, ThinPoolError | ThinMetaError | OSError):
        text = "".join(traceback.format_exception(error, limit=100))
        log.error("a request failed, which is a bug:\n%s", text)


# --- the server's life ------------------------------------------------------------------------


def thread_model() -> int:
    # A flush waits for others; it must not hold up reads.
    model: int = nbdkit.THREAD_MODEL_PARALLEL
    return model


def config(key: str, value: str) -> None:
    if key not in ("pool", "cache-size"):
        raise ValueError(f"unknown parameter {key!r}: there are pool and cache-size")
    _given[key] = value


def config_complete() -> None:
    if "pool" not in _given:
        raise ValueError("the parameter pool=DIRECTORY is missing")
    # nbdkit changes to / when it forks.
    _given["pool"] = os.path.abspath(_given["pool"])
    if "cache-size" in _given:
        parse_size(_given["cache-size"])


def after_fork() -> None:
    global _pool, _runtime
    _set_up_log()
    _runtime = runtime.from_environment()
    size = _given.get("cache-size")
    try:
        _pool = Pool.open(
            _runtime.directory or Path(_given["pool"]),
            lock_fd=_runtime.lock_fd,
            cache_bytes=parse_size(size) if size is not None else None,
            serving=True,
        )
        _find_filter()
        _pool.start()
        _runtime.serve(_pool)
    except Exception as error:
        _runtime.fail(error)


def _find_filter() -> None:
    if _pool.device.direct and _runtime.fastpath.filter is not None:
        # The filter is in nbdkit already, and is shown nothing.
        _runtime.fastpath = Choice(None, "cache=bufio has Python serve everything")
    path = _runtime.fastpath.filter
    if path is not None:
        _pool.core.fastpath = fastlib.loaded(path)
        if _pool.core.fastpath is None:
            _runtime.fastpath = Choice(None, f"nbdkit has not loaded {path} as it is now")
    if _pool.core.fastpath is None:
        log.info("no fast path: %s", _runtime.fastpath.reason)


def cleanup() -> None:
    _runtime.close()
    try:
        _pool.close()
    except Exception as error:
        log.error("closing the pool: %s", error)


def _set_up_log() -> None:
    # To stderr, which nbdkit leaves alone. One line for each exception that nbdkit prints.
    form = "%(asctime)s thinpoold: %(levelname)s: %(message)s"
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=form)
    sys.tracebacklimit = 0


# --- exports ----------------------------------------------------------------------------------


@reported
def list_exports(readonly: int, is_tls: int) -> list[tuple[str, str]]:
    peer = peers.current(is_tls)
    size = _pool.core.block_size
    exports = []
    for record in by_name(_allowed(peer))[:_MOST_EXPORTS]:
        # The lock is let go between two: of thousands nobody else waits for all.
        with suppress(NotFound), _pool.looking():
            mapped = _pool.metadata.details(record.dev_id).mapped_blocks * size
            text = f"{format_size(record.size)}, {format_size(mapped)} mapped"
            exports.append((record.name, text + (", read-only" if record.read_only else "")))
    return exports


@reported
def default_export(readonly: int, is_tls: int) -> str:
    # With one volume nobody need name it; with several none is the default.
    found = _allowed(peers.current(is_tls))
    return found[0].name if len(found) == 1 else ""


def _allowed(peer: access.Peer) -> list[VolumeRecord]:
    with _pool.looking():
        records = _pool.registry.unordered()
    return [record for record in records if access.allows(record.allow, peer)]


@reported
def open(readonly: int) -> Connection:
    if _runtime.stopping:
        raise OSError(errno.ESHUTDOWN, "the daemon ends")
    peer = peers.current()
    try:
        name = nbdkit.export_name()
    except UnicodeDecodeError:
        raise NoSuchVolume("no volume has a name that is not UTF-8") from None
    found: list[VolumeRecord] = []

    def admit(record: VolumeRecord, clients: int) -> None:
        most = _pool.core.settings.max_clients
        access.admit(peer, record.name, record.allow, clients, most)
        found.append(record)

    volume = _pool.open_volume(name, admit, openers.guest(peer, name))
    # What the volume says of itself by now, no commit may hold.
    (record,) = found
    connection = Connection(volume, record.size, bool(readonly) or record.read_only, peer)
    volume.offer()
    return connection


def close(h: Connection) -> None:
    h.kept.release()
    _pool.openers.remove(h.opening)
    # At the end of the daemon its clients are hung up on, and connect again to the next.
    _pool.close_volume(h.volume, comes_back=_runtime.stopping)


# --- what a volume can do ---------------------------------------------------------------------


def export_description(h: Connection) -> str:
    return f"{_pool.record.name}: thin volume of {format_size(h.size)}"


def get_size(h: Connection) -> int:
    # Not what a resize makes of it meanwhile, which no commit may hold yet.
    return h.size


def block_size(h: Connection) -> tuple[int, int, int]:
    # The protocol wants a power of two: the largest that divides a block.
    size = _pool.core.block_size
    return 1, min(size & -size, _LARGEST_PREFERRED), _LARGEST_REQUEST


@reported
def is_rotational(h: Connection) -> bool:
    return disk_turns(os.fstat(_pool.device.fd))


def can_write(h: Connection) -> bool:
    return not h.read_only


def can_flush(h: Connection) -> bool:
    return True


def can_trim(h: Connection) -> bool:
    return not h.read_only and _pool.core.settings.discard != "ignore"


def can_zero(h: Connection) -> bool:
    return not h.read_only


def can_fast_zero(h: Connection) -> bool:
    return not h.read_only


def can_extents(h: Connection) -> bool:
    return True


def can_multi_conn(h: Connection) -> bool:
    # All connections share one volume, and a flush on any covers what all have written.
    return True


def can_fua(h: Connection) -> int:
    fua: int = nbdkit.FUA_NATIVE
    return fua


def can_cache(h: Connection) -> int:
    cache: int = nbdkit.CACHE_NATIVE
    return cache


# --- requests ---------------------------------------------------------------------------------

_FUA = nbdkit.FLAG_FUA
_MAY_TRIM = nbdkit.FLAG_MAY_TRIM
_FAST_ZERO = nbdkit.FLAG_FAST_ZERO
_REQ_ONE = nbdkit.FLAG_REQ_ONE


def pread(h: Connection, buf: Any, offset: int, flags: int) -> None:
    try:
        # Raises in a thread whose state is not kept: cheaper than to ask.
        thread.kept  # noqa: B018
    except AttributeError:
        h.kept.keep()
    limiter = h.volume.limiter
    if limiter is not None:
        limiter.pace(len(buf))
    try:
        h.volume.pread(buf, offset)
    except Exception as error:
        _report(error)
        raise


def pwrite(h: Connection, buf: Any, offset: int, flags: int) -> None:
    try:
        thread.kept  # noqa: B018
    except AttributeError:
        h.kept.keep()
    limiter = h.volume.limiter
    if limiter is not None:
        limiter.pace(len(buf))
    try:
        h.volume.pwrite(buf, offset)
        if flags & _FUA:
            h.volume.core.sync()
    except Exception as error:
        _report(error)
        raise


def _pace(h: Connection) -> None:
    if h.volume.limiter is not None:
        h.volume.limiter.pace(0)


@reported
def flush(h: Connection, flags: int) -> None:
    h.kept.keep()
    h.volume.core.sync()


@reported
def trim(h: Connection, count: int, offset: int, flags: int) -> None:
    h.kept.keep()
    _pace(h)
    discard.trim(h.volume, offset, count)
    if flags & _FUA:
        h.volume.core.sync()


@reported
def zero(h: Connection, count: int, offset: int, flags: int) -> None:
    h.kept.keep()
    _pace(h)
    discard.zero(
        h.volume,
        offset,
        count,
        may_trim=bool(flags & _MAY_TRIM),
        fast=bool(flags & _FAST_ZERO),
    )
    if flags & _FUA:
        h.volume.core.sync()


@reported
def extents(h: Connection, count: int, offset: int, flags: int) -> list[tuple[int, int, int]]:
    found = find_extents(h.volume, offset, count, one=bool(flags & _REQ_ONE))
    return [(at, length, 0 if mapped else _HOLE_AND_ZERO) for at, length, mapped in found]


@reported
def cache(h: Connection, count: int, offset: int, flags: int) -> None:
    prefetch(h.volume, offset, count)
