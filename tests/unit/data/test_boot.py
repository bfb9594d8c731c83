"""Telling boots apart, also in a container."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from thinpoold import boot
from thinpoold.boot import NO_BOOT, Boot, Since

ONE, OTHER = b"1" * 16, b"2" * 16


@pytest.mark.parametrize(
    ("earlier", "now", "since"),
    [
        (Boot(ONE, own=True), Boot(ONE, own=True), Since.SAME),
        (Boot(ONE, own=True), Boot(OTHER, own=True), Since.OTHER),
        # Either may be a container's: the machine may live.
        (Boot(ONE, own=False), Boot(OTHER, own=True), Since.UNKNOWN),
        (Boot(ONE, own=True), Boot(OTHER, own=False), Since.UNKNOWN),
        (Boot(ONE, own=False), Boot(OTHER, own=False), Since.UNKNOWN),
        # An id that never changes: the machine is younger than it was.
        (Boot(ONE, True, 9), Boot(ONE, True, 8), Since.UNKNOWN),
        (Boot(ONE, False, 9), Boot(ONE, False, 8), Since.UNKNOWN),
        (Boot(ONE, True, 9), Boot(ONE, True, 9), Since.SAME),
        (Boot(ONE, True, 9), Boot(OTHER, True, 8), Since.OTHER),
        # The same run of one container.
        (Boot(ONE, own=False), Boot(ONE, own=False), Since.SAME),
        (NO_BOOT, Boot(ONE, own=True), Since.UNKNOWN),
        (Boot(ONE, own=True), NO_BOOT, Since.UNKNOWN),
        (NO_BOOT, NO_BOOT, Since.UNKNOWN),
    ],
)
def test_what_became_of_the_machine(earlier: Boot, now: Boot, since: Since) -> None:
    assert now.since(earlier) is since


def test_this_machines_boot_is_told_as_often_as_asked() -> None:
    found = boot.current()
    again = boot.current()
    assert found == again
    assert again.since(found) is Since.SAME
    assert 0 < found.uptime_ns <= again.uptime_ns
    assert len(found.id) == 16


def test_where_there_is_none_nothing_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boot, "BOOT_ID", tmp_path / "missing")
    assert boot.current() == NO_BOOT


@pytest.mark.parametrize("contained", [False, True])
def test_a_service_manager_hands_it_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contained: bool
) -> None:
    """As to the daemon's unit, which sees nothing of /proc/sys."""
    monkeypatch.setattr(boot, "BOOT_ID", tmp_path / "missing")
    monkeypatch.setattr(boot, "CONTAINER", tmp_path / ("." if contained else "container"))
    monkeypatch.setenv(boot.ENVIRONMENT, "0123456789abcdef0123456789abcdef")
    found = boot.current()
    assert (found.id.hex(), found.own) == ("0123456789abcdef0123456789abcdef", not contained)
    for nonsense in ("", "0123", "x" * 32):
        monkeypatch.setenv(boot.ENVIRONMENT, nonsense)
        assert boot.current() == NO_BOOT


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
@pytest.mark.parametrize("over", ["/proc/sys/kernel/random/boot_id", None])
def test_an_id_that_is_mounted_over_is_not_the_kernels(tmp_path: Path, over: str | None) -> None:
    """As systemd-nspawn does it, for real."""
    fake = tmp_path / "boot_id"
    fake.write_text("01234567-89ab-cdef-0123-456789abcdef\n")
    mount = f"mount --bind {fake} {over}; " if over else ""
    code = "from thinpoold import boot; print(boot.current().own, boot.current().id.hex())"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f'{mount}exec "$0" -c "$1"', sys.executable, code],
        capture_output=True,
        text=True,
        check=True,
    )
    own, boot_id = done.stdout.split()
    assert own == str(over is None)
    assert (boot_id == "0123456789abcdef0123456789abcdef") == (over is not None)
