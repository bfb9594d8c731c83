"""thinpoold, the daemon itself."""

import os
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import PoolMaker
from tests.support.pools import BIN, PoolRig
from tests.support.tools import PATIENCE, run


def thinpoold(rig: PoolRig, *words: str) -> subprocess.CompletedProcess[str]:
    return run(str(BIN / "thinpoold"), *words, check=False, env=rig.env)


@contextmanager
def foreground(rig: PoolRig, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon in the foreground, as a service manager runs it, once it serves."""
    ready, ready_child = os.pipe()
    with subprocess.Popen(
        [str(BIN / "thinpoold"), "--foreground", str(rig.directory), *words],
        env={**rig.env, "THINPOOLD_READY_FD": str(ready_child)},
        pass_fds=[ready_child],
        stderr=subprocess.PIPE,
    ) as process:
        os.close(ready_child)
        assert select.select([ready], [], [], PATIENCE)[0]
        assert b'"ready"' in os.read(ready, 4096)
        os.close(ready)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def said(process: subprocess.Popen[bytes]) -> bytes:
    """The next line that a daemon says."""
    assert process.stderr is not None
    line = b""
    while not line.endswith(b"\n"):
        assert select.select([process.stderr], [], [], PATIENCE)[0], "it says nothing"
        octet = os.read(process.stderr.fileno(), 1)
        assert octet, "it has ended"
        line += octet
    return line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_in_the_foreground_until_a_signal(new_pool: PoolMaker, number: signal.Signals) -> None:
    rig = new_pool(start=False)
    rig.create("a", "1M")
    with foreground(rig) as process:
        assert rig.status()["pid"] == process.pid
        rig._note_sockets()
        # With one, its thread could be the one that the kernel chooses for the signal.
        with rig.connect("a") as client, rig.connect("a"):
            client.write(0, b"x" * 512)
            process.send_signal(number)
            assert process.wait(PATIENCE) == 0
    rig._forget()
    assert rig.volumes()["a"]["mapped"] == 64 << 10


def test_hangup_has_the_settings_read_again_and_ends_nothing(new_pool: PoolMaker) -> None:
    rig = new_pool(start=False)
    rig.create("a", "1M")
    with foreground(rig) as process:
        rig._note_sockets()
        with rig.connect("a") as client, rig.connect("a"):
            for _ in range(3):
                process.send_signal(signal.SIGHUP)
                # Before it, without the filter, that there is none.
                while b"the settings were read again" not in said(process):
                    pass
                client.write(0, b"x" * 512)
                client.flush()
            with rig.connect("a") as another:
                assert another.read(0, 512) == b"x" * 512
            assert rig.status()["pid"] == process.pid
            # It ends as ever.
            process.send_signal(signal.SIGQUIT)
            assert process.wait(PATIENCE) == 0
    rig._forget()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGALRM, signal.SIGPWR])
def test_what_else_ends_a_process_ends_it_at_once(
    new_pool: PoolMaker, number: signal.Signals
) -> None:
    rig = new_pool(start=False)
    rig.create("a", "1M")
    with foreground(rig) as process:
        rig._note_sockets()
        client = rig.connect("a")
        client.write(0, b"x" * 512)
        process.send_signal(number)
        # The client is idle, and has a connection.
        assert process.wait(PATIENCE) == -number
    rig._forget()
    rig.start()
    with rig.connect("a") as again:
        assert again.read(0, 512) == b"x" * 512


def test_stop_stops_it(new_pool: PoolMaker) -> None:
    rig = new_pool(start=False)
    with foreground(rig) as process:
        # The process is this one's child: gone for `stop` means ended, though not yet waited for.
        rig.cli("stop")
        assert process.wait(PATIENCE) == 0


def test_without_foreground_it_goes_to_the_background(new_pool: PoolMaker) -> None:
    rig = new_pool(start=False)
    done = thinpoold(rig, str(rig.directory))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("nbd+unix:///?socket=")
    rig._note_sockets()


def test_a_second_is_refused_naming_the_first(pool: PoolRig) -> None:
    done = thinpoold(pool, "--foreground", str(pool.directory))
    assert done.returncode == 1
    assert done.stderr.startswith("thinpoold: ")
    assert f"process {pool.pid}" in done.stderr
    assert done.stderr.count("\n") == 1


def test_refusals(tmp_path: Path) -> None:
    rig = PoolRig(tmp_path / "p")
    for words, status, says in (
        (("-f", str(rig.directory)), 1, "no pool in"),
        (("-f", str(rig.directory), "--listen", "0.0.0.0:1"), 1, "no pool in"),
        (("-f", str(rig.directory), "--threads", "many"), 2, "--threads"),
        (("-f", str(rig.directory), "--nonsense"), 2, "--nonsense"),
    ):
        done = thinpoold(rig, *words)
        assert done.returncode == status
        assert done.stderr.startswith("thinpoold: ")
        assert says in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_pool_that_cannot_be_opened(new_pool: PoolMaker) -> None:
    rig = new_pool(start=False)
    (rig.directory / "data").rename(rig.directory / "away")
    done = thinpoold(rig, "--foreground", str(rig.directory))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("thinpoold: ")
    assert "data" in done.stderr
    assert "Traceback" not in done.stderr
    (rig.directory / "away").rename(rig.directory / "data")
