"""The log of a daemon whose clients do what is refused: what is in it, and that it stays small."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.conftest import PoolMaker
from tests.support.client import NbdClient, NbdError
from tests.support.pools import PoolRig
from tests.support.tools import PATIENCE, free_port

TIMES = 3000


def log_of(rig: PoolRig) -> str:
    return (rig.directory / "thinpoold.log").read_text()


def keeper_of(rig: PoolRig) -> int:
    """The process that reads what the daemon writes to stderr."""
    pipe = os.readlink(f"/proc/{rig.pid}/fd/2")
    assert pipe.startswith("pipe:")
    for process in Path("/proc").iterdir():
        with suppress(OSError):
            if process.name.isdigit() and os.readlink(process / "fd" / "0") == pipe:
                return int(process.name)
    raise AssertionError("nobody keeps the log")


def write_read_only(rig: PoolRig) -> Callable[[], None]:
    client = rig.connect("looked-at", strict=False)
    return lambda: client.write(0, b"x" * 512)


def read_past_the_end(rig: PoolRig) -> Callable[[], None]:
    client = rig.connect("looked-at", strict=False)
    offsets = iter(range(1 << 20, 1 << 40, 512))
    return lambda: client.raw.pread(512, next(offsets)) and None


def write_what_has_no_room(rig: PoolRig) -> Callable[[], None]:
    client = rig.connect("large")
    offsets = iter(range(0, 1 << 30, 1 << 16))
    return lambda: client.write(next(offsets), b"x" * 512)


@pytest.mark.both_ways
@pytest.mark.parametrize(
    ("act", "volume", "says"),
    [
        (write_read_only, "looked-at", "write request on readonly connection"),
        (read_past_the_end, "looked-at", "out of range"),
        (write_what_has_no_room, "large", "write at"),
    ],
)
def test_a_refusal_is_one_line_with_volume_and_client(
    new_pool: PoolMaker,
    act: Callable[[PoolRig], Callable[[], None]],
    volume: str,
    says: str,
) -> None:
    rig = new_pool("16M", start=False, on_full="error")
    rig.start("--threads", "1")
    rig.create("looked-at", "1M", "--read-only")
    rig.create("large", "1G")
    refused, once = 0, act(rig)
    for _ in range(TIMES):
        try:
            once()
        except Exception:
            refused += 1
    assert refused > TIMES / 2
    lines = rig.logged(says)
    assert len(lines) == 1, lines
    line = lines[0]
    assert f"volume {volume!r}, python" in line
    assert f"(process {os.getpid()}, user {os.geteuid()})" in line
    before = len(log_of(rig))
    assert before < 4096
    rig.stop()
    # Whoever comes later sees how many there were.
    assert len(rig.logged(says, f"({refused - 1} more like it")) == 1
    assert "Traceback" not in log_of(rig)
    assert "\n\n" not in log_of(rig)


def test_so_it_is_where_a_connection_has_several_threads(new_pool: PoolMaker) -> None:
    """nbdkit names the threads then, and not the connection."""
    rig = new_pool("16M", start=False)
    rig.start("--threads", "4")
    rig.create("looked-at", "1M", "--read-only")
    once = write_read_only(rig)
    for _ in range(TIMES):
        with pytest.raises(NbdError):
            once()
    lines = rig.logged("write request on readonly connection")
    assert len(lines) == 1, lines
    assert " nbdkit: a client: " in lines[0]


def test_who_may_open_nothing_fills_nothing(pool: PoolRig) -> None:
    pool.create("secret", "1M")
    for name in ("nothing", "secre", "s" * 100):
        for _ in range(30):
            with pytest.raises(NbdError):
                NbdClient(pool.socket, name)
        (line,) = pool.logged("open: ", f"'{name}'")
        assert f"process {os.getpid()}" in line
    assert len(log_of(pool)) < 4096


@contextmanager
def no_descriptors(rig: PoolRig, port: int) -> Iterator[None]:
    """Clients of a port that have taken all descriptors: nbdkit tries again, without a pause."""
    with ExitStack() as taken:
        for _ in range(128):
            taken.enter_context(socket.create_connection(("127.0.0.1", port)))
        yield


def test_nbdkits_own_loop_fills_nothing(new_pool: PoolMaker) -> None:
    rig, port = new_pool(start=False), free_port()
    rig.start("--listen", f"127.0.0.1:{port}", prefix=["prlimit", "--nofile=100:100"])
    keeper = keeper_of(rig)
    read = Path(f"/proc/{keeper}/io")
    with no_descriptors(rig, port):
        rig.logged("Too many open files")
        # It has been told the same for a megabyte.
        deadline = time.monotonic() + PATIENCE
        while int(read.read_text().split()[1]) < 1 << 20:
            assert time.monotonic() < deadline
    assert len(log_of(rig)) < 4096


def test_the_log_is_made_anew_when_it_was_moved_away(pool: PoolRig) -> None:
    for name in ("one", "two"):
        with pytest.raises(NbdError):
            NbdClient(pool.socket, name)
        pool.logged(f"'{name}'")
        (pool.directory / "thinpoold.log").rename(pool.directory / f"log-{name}")
        (pool.directory / "thinpoold.log").touch()
    assert "'one'" not in (pool.directory / "log-two").read_text()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_nobody_waits_for_the_log(pool: PoolRig, number: signal.Signals) -> None:
    pool.create("a", "1M", "--read-only")
    keeper = keeper_of(pool)
    os.kill(keeper, number)
    try:
        with pool.connect("a", strict=False) as client:
            # More than the pipe holds.
            for _ in range(20000):
                with pytest.raises(NbdError):
                    client.write(0, b"x" * 512)
            assert client.read(0, 512) == bytes(512)
        assert pool.cli("list")
    finally:
        if number == signal.SIGSTOP:
            os.kill(keeper, signal.SIGCONT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_the_log_is_kept_to_the_end(pool: PoolRig, number: signal.Signals) -> None:
    keeper = keeper_of(pool)
    os.kill(keeper, number)
    handle = os.pidfd_open(keeper)
    with pytest.raises(NbdError):
        NbdClient(pool.socket, "nothing")
    pool.logged("'nothing'")
    pool.kill()
    pool._await_end(handle)
    os.close(handle)
