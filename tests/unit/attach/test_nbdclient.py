"""Command lines, and what is made of a program's last words."""

import sys
from pathlib import Path

import pytest

from thinpoold.attach import fuse, nbdclient
from thinpoold.attach.errors import AttachFailed, AttachRefused
from thinpoold.attach.handshake import Server, parse_uri
from thinpoold.errors import UserError


def test_the_line_that_connects() -> None:
    command = nbdclient.connect_command(
        "nbd-client",
        Path("/dev/nbd3"),
        Server("/run/p/nbd.sock"),
        "-a volume",
        block_size=4096,
        connections=2,
        read_only=True,
    )
    assert command == [
        *("nbd-client", "-unix", "/run/p/nbd.sock", "/dev/nbd3", "-name", "-a volume"),
        *("-block-size", "4096", "-connections", "2", "-readonly"),
    ]


def test_the_line_that_connects_to_a_port() -> None:
    command = nbdclient.connect_command(
        "nbd-client",
        Path("/dev/nbd0"),
        Server(("::1", 10810)),
        "v",
        block_size=512,
        connections=1,
        read_only=False,
    )
    assert command == [
        *("nbd-client", "::1", "10810", "/dev/nbd0", "-name", "v"),
        *("-block-size", "512", "-connections", "1"),
    ]


def test_the_line_that_disconnects() -> None:
    assert nbdclient.disconnect_command("nbd-client", Path("/dev/nbd3")) == [
        "nbd-client", "-d", "/dev/nbd3",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "Negotiation: ..size = 1MB\nbs=512\nError: Failed to setup device\n\nExiting.\n",
            "Failed to setup device",
        ),
        ("mount: /mnt: unknown filesystem type.\n", "mount: /mnt: unknown filesystem type"),
        ("", "it did not say why"),
    ],
)
def test_the_line_that_tells_why(said: str, reason: str) -> None:
    assert nbdclient.reason(said) == reason


def test_running_notes_the_process_and_reports_its_words() -> None:
    pids: list[int] = []
    nbdclient.run([sys.executable, "-c", ""], record=pids)
    assert len(pids) == 1
    with pytest.raises(AttachFailed, match="failed: so it is"):
        nbdclient.run([sys.executable, "-c", "print('so it is'); raise SystemExit(1)"])
    with pytest.raises(AttachFailed, match="No such file"):
        nbdclient.run(["/no/such/program"])


def test_a_program_that_is_missing_is_named_with_its_package() -> None:
    with pytest.raises(AttachRefused, match="install the package that-one"):
        nbdclient.find("no-such-program", "that-one")


def test_where_a_uri_points() -> None:
    server, export = parse_uri("nbd+unix:///my%20disk?socket=/run/a%26b/nbd.sock")
    assert (server.address, export) == ("/run/a&b/nbd.sock", "my disk")
    assert parse_uri("nbd://[::1]:10810/x") == (Server(("::1", 10810)), "x")
    assert parse_uri("nbd://localhost/") == (Server(("localhost", 10809)), "")


@pytest.mark.parametrize("uri", ["nbd:///x", "nbd+unix:///x", "nbds://h/x", ""])
def test_what_cannot_be_attached_from(uri: str) -> None:
    with pytest.raises(UserError, match="cannot attach from"):
        parse_uri(uri)


def test_nbdfuse_alone_without_patience(tmp_path: Path) -> None:
    words = fuse.command(
        "nbdfuse", tmp_path / "v", tmp_path / "pid", "nbd+unix:///v", read_only=True, patience=0
    )
    assert words == [
        *("nbdfuse", "-P", str(tmp_path / "pid"), "-r", str(tmp_path / "v"), "nbd+unix:///v"),
    ]
