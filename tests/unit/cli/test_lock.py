"""The pool's lock: one holder, named to others, handed through exec, gone with its process."""

import os
import select
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from thinpoold import lock
from thinpoold.errors import DeviceError, PoolLocked
from thinpoold.paths import PoolPaths, pool_paths


@pytest.fixture
def paths(tmp_path: Path) -> PoolPaths:
    return pool_paths(tmp_path)


def test_the_second_is_refused_and_told_who(paths: PoolPaths) -> None:
    fd = lock.acquire(paths, "thinpool create")
    assert lock.is_held(paths)
    assert lock.holder(paths) == lock.Holder(os.getpid(), "thinpool create")
    with pytest.raises(PoolLocked, match=f"process {os.getpid()} \\(thinpool create\\)") as refusal:
        lock.acquire(paths, "thinpool list", wait=0.05)
    assert refusal.value.pid == os.getpid()
    os.close(fd)
    assert not lock.is_held(paths)
    os.close(lock.acquire(paths, "thinpool list"))


def test_a_holder_that_did_not_say_who_it_is(paths: PoolPaths) -> None:
    fd = lock.acquire(paths, "x")
    os.ftruncate(fd, 0)
    with pytest.raises(PoolLocked, match="another process"):
        lock.acquire(paths, "y")
    os.close(fd)


def test_no_lock_file(paths: PoolPaths) -> None:
    assert not lock.is_held(paths)
    assert lock.holder(paths) == lock.Holder(0, "")


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="No such file"):
        lock.acquire(pool_paths(tmp_path / "no"), "x")


def test_the_lock_outlives_exec_and_dies_with_the_process(paths: PoolPaths) -> None:
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from thinpoold import lock, paths\n"
        "fd = lock.acquire(paths.pool_paths(Path(sys.argv[1])), lock.DAEMON)\n"
        "os.set_inheritable(fd, True)\n"
        "os.execv('/bin/sh', ['sh', '-c', 'echo ready; read line'])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(paths.directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        with pytest.raises(PoolLocked, match=f"process {child.pid} .*it runs already"):
            lock.acquire(paths, "x")
        child.kill()
    os.close(lock.acquire(paths, "x"))


def test_nobody_waits_for_a_daemon(paths: PoolPaths) -> None:
    fd = lock.acquire(paths, lock.DAEMON)
    with pytest.raises(PoolLocked, match="it runs already"):
        lock.acquire(paths, lock.DAEMON, wait=600)
    os.close(fd)


def test_waiting_for_a_short_command(paths: PoolPaths) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from thinpoold import lock, paths\n"
        "print('ready', flush=True)\n"
        "lock.acquire(paths.pool_paths(Path(sys.argv[1])), 'x', wait=600)\n"
        "print('taken', flush=True)\n"
    )
    fd = lock.acquire(paths, "y")
    with subprocess.Popen(
        [sys.executable, "-c", program, str(paths.directory)], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        assert not select.select([child.stdout], [], [], 0.1)[0]
        os.close(fd)
        assert child.stdout.readline() == b"taken\n"


def test_many_share_it_and_leave_nothing_in_it(paths: PoolPaths) -> None:
    os.close(lock.acquire(paths, "thinpool create"))
    before = paths.lock.read_bytes()
    one, two = lock.share(paths), lock.share(paths)
    assert not lock.is_held(paths)
    with pytest.raises(PoolLocked, match="is being read") as caught:
        lock.acquire(paths, "x")
    # Not the one that had it alone once.
    assert caught.value.pid == 0
    os.close(one)
    with pytest.raises(PoolLocked):
        lock.acquire(paths, "x")
    os.close(two)
    assert paths.lock.read_bytes() == before
    os.close(lock.acquire(paths, "x"))


def test_it_is_not_shared_with_who_has_it_alone(paths: PoolPaths) -> None:
    fd = lock.acquire(paths, "thinpool create")
    with pytest.raises(PoolLocked, match=f"by process {os.getpid()} .thinpool create."):
        lock.share(paths)
    os.close(fd)


def test_a_run_directory_is_one_daemons(paths: PoolPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_RUN_WAIT", 0.0)
    reading = replace(paths, run_dir=paths.directory / "run", read_only=True)
    reading.run_dir.mkdir()
    assert not lock.is_held(reading)
    fd = lock.acquire_run(reading)
    assert lock.is_held(reading)
    assert lock.holder(reading) == lock.Holder(os.getpid(), lock.DAEMON)
    with pytest.raises(PoolLocked, match=f"served read-only, by process {os.getpid()}"):
        lock.acquire_run(reading)
    os.close(fd)
    assert not lock.is_held(reading)
