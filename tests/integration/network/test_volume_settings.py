"""Access, limits and read-only of single volumes, and how many may connect, with real clients."""

import os
import pickle
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PoolMaker
from tests.integration.cli.outcomes import refused
from tests.support.client import NbdClient, NbdError
from tests.support.libnbd import nbd
from tests.support.pools import PoolRig
from tests.support.tools import free_port, run

STRANGER = 4711
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


def as_stranger(function: Callable[[], Any]) -> Any:
    """The result of a function in a process of another user and group, or what it raised."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(STRANGER, STRANGER, STRANGER)
            os.setresuid(STRANGER, STRANGER, STRANGER)
            try:
                outcome = function()
            except Exception as error:
                outcome = f"{type(error).__name__}: {error}"
            os.write(write, pickle.dumps(outcome))
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as answer:
        outcome = pickle.loads(answer.read())
    os.waitpid(pid, 0)
    return outcome


@pytest.fixture
def open_pool(new_pool: PoolMaker, tmp_path: Path) -> PoolRig:
    """A pool whose socket everybody reaches, as behind a socket unit with SocketMode=0666."""
    rig = new_pool()
    socket = Path(rig.socket)
    socket.chmod(0o666)
    for directory in socket.parents:
        if directory.stat().st_uid == os.geteuid():
            directory.chmod(directory.stat().st_mode | 0o711)
        if directory.name.startswith("pytest-of-"):
            break
    return rig


def exports(rig: PoolRig) -> list[str]:
    client = nbd.NBD()
    client.set_opt_mode(True)
    client.connect_unix(rig.socket)
    found: list[str] = []
    client.opt_list(lambda name, _description: found.append(name))
    client.opt_abort()
    return found


@needs_root
def test_users_and_groups(open_pool: PoolRig) -> None:
    rig = open_pool
    for name in ("open", "theirs", "ours", "group"):
        rig.create(name, "1M")
    rig.cli("set", "--volume", "theirs", f"allow=user:{STRANGER}")
    rig.cli("set", "--volume", "ours", "allow=user:1,tls,net:0.0.0.0/0")
    rig.cli("set", "--volume", "group", f"allow=group:{STRANGER}")

    def size(name: str) -> int:
        with rig.connect(name) as client:
            return client.size

    for name in ("open", "theirs", "group"):
        assert as_stranger(partial(size, name)) == 1 << 20
    assert as_stranger(lambda: size("ours")).startswith("NbdError")
    assert sorted(as_stranger(lambda: exports(rig))) == ["group", "open", "theirs"]
    # root, who runs the daemon, is not kept out.
    assert size("ours") == 1 << 20
    assert len(exports(rig)) == 4
    assert rig.logged("volume 'ours' is not for user 4711: it allows user:1")


@needs_root
def test_a_snapshot_is_for_those_its_origin_is_for(open_pool: PoolRig) -> None:
    rig = open_pool
    rig.create("v", "1M")
    rig.cli("set", "--volume", "v", "allow=user:1", "iops=5")
    rig.snapshot("v", "s")
    rig.cli("rollback", "v", "s")
    for name in rig.volumes():
        assert rig.json("get", "--volume", name)["settings"]["allow"] == "user:1"
    assert as_stranger(lambda: exports(rig)) == []


def test_addresses(new_pool: PoolMaker) -> None:
    rig = new_pool(start=False)
    for name, allow in (("a", "net:127.0.0.0/8"), ("b", "net:192.0.2.0/24"), ("c", "user:0,tls")):
        rig.create(name, "1M")
        rig.cli("set", "--volume", name, f"allow={allow}")
    port = free_port()
    rig.start("--listen", f"127.0.0.1:{port}")
    assert run("nbdinfo", "--size", rig.uri("a")).stdout == f"{1 << 20}\n"
    for name in ("b", "c"):
        assert run("nbdinfo", rig.uri(name), check=False).returncode != 0
    listed = run("nbdinfo", "--list", f"nbd://127.0.0.1:{port}").stdout
    assert 'export="a"' in listed
    assert 'export="b"' not in listed


def test_most_clients(new_pool: PoolMaker) -> None:
    rig = new_pool()
    rig.create("v", "1M")
    rig.cli("set", "max-clients=2")
    with rig.connect("v") as one, rig.connect("v") as two:
        with pytest.raises(NbdError):
            rig.connect("v")
        one.write(0, b"1" * 512)
        two.write(512, b"2" * 512)
        # The pool's own business is not a client's.
        rig.cli("resize", "v", "2M")
        rig.cli("set", "max-clients=3")
        with rig.connect("v") as three:
            assert three.read(0, 1024) == b"1" * 512 + b"2" * 512


def test_read_only_at_once_and_writable_again_when_opened_anew(new_pool: PoolMaker) -> None:
    rig = new_pool()
    rig.create("v", "1M")
    with rig.connect("v") as client:
        client.write(0, b"x" * 512)
        rig.cli("set", "--volume", "v", "read-only=yes")
        with pytest.raises(NbdError):
            client.write(0, b"y" * 512)
        assert client.read(0, 512) == b"x" * 512
        with NbdClient(rig.socket, "v", strict=False) as late:
            assert late.raw.is_read_only()
        rig.cli("set", "--volume", "v", "read-only=no")
    with rig.connect("v") as client:
        client.write(0, b"y" * 512)
    assert rig.volumes()["v"]["read_only"] is False


def test_a_limit_holds_on_every_way_and_can_be_taken_away(new_pool: PoolMaker) -> None:
    rig = new_pool()
    rig.create("v", "16M")
    rig.cli("set", "--volume", "v", "iops=50")
    with rig.connect("v") as one, rig.connect("v") as two:
        begun = time.monotonic()
        for number in range(25):
            one.write(number << 12, b"x" * 4096)
            two.read(number << 12, 4096)
            one.zero(number << 12, 4096)
            two.trim(number << 12, 4096)
        # A hundred requests: fifty at once, fifty in a second; they cannot have been faster.
        assert time.monotonic() - begun >= 0.9
        # What waits when the limit goes, waits no more: this is paid for in minutes.
        rig.cli("set", "--volume", "v", "iops=unlimited", "bps=64K")
        for _ in range(4):
            cookie = one.raw.aio_pread(nbd.Buffer(4 << 20), 0)
        rig.cli("set", "--volume", "v", "bps=unlimited")
        while not one.raw.aio_command_completed(cookie):
            one.raw.poll(-1)


def test_stop_does_not_wait_for_a_limit(new_pool: PoolMaker) -> None:
    rig = new_pool()
    rig.create("v", "16M")
    rig.cli("set", "--volume", "v", "bps=64K")
    client = rig.connect("v")
    for _ in range(4):
        client.raw.aio_pread(nbd.Buffer(4 << 20), 0)
    while client.raw.aio_in_flight() > 3:
        client.raw.poll(-1)
    rig.stop()


def test_settings_of_a_volume_outlive_the_daemon(new_pool: PoolMaker) -> None:
    rig = new_pool()
    rig.create("v", "1M")
    after = rig.json("set", "--volume", "v", "iops=1000", "bps=10M", "allow=tls")
    expected = {"iops": 1000, "bps": 10 << 20, "read_only": False, "allow": "tls"}
    assert after == {"settings": expected}
    rig.kill()
    assert rig.json("get", "--volume", "v") == {"settings": expected}
    text = rig.cli("get", "--volume", "v")
    assert text == "iops=1000\nbps=10M\nread-only=no\nallow=tls\n"
    rig.cli("set", "--volume", "v", *text.split())
    assert rig.json("get", "--volume", "v", "iops") == {"settings": {"iops": 1000}}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("iops=-1",), "iops cannot be '-1': it is 1 to 1000000000"),
        (("bps=1K",), "bps cannot be '1K': it is 64K to 1P"),
        (("read-only=maybe",), "yes or no"),
        (("allow=user:nobody-like-that",), "there is none here"),
        (("iops=5", "allow=all"), "allow cannot have 'all': it is anyone, or user:NAME"),
        (("on-full=error",), "a volume has no setting 'on-full': there are iops"),
    ],
)
def test_refusals_change_nothing(rig: PoolRig, words: tuple[str, ...], says: str) -> None:
    if "v" not in rig.volumes():
        rig.create("v", "1M")
    before = rig.json("get", "--volume", "v")
    refused(rig, "set", "--volume", "v", *words, says=says)
    assert rig.json("get", "--volume", "v") == before


def test_no_such_volume(rig: PoolRig) -> None:
    refused(rig, "set", "--volume", "none", "iops=5", says="no volume 'none'")
    refused(rig, "get", "--volume", "none", says="no volume 'none'")
