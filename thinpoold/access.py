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
3. A name service is asked by `parse_rules` and `with_groups` alone, and may take its time, or not
   answer: those are called with no lock held, and without the interpreter's. Judging is pure; where
   it has to know a peer's groups it raises `GroupsNeeded`, and the caller asks and judges again.
"""

# What happened, not that it is an error.
# ruff: noqa: N818

from __future__ import annotations

import contextlib
import ctypes
import errno
import grp
import ipaddress
import os
import pwd
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

from thinpoold.errors import InvalidSetting, UserError

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

Lookup: TypeAlias = Callable[[str], int]

ANYONE: Final = ""
_ANYONE_WORD: Final = "anyone"
_MAX_RULES: Final = 64
_LARGEST_ID: Final = (1 << 32) - 2
# NGROUPS_MAX of Linux.
_MOST_GROUPS: Final = 1 << 16

# os.getgrouplist keeps the interpreter's lock while it waits for the name service.
_getgrouplist = ctypes.CDLL(None).getgrouplist
_getgrouplist.argtypes = [ctypes.c_char_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p]
_HOW: Final = "anyone, or user:NAME, group:NAME, net:ADDR/BITS and tls, separated by commas"


class AccessDenied(UserError):
    """The volume's rules do not let this client open it."""

    errno = errno.EPERM


class TooManyClients(UserError):
    """The pool has as many clients as its settings allow."""

    errno = errno.EPERM


class GroupsNeeded(Exception):
    """A rule is for a group, and nobody has asked yet which the peer's user is in."""


@dataclass(frozen=True)
class Peer:
    """Who asks: user, group and process by a Unix socket, else None; address and port, else None.

    Connections of one client come from several ports: they do not tell peers apart. `groups` are
    all that the user is in, None while nobody has asked (`with_groups`).
    """

    uid: int | None = None
    gid: int | None = None
    address: Address | None = None
    tls: bool = False
    pid: int | None = None
    port: int | None = field(default=None, compare=False)
    groups: frozenset[int] | None = field(default=None, compare=False)

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

    `clients` are connected to the pool, and may be `most` (0: no limit). Raises GroupsNeeded.
    """
    if not allows(rules, peer):
        raise AccessDenied(f"volume {name!r} is not for {peer}: it allows {rules}")
    if most and clients >= most:
        raise TooManyClients(
            f"{peer} cannot open volume {name!r}: the pool has {clients} clients, and max-clients "
            f"is {most}"
        )


def allows(rules: str, peer: Peer) -> bool:
    """Return whether kept rules let `peer` in. What makes no sense lets nobody in.

    Raises GroupsNeeded.
    """
    if rules == ANYONE or (peer.uid is not None and peer.uid in (0, os.geteuid())):
        return True
    return any(_fits(rule, peer) for rule in rules.split(","))


def with_groups(peer: Peer) -> Peer:
    """Return the peer with the groups that the name service says its user is in."""
    return replace(peer, groups=frozenset(_groups(peer.uid) if peer.uid is not None else ()))


def _groups(uid: int) -> list[int]:
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return []
    most = 64
    while True:
        found, count = (ctypes.c_uint * most)(), ctypes.c_int(most)
        name = user.pw_name.encode("utf-8", "surrogateescape")
        if _getgrouplist(name, user.pw_gid, found, ctypes.byref(count)) >= 0:
            return list(found)[: count.value]
        if most >= _MOST_GROUPS:
            return [user.pw_gid]
        # It says how many there are; they may become more meanwhile.
        most = min(max(2 * most, count.value), _MOST_GROUPS)


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
    if kind != "group":
        return False
    if str(peer.gid) == value:
        return True
    if peer.groups is None:
        raise GroupsNeeded
    return value in map(str, peer.groups)
