"""Who has which volume open: connections of one client are told as one."""

import ipaddress
import os
from pathlib import Path

from thinpoold.access import Peer
from thinpoold.openers import Openers, command_of, user_name

VOLUME = b"v" * 16
OTHER = b"o" * 16
ME = Peer(uid=os.geteuid(), gid=os.getegid(), pid=os.getpid())
FAR = Peer(address=ipaddress.ip_address("192.0.2.7"), tls=True)


def test_connections_of_one_client_are_one_until_the_last_has_gone() -> None:
    openers = Openers()
    first = openers.add(VOLUME, ME, False)
    openers.add(OTHER, ME, False)
    openers.add(VOLUME, FAR, True)
    second = openers.add(VOLUME, ME, False)
    mine, far = openers.of(VOLUME)
    assert (mine["pid"], mine["connections"], mine["address"]) == (os.getpid(), 2, None)
    assert (far["pid"], far["user"], far["address"]) == (None, None, "192.0.2.7")
    assert (far["tls"], far["read_only"], far["connections"]) == (True, True, 1)
    openers.remove(first)
    assert [one["connections"] for one in openers.of(VOLUME)] == [1, 1]
    openers.remove(second)
    assert [one["address"] for one in openers.of(VOLUME)] == ["192.0.2.7"]


def test_reading_and_writing_clients_are_apart() -> None:
    openers = Openers()
    openers.add(VOLUME, ME, False)
    openers.add(VOLUME, ME, True)
    assert [one["read_only"] for one in openers.of(VOLUME)] == [False, True]


def test_a_command_says_nothing_to_terminals(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7/comm").write_bytes(b"\x1b[31mred\xff\n")
    assert command_of(7, tmp_path) == "?[31mred\N{REPLACEMENT CHARACTER}"


def test_who_cannot_be_seen_has_no_name(tmp_path: Path) -> None:
    assert command_of(8, tmp_path) is None
    assert command_of(None) is None
    assert user_name((1 << 32) - 3) is None
    assert user_name(None) is None
