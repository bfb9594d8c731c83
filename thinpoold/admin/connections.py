"""Ending connections that clients have to a volume, for one whose client will not.

Thread-safety: any thread.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable

from thinpoold.access import Peer
from thinpoold.admin.facts import Fact
from thinpoold.errors import UserError
from thinpoold.pool import Pool

# How long requests under way may take before it is said that they do.
_SECONDS = 10.0
_LOOK_AGAIN = 0.01


def disconnect(pool: Pool, name: str, client: str | None = None) -> Fact:
    """Hang up on the clients that have a volume open, or on one of them, and wait till they let go.

    `client` is a process id, or an address. Requests under way are carried out, and their answers
    go nowhere. Raises `NoSuchVolume`, and `UserError` where there is no such client, or its
    connections cannot be told from those it has to another volume.
    """
    with pool.looking():
        uuid = pool.registry.get(name).uuid
    who = _chosen(client)
    hung_up = pool.openers.hang_up(uuid, who)
    if hung_up is None:
        raise UserError(
            f"cannot disconnect the clients of volume {name!r}: one has another volume open, too, "
            "and came to both at once, so that its connections cannot be told apart; end that "
            "process, or have it let go"
        )
    if not hung_up:
        raise UserError(_nobody(pool, uuid, name, client))
    deadline = time.monotonic() + _SECONDS
    while (left := pool.openers.have(hung_up)) and time.monotonic() < deadline:
        time.sleep(_LOOK_AGAIN)
    return {"name": name, "disconnected": len(hung_up), "left": left}


def _chosen(client: str | None) -> Callable[[Peer], bool]:
    if client is None:
        return lambda peer: True
    if client.isascii() and client.isdigit():
        return lambda peer: str(peer.pid) == client
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        raise UserError(
            f"no client is called {client[:60]!r}: name a process id or an address, as 'thinpool "
            "info' has them"
        ) from None
    return lambda peer: peer.address == address


def _nobody(pool: Pool, uuid: bytes, name: str, client: str | None) -> str:
    found = pool.openers.of(uuid)
    if client is None or not found:
        return f"nobody has volume {name!r} open"
    others = ", ".join(str(one["pid"] or one["address"] or "?") for one in found)
    return f"volume {name!r} has no client {client}; there are: {others}"
