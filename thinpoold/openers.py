"""Who has which volume open: what `list` tells of clients, one for all connections alike.

A client is a process at a Unix socket, or an address. What the kernel's nbd has open is known by
the process that handed it the connection, which may be gone.

Thread-safety: any thread.
"""

from __future__ import annotations

import logging
import pwd
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from thinpoold import clients
from thinpoold.access import Peer
from thinpoold.claims import Claims
from thinpoold.clients import Place
from thinpoold.ledger import Guest, name_digest

log = logging.getLogger(__name__)

PROC = Path("/proc")


@dataclass(frozen=True)
class Client:
    """Who has a volume open, and how. `command` is the process's name, as it was then."""

    peer: Peer
    command: str | None
    read_only: bool

    def __str__(self) -> str:
        return described(self.peer, self.command)


@dataclass(frozen=True, eq=False)
class Opening:
    """One connection that has a volume open since then; each is one of its own."""

    volume: bytes
    client: Client
    since: datetime


class Openers:
    """All connections that have a volume open."""

    def __init__(self) -> None:
        # Where this process waits for clients.
        self.addresses: clients.Addresses = frozenset()
        self._lock = threading.Lock()
        # By volume, in the order in which they came; guarded by the lock.
        self._openings: dict[bytes, dict[Opening, None]] = {}
        # Guarded by the lock: those at Unix sockets.
        self._claims = Claims[Opening]()

    def add(self, volume: bytes, peer: Peer, read_only: bool) -> Opening:
        """Note a connection that has opened the volume with this uuid."""
        client = Client(peer, command_of(peer.pid), read_only)
        opening = Opening(volume, client, datetime.now(UTC))
        with self._lock:
            self._openings.setdefault(volume, {})[opening] = None
            if peer.address is None:
                # Under the lock: of two that come at once each is to know what the other claims.
                self._claims.add(opening, self._sockets(peer.pid))
        return opening

    def remove(self, opening: Opening) -> None:
        """Forget a connection that has ended."""
        with self._lock:
            of_volume = self._openings[opening.volume]
            del of_volume[opening]
            if not of_volume:
                del self._openings[opening.volume]
            self._claims.remove(opening)

    def _sockets(self, pid: int | None) -> set[int]:
        try:
            return clients.sockets_of(self.addresses, pid) if self.addresses else set()
        except OSError as error:
            # Just `hang_up` will not find it then.
            log.warning("cannot look for a client's connection: %s", error)
            return set()

    def have(self, openings: Iterable[Opening]) -> int:
        """How many of these are still there."""
        with self._lock:
            return sum(one in self._openings.get(one.volume, ()) for one in openings)

    def hang_up(self, volume: bytes, who: Callable[[Peer], bool]) -> list[Opening] | None:
        """Shut the connections that clients have to a volume; return them.

        Clients are those of whom `who` says so. None, and nothing is shut, where a connection
        cannot be told from one that has another volume open.
        """
        with self._lock:
            chosen = [one for one in self._openings.get(volume, ()) if who(one.client.peer)]
            peers = [one.client.peer for one in chosen]
            pids = {peer.pid for peer in peers if peer.address is None}
            there = set[int]().union(*(clients.sockets_of(self.addresses, pid) for pid in pids))
            sockets = self._claims.of(chosen, there)
            if sockets is None:
                return None
            clients.hang_up_on(self.addresses, sockets)
            places = {(str(one.address), one.port) for one in peers if one.port is not None}
            clients.hang_up_at(self.addresses, places)
        return chosen

    def places(self) -> set[Place]:
        """Where those are that have come over a network."""
        with self._lock:
            peers = [one.client.peer for some in self._openings.values() for one in some]
        return {(str(peer.address), peer.port) for peer in peers if peer.port is not None}

    def of(self, volume: bytes) -> list[dict[str, Any]]:
        """Say who has a volume open, who came first before the others."""
        with self._lock:
            found = list(self._openings.get(volume, ()))
        counts = Counter(one.client for one in found)
        first = {one.client: one.since for one in reversed(found)}
        return [
            {
                "pid": client.peer.pid,
                "command": client.command,
                "uid": client.peer.uid,
                "user": user_name(client.peer.uid),
                "address": str(client.peer.address) if client.peer.address is not None else None,
                "tls": client.peer.tls,
                "read_only": client.read_only,
                "connections": count,
                "since": first[client].isoformat(timespec="seconds").replace("+00:00", "Z"),
            }
            for client, count in counts.items()
        ]


def guest(peer: Peer, name: str) -> Guest:
    """Return what the ledger is to remember of a client that opens a volume by this name."""
    # Connections to this machine's own addresses are of clients that die with it.
    network = peer.address is not None and not peer.address.is_loopback
    # Nobody else ever has a stable name.
    who = described(peer, command_of(peer.pid))
    return Guest(who, network, name_digest(name) if "/" not in name else bytes(16))


def described(peer: Peer, command: str | None) -> str:
    """Say who that is, for messages; `command` is its process's name."""
    return str(peer) if command is None else f"{command} (process {peer.pid}, {peer})"


def command_of(pid: int | None, proc: Path = PROC) -> str | None:
    """Return a process's name; None when there is none, or it is hidden from us."""
    if pid is None:
        return None
    try:
        name = (proc / str(pid) / "comm").read_bytes().decode(errors="replace").rstrip("\n")
    except OSError:
        return None
    # A process names itself: what it chose is not to control a terminal.
    return "".join(one if one.isprintable() else "?" for one in name)


def user_name(uid: int | None) -> str | None:
    """Return a user's name; None for one without."""
    try:
        return pwd.getpwuid(uid).pw_name if uid is not None else None
    except KeyError:
        return None
