"""Who may open a volume: rules that a volume carries, and what is known of who asks.

    anyone            whoever can connect, as when there are no rules
    user:NAME|UID     a process of that user, by a Unix socket
    group:NAME|GID    a process whose user is in that group, by a Unix socket
    net:ADDR[/BITS]   a client at that address or in that network
    tls               a client that came with TLS, so with a certificate or key of its own

One rule that fits is enough. They are separated by commas, and kept with names made numbers.

What TLS says of who the client is (the name in its certificate, or of its key) nbdkit tells its
plugins from 1.42 on; it is no rule here. A user or group is the kernel's word on the other end of a
Unix socket. An address is only as good as the network: with `tls` alone any client's certificate or
key will do, so `net:` narrows down which of them, and does not replace it.

Invariants

1. root and the daemon's own user pass by a Unix socket: they can read the data device anyway.
2. Rules decide when a volume is opened. Who has it open keeps it.

Pure, but for looking up users and groups.
"""

# What happened, not that it is an error.
# ruff: noqa: N818

from __future__ import annotations

import contextlib
import errno
import grp
import ipaddress
import os
import pwd
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from thinpoold.errors import InvalidSetting, UserError

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

Lookup: TypeAlias = Callable[[str], int]

ANYONE: Final = ""
_ANYONE_WORD: Final = "anyone"
_MAX_RULES: Final = 64
_LARGEST_ID: Final = (1 << 32) - 2
_HOW: Final = "anyone, or user:NAME, group:NAME, net:ADDR/BITS and tls, separated by commas"


class AccessDenied(UserError):
    """The volume's rules do not let this client open it."""

    errno = errno.EPERM


class TooManyClients(UserError):
    """The pool has as many clients as its settings allow."""

    errno = errno.EPERM


@dataclass(frozen=True)
class Peer:
    """Who asks: user, group and process by a Unix socket, else None; address and port, else None.

    Connections of one client come from several ports: they do not tell peers apart.
    """

    uid: int | None = None
    gid: int | None = None
    address: Address | None = None
    tls: bool = False
    pid: int | None = None
    port: int | None = field(default=None, compare=False)

    def __str__(self) -> str:
        if self.uid is not None:
            return f"user {self.uid}"
        return str(self.address) if self.address is not None else "somebody"


def parse_rules(text: str) -> str:
    """Return rules in the form that is kept, '' for anyone. Raises InvalidSetting."""
    words = [word.strip() for word in text.split(",")]
    if words in ([_ANYONE_WORD], [""]):
        return ANYONE
    if len(words) > _MAX_RULES:
        raise InvalidSetting(f"allow has {len(words)} rules: at most {_MAX_RULES}; use a group")
    return ",".join(dict.fromkeys(map(_rule, words)))


def rules_text(rules: str) -> str:
    """Return kept rules as `set` takes them."""
    return rules or _ANYONE_WORD


def admit(peer: Peer, name: str, rules: str, clients: int, most: int) -> None:
    """Raise AccessDenied or TooManyClients unless `peer` may open the volume `name`.

    `clients` are connected to the pool, and may be `most` (0: no limit).
    """
    if not allows(rules, peer):
        raise AccessDenied(f"volume {name!r} is not for {peer}: it allows {rules}")
    if most and clients >= most:
        raise TooManyClients(
            f"{peer} cannot open volume {name!r}: the pool has {clients} clients, and max-clients "
            f"is {most}"
        )


def allows(rules: str, peer: Peer) -> bool:
    """Return whether kept rules let `peer` in. What makes no sense lets nobody in."""
    if rules == ANYONE or (peer.uid is not None and peer.uid in (0, os.geteuid())):
        return True
    return any(_fits(rule, peer) for rule in rules.split(","))


def _rule(word: str) -> str:
    kind, colon, value = word.partition(":")
    if word == "tls":
        return word
    if colon and kind == "user":
        return f"user:{_number(value, lambda name: pwd.getpwnam(name).pw_uid, word)}"
    if colon and kind == "group":
        return f"group:{_number(value, lambda name: grp.getgrnam(name).gr_gid, word)}"
    if colon and kind == "net":
        try:
            return f"net:{ipaddress.ip_network(value)}"
        except ValueError:
            with contextlib.suppress(ValueError):
                whole = ipaddress.ip_network(value, strict=False)
                raise InvalidSetting(
                    f"allow cannot have {word[:60]!r}: it is an address within net:{whole}"
                ) from None
    raise InvalidSetting(f"allow cannot have {word[:60]!r}: it is {_HOW}")


def _number(value: str, find: Lookup, word: str) -> int:
    if value.isascii() and value.isdigit() and len(value) <= 10 and int(value) <= _LARGEST_ID:
        return int(value)
    try:
        return find(value)
    except (KeyError, ValueError):
        raise InvalidSetting(f"allow cannot have {word[:60]!r}: there is none here") from None


def _fits(rule: str, peer: Peer) -> bool:
    kind, _, value = rule.partition(":")
    if kind == "tls":
        return peer.tls
    if kind == "net":
        return peer.address is not None and peer.address in ipaddress.ip_network(value)
    if peer.uid is None:
        return False
    if kind == "user":
        return str(peer.uid) == value
    return kind == "group" and value in map(str, _groups(peer.uid, peer.gid))


def _groups(uid: int, gid: int | None) -> list[int]:
    known = [gid] if gid is not None else []
    try:
        user = pwd.getpwuid(uid)
        return known + os.getgrouplist(user.pw_name, user.pw_gid)
    except (KeyError, OSError):
        return known
