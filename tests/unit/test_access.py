"""Rules of who may open a volume, and how the other end of a connection is known."""

import ipaddress
import os
import pwd
import socket
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinpoold import access
from thinpoold.access import (
    ANYONE,
    AccessDenied,
    GroupsNeeded,
    Peer,
    TooManyClients,
    admit,
    allows,
    parse_rules,
    rules_text,
    with_groups,
)
from thinpoold.errors import InvalidSetting
from thinpoold.peers import address_in

NOBODY = pwd.getpwnam("nobody")
SOMEBODY = Peer(uid=4711, gid=4712)
FAR = Peer(address=ipaddress.ip_address("192.0.2.7"))
FAR_WITH_TLS = Peer(address=ipaddress.ip_address("2001:db8::1"), tls=True)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("anyone", ""),
        ("", ""),
        ("user:nobody", f"user:{NOBODY.pw_uid}"),
        ("user:4711,user:4711", "user:4711"),
        ("group:4712, tls", "group:4712,tls"),
        ("net:192.0.2.0/24,net:::1", "net:192.0.2.0/24,net:::1/128"),
    ],
)
def test_rules_are_kept_with_numbers(given: str, kept: str) -> None:
    assert parse_rules(given) == kept
    assert parse_rules(rules_text(kept)) == kept


@pytest.mark.parametrize(
    "text",
    ["tls,", "anyone,tls", "user:", "user:no such user", "user:-1", "user:4294967295", "group:x\0",
     "net:192.0.2.1/24", "net:", "host:a", "everyone", ",".join(f"user:{n}" for n in range(65))],
)  # fmt: skip
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(InvalidSetting, match="allow"):
        parse_rules(text)


def test_an_address_is_no_network_and_the_message_says_which_it_is_in() -> None:
    with pytest.raises(InvalidSetting, match=r"an address within net:192\.0\.2\.0/24"):
        parse_rules("net:192.0.2.1/24")


@pytest.mark.parametrize(
    ("rules", "peer", "may"),
    [
        (ANYONE, FAR, True),
        (ANYONE, Peer(), True),
        ("user:4711", SOMEBODY, True),
        ("user:47", SOMEBODY, False),
        ("group:4712", SOMEBODY, True),
        (f"group:{NOBODY.pw_gid}", Peer(NOBODY.pw_uid, 4712), True),
        ("group:4711", SOMEBODY, False),
        ("net:192.0.2.0/24", FAR, True),
        ("net:192.0.2.0/29", FAR, True),
        ("net:198.51.100.0/24", FAR, False),
        ("net:192.0.2.0/24", FAR_WITH_TLS, False),
        ("net:0.0.0.0/0", SOMEBODY, False),
        ("tls", FAR_WITH_TLS, True),
        ("tls", FAR, False),
        ("user:4711,tls", FAR_WITH_TLS, True),
        ("user:0", FAR, False),
        ("nonsense", FAR_WITH_TLS, False),
        ("user:1", Peer(uid=0), True),
        ("user:1", Peer(uid=os.geteuid()), True),
        ("tls", Peer(), False),
    ],
)
def test_who_may(rules: str, peer: Peer, may: bool) -> None:
    assert allows(rules, with_groups(peer)) == may


def test_judging_asks_no_name_service() -> None:
    """Whoever judges may hold a lock: it is told that somebody has to ask."""
    with pytest.raises(GroupsNeeded):
        allows("group:4711", SOMEBODY)
    with pytest.raises(GroupsNeeded):
        admit(SOMEBODY, "v", "user:4712,group:4711", 0, 0)
    # What is known of a peer is enough for these.
    assert allows("group:4712", SOMEBODY)
    assert allows("group:4711,user:4711", Peer(uid=0))
    assert not allows("group:4711", FAR)


def test_groups_are_those_that_the_system_says() -> None:
    for user in (NOBODY, pwd.getpwuid(os.getuid())):
        found = with_groups(Peer(user.pw_uid, user.pw_gid)).groups
        assert found == frozenset(os.getgrouplist(user.pw_name, user.pw_gid))
    assert with_groups(SOMEBODY).groups == frozenset()
    assert with_groups(FAR).groups == frozenset()


def test_a_user_in_many_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    def groups(name: bytes, gid: int, found: Any, count: Any) -> int:
        room, count._obj.value = count._obj.value, 1000
        if room < 1000:
            return -1
        found[:1000] = range(1000)
        return 1000

    monkeypatch.setattr(access, "_getgrouplist", groups)
    assert with_groups(Peer(NOBODY.pw_uid, 1)).groups == frozenset(range(1000))


def test_refusals_name_who_and_why() -> None:
    with pytest.raises(AccessDenied, match=r"'v' is not for user 4711: it allows tls"):
        admit(SOMEBODY, "v", "tls", 0, 0)
    with pytest.raises(
        TooManyClients, match=r"192\.0\.2\.7 .* has 3 clients, and max-clients is 3"
    ):
        admit(FAR, "v", ANYONE, 3, 3)
    admit(FAR, "v", ANYONE, 2, 3)
    admit(FAR, "v", ANYONE, 1 << 20, 0)


@given(st.ip_addresses(v=4), st.integers(0, 65535))
def test_an_internet_address(address: ipaddress.IPv4Address, port: int) -> None:
    name = struct.pack("=HH4s", socket.AF_INET, port, address.packed) + bytes(120)
    assert address_in(name) == address


@given(st.ip_addresses(v=6))
def test_an_address_of_six(address: ipaddress.IPv6Address) -> None:
    name = struct.pack("=HHI16sI", socket.AF_INET6, 1, 0, address.packed, 0) + bytes(100)
    assert address_in(name) == (address.ipv4_mapped or address)


def test_other_families_have_none() -> None:
    assert address_in(struct.pack("=H", socket.AF_UNIX) + b"/tmp/x" + bytes(100)) is None
