"""Carries a verb to a pool: to its daemon when one runs, else into the pool opened right here.

Invariants

1. The pool's lock decides. While a daemon holds it, its control socket answers; while another
   command holds it, this one waits for it; and whoever takes it here knows no daemon runs that
   writes. A method that only looks shares it, and so needs no right to write anything.
2. Either way the same method of thinpoold.control.methods runs, with the same checks, and its
   changes are durable when `call` returns.

Not thread-safe: one call at a time.
"""

import os
import time
from dataclasses import dataclass
from typing import Any

from thinpoold import lock
from thinpoold.cli import output
from thinpoold.control.client import ControlClient
from thinpoold.control.codes import from_rpc
from thinpoold.control.jsonrpc import Json, RpcError
from thinpoold.errors import (
    ControlError,
    NotRecovered,
    PoolLocked,
    PoolNotRunning,
    ThinPoolError,
)
from thinpoold.paths import PoolPaths
from thinpoold.uri import unix_uri
from thinpoold.waiting import Waiting

# They tell what is mapped.
_OF_SPACE = frozenset({"status", "list", "tree", "info"})
# How long to wait for a daemon that is starting or stopping, or for another command.
WAIT = 30.0
_RETRY = 0.05


@dataclass(frozen=True)
class Backend:
    """The pool in `paths`, running or not."""

    paths: PoolPaths

    def call(self, method: str, **params: Json) -> Any:
        """Run a method and return its result. Raises ThinPoolError or an error of thinmeta."""
        self.paths.require_pool()
        deadline = time.monotonic() + WAIT
        while True:
            try:
                return call_daemon(self.paths, method, params)
            except PoolNotRunning:
                pass
            lock_fd = self._lock(method, _looks(method, params), deadline)
            if lock_fd is None:
                continue
            try:
                return call_here(self.paths, lock_fd, method, params)
            finally:
                os.close(lock_fd)

    def _lock(self, method: str, looks: bool, deadline: float) -> int | None:
        """Take the pool's lock; None when there may be a daemon by now, which has it."""
        with Waiting(f"who holds pool {self.paths.directory}", f"for at most {WAIT:.0f} s"):
            while True:
                try:
                    if looks:
                        return lock.share(self.paths)
                    return lock.acquire(self.paths, f"thinpool {method}")
                except PoolLocked as error:
                    if time.monotonic() >= deadline:
                        raise _silent(self.paths, error) from None
                time.sleep(_RETRY)
                if self.paths.control_socket.exists():
                    return None


def _looks(method: str, params: dict[str, Json]) -> bool:
    from thinpoold.control.methods import METHODS

    return METHODS[method].looks(params)


def _silent(paths: PoolPaths, error: PoolLocked) -> ThinPoolError:
    who = lock.holder(paths)
    if who.what != lock.DAEMON or error.pid != who.pid:
        return error
    return ControlError(
        f"the daemon of pool {paths.directory}, process {who.pid}, does not answer; see {paths.log}"
    )


def call_daemon(paths: PoolPaths, method: str, params: dict[str, Json]) -> Any:
    """Run a method in the pool's daemon. Raises PoolNotRunning when there is none."""
    with ControlClient.connect(paths.control_socket, paths.trusted) as client:
        return client.call(method, params)


def call_here(paths: PoolPaths, lock_fd: int, method: str, params: dict[str, Json]) -> Any:
    """Run a method on the pool opened in this process, under the lock that `lock_fd` holds."""
    from thinpoold.control.dispatch import Dispatcher
    from thinpoold.pool import Pool

    # Who only looks leaves the data device, and what the last daemon left, to the next.
    looking = _looks(method, params)
    pool = Pool.open(paths.directory, lock_fd=lock_fd, looking=looking)
    try:
        if method in _OF_SPACE:
            _note_waiting(pool)
        result = Dispatcher(_Here(paths, pool)).call(method, params)
        if not looking:
            pool.commit()
        return result
    except RpcError as error:
        raise from_rpc(error) from None
    finally:
        pool.close()


def _note_waiting(pool: Any) -> None:
    """Say so if what a daemon left that died is not in what is about to be told."""
    from thinpoold import recovery

    try:
        found = recovery.waiting(pool.core.recent, pool.metadata.generation)
    except NotRecovered as error:
        output.note(str(error))
        return
    count = sum(len(left.changes) for left in found)
    if count:
        output.note(
            f"this is the last commit: {output.plural(count, 'change')} that a daemon answered "
            "after it, before it died, the next start makes good"
        )


@dataclass(frozen=True)
class _Here:
    """A stopped pool's host: this process."""

    paths: PoolPaths
    pool: Any

    @property
    def server_uri(self) -> str:
        """Where the pool will be when it is started as usual."""
        return unix_uri(self.paths.nbd_socket)

    def run_facts(self) -> dict[str, Any]:
        absent = dict.fromkeys(("pid", "uri", "control_socket", "fastpath_reason"))
        return {"running": False, **absent}

    @property
    def threads(self) -> int:
        return 0

    @property
    def answers_in_turn(self) -> bool:
        return False

    def stop(self) -> None:
        raise PoolNotRunning("the pool is not running")
