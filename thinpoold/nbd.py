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
from thinpoold import access, buffers, discard, fastlib, notify, openers, peers, runtime
from thinpoold.control.codes import one_line
from thinpoold.errnos import errno_of
from thinpoold.errors import NoSuchVolume, ThinPoolError
from thinpoold.extents import extents as find_extents
from thinpoold.extents import prefetch
from thinpoold.fastpath import Choice
from thinpoold.logkeeper import introduction
from thinpoold.pool import Pool
from thinpoold.rotational import is_rotational as disk_turns
from thinpoold.shares import MOST_OF_TRANSFER
from thinpoold.sizes import format_size, parse_size
from thinpoold.space import Waiters
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

    __slots__ = ("kept", "opening", "read_only", "size", "volume", "waiters")

    def __init__(self, volume: Volume, size: int, read_only: bool, peer: access.Peer) -> None:
        self.volume = volume
        self.size = size
        self.read_only = read_only
        self.opening = _pool.openers.add(volume.uuid, peer, read_only)
        self.kept = Kept()
        self.waiters = Waiters(_runtime.threads)


def reported(function: Callable[P, R]) -> Callable[P, R]:
    """Give what a function raises its errno, and the log what `_report` says of it."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            _report(error, args[0] if args else None)
            raise

    return wrapper


def _report(error: Exception, about: object, what: str = "") -> None:
    """Set the errno of an error that nbdkit is about to get, and what it is to print.

    That is one line with the volume and the client: `about` is the connection, or anything else
    where there is none yet. What nobody meant to raise goes to the log in full.
    """
    nbdkit.set_error(errno_of(error))
    if isinstance(about, Connection):
        who = f"volume {about.volume.name!r}, {about.opening.client}"
    else:
        # What TLS has to do with it is not asked: see there.
        peer = peers.current(0)
        who = openers.described(peer, openers.command_of(peer.pid))
    # Not in the error: one may be raised on several threads.
    thread.said = f"{who}: {what}{one_line(error)}"
    if not isinstance(error, ThinPoolError | ThinMetaError | OSError):
        text = "".join(_format_exception(error, limit=100))
        log.error("%s: a request failed, which is a bug: %r\n%s", who, error, text)


_format_exception = traceback.format_exception


def _said(kind: object, error: BaseException, trace: object) -> list[str]:
    """Return what nbdkit is to print of an error that it has just got, on the same thread.

    It asks traceback.format_exception for that, and would print a traceback of several lines.
    """
    said: str = thread.__dict__.pop("said", None) or one_line(error)
    return [said]


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
        with notify.Longer(_runtime.notifier):
            _pool = Pool.open(
                _runtime.directory or Path(_given["pool"]),
                lock_fd=_runtime.lock_fd,
                cache_bytes=parse_size(size) if size is not None else None,
                read_only=_runtime.read_only,
                serving=True,
            )
        _pool.openers.addresses = _runtime.addresses
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
        # What it waits for may be another thread's round.
        with notify.Longer(_runtime.notifier, _pool.core.motion):
            _pool.close()
    except Exception as error:
        log.error("closing the pool: %s", error)


def _set_up_log() -> None:
    # To stderr, which nbdkit leaves alone. A pipe that is full is no reason to say anything there.
    form = "%(asctime)s thinpoold: %(levelname)s: %(message)s"
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=form)
    logging.raiseExceptions = False
    setattr(traceback, "format_exception", _said)  # noqa: B010 - of another type


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
            read_only = record.read_only or _pool.served_read_only
            exports.append((record.name, text + (", read-only" if read_only else "")))
    return exports


def _allowed_to(peer: access.Peer) -> Callable[[VolumeRecord], bool]:
    """Whether a peer may open a volume; may ask the name service, once, so with no lock held."""

    def allowed(record: VolumeRecord) -> bool:
        nonlocal peer
        try:
            return access.allows(record.allow, peer)
        except access.GroupsNeeded:
            peer = access.with_groups(peer)
            return access.allows(record.allow, peer)

    return allowed


@reported
def default_export(readonly: int, is_tls: int) -> str:
    # With one volume nobody need name it; with several none is the default.
    found = _allowed(peers.current(is_tls))
    return found[0].name if len(found) == 1 else ""


def _allowed(peer: access.Peer) -> list[VolumeRecord]:
    with _pool.looking():
        records = _pool.registry.unordered()
    return list(filter(_allowed_to(peer), records))


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

    guest = openers.guest(peer, name)
    try:
        volume = _pool.open_volume(name, admit, guest)
    except access.GroupsNeeded:
        peer = access.with_groups(peer)
        volume = _pool.open_volume(name, admit, guest)
    # What the volume says of itself by now, no commit may hold.
    (record,) = found
    read_only = bool(readonly) or record.read_only or _pool.served_read_only
    connection = Connection(volume, record.size, read_only, peer)
    if _runtime.log_kept:
        peers.say(introduction(f"volume {volume.name!r}, {connection.opening.client}"))
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
    size, most = _pool.core.block_size, buffers.LARGEST_REQUEST
    return 1, min(size & -size, most), most


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
    share = h.volume.share
    begun = share.begin()
    try:
        h.volume.pread(buf, offset)
    except Exception as error:
        _report(error, h, f"read at {offset}: ")
        raise
    finally:
        share.end(begun, MOST_OF_TRANSFER)


def pwrite(h: Connection, buf: Any, offset: int, flags: int) -> None:
    try:
        thread.kept  # noqa: B018
    except AttributeError:
        h.kept.keep()
    limiter = h.volume.limiter
    if limiter is not None:
        limiter.pace(len(buf))
    share = h.volume.share
    try:
        begun = share.begin()
        try:
            h.volume.pwrite(buf, offset, h.waiters)
        finally:
            share.end(begun, MOST_OF_TRANSFER)
        if flags & _FUA:
            h.volume.core.sync()
    except Exception as error:
        _report(error, h, f"write at {offset}: ")
        raise


def _pace(h: Connection, count: int = 0) -> None:
    if h.volume.limiter is not None:
        h.volume.limiter.pace(count)


@reported
def flush(h: Connection, flags: int) -> None:
    h.kept.keep()
    _pace(h)
    with h.volume.share.taken_for_flush():
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
        waiters=h.waiters,
    )
    if flags & _FUA:
        h.volume.core.sync()


@reported
def extents(h: Connection, count: int, offset: int, flags: int) -> list[tuple[int, int, int]]:
    h.kept.keep()
    _pace(h)
    with h.volume.share.taken_for_look():
        found = find_extents(h.volume, offset, count, one=bool(flags & _REQ_ONE))
        return [(at, length, 0 if mapped else _HOLE_AND_ZERO) for at, length, mapped in found]


@reported
def cache(h: Connection, count: int, offset: int, flags: int) -> None:
    h.kept.keep()
    # What is read of the data device for it is no more.
    _pace(h, min(count, _pool.device.prefetch_bytes))
    prefetch(h.volume, offset, count)
