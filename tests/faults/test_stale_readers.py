"""Processes that look at a running pool's metadata, and die or stop in the midst of it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import PoolMaker
from tests.support.pools import PoolRig
from tests.support.tools import PATIENCE
from thinmeta.store.lmdb import LmdbStore
from thinpoold import admin, pinned
from thinpoold.errors import NoSpace
from thinpoold.pool import Pool, create_pool
from thinpoold.settings import Settings

READER = """if True:
    import sys
    from pathlib import Path
    from thinmeta.store.lmdb import LmdbStore
    with LmdbStore(Path(sys.argv[1]), read_only=True).snapshot():
        print("reading", flush=True)
        sys.stdin.readline()
"""


@contextmanager
def reader(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that reads the last commit, until it is told to end."""
    with subprocess.Popen(
        [sys.executable, "-c", READER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"reading\n"
        try:
            yield process
        finally:
            process.kill()


def wait_until(true: Callable[[], bool], complaint: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, complaint
        time.sleep(0.05)


def seen(rig: PoolRig) -> int | None:
    """Who reads an old commit, as `status` has it."""
    found = rig.status()["metadata"]["reader"]
    return None if found is None else int(found["pid"])


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(signal.SIGKILL, id="killed"),
        pytest.param(signal.SIGSTOP, id="stopped", marks=pytest.mark.slow),
    ],
)
def test_a_reader_of_an_old_commit_is_seen_until_it_has_gone(
    new_pool: PoolMaker, how: signal.Signals
) -> None:
    rig = new_pool()
    rig.create("before", "1M")
    with reader(rig.directory / "metadata.lmdb") as process:
        rig.create("after", "1M")
        wait_until(lambda: seen(rig) == process.pid, "nobody sees the reader")
        process.send_signal(how)
        if how == signal.SIGSTOP:
            assert seen(rig) == process.pid
            process.kill()
        wait_until(lambda: seen(rig) is None, "a dead reader is not forgotten")


def test_what_a_dead_reader_kept_is_used_again(tmp_path: Path) -> None:
    path = tmp_path / "m"
    store = LmdbStore(path, create=True)
    block = 0

    def load() -> int:
        nonlocal block
        for _ in range(300):
            block += 1
            store.commit({block % 50: bytes([block % 251]) * 4096}, (), {})
        return store.file_size()

    load()
    with reader(path) as process:
        process.kill()
        process.wait()
        assert store.old_reader() is None
        before = load()
        assert load() == before
    with reader(path) as process:
        process.send_signal(signal.SIGSTOP)
        load()
        found = store.old_reader()
        assert found is not None
        assert found.pid == process.pid
    store.close()


def test_a_reader_that_costs_too_much_stops_the_growth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool says whose fault it is, and goes on by itself when that has ended."""
    monkeypatch.setattr(pinned, "MOST_BYTES", 0)
    directory = tmp_path / "p"
    create_pool(directory, size=1 << 30, settings=Settings(on_full="error"))
    pool = Pool.open(directory)
    admin.create(pool, "v", 1 << 30)
    volume = pool.open_volume("v")
    core = pool.core

    def look() -> None:
        core.ticks = 4
        core._tick()

    with reader(directory / "metadata.lmdb") as process:
        process.send_signal(signal.SIGSTOP)
        admin.create(pool, "w", 1 << 20)
        look()
        numbers = iter(range(20_000))

        def load() -> None:
            for number in numbers:
                volume.pwrite(b"x" * 512, number * 7919 % 16384 * 65536)
                if number % 16 == 0:
                    core.flush()
                    look()

        with pytest.raises(NoSpace, match=f"process {process.pid} reads an old commit"):
            load()
        assert admin.status(pool)["mode"] == "out-of-metadata-space"
        admin.delete(pool, ["w"])
    process.wait()
    look()
    assert admin.status(pool)["mode"] == "write"
    admin.create(pool, "again", 1 << 20)
    pool.close_volume(volume)
    pool.close()
