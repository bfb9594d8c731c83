"""Load on four connections while everything that closes gates goes on, under sanitizers too.

nbdkit with Python in it does not start with a sanitizer's library before all others: libc's lock of
locales is never let go. So those runs do without nbdkit: inside.py makes its calls.
"""

import itertools
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import PoolMaker
from tests.support.agreement import disagreements
from tests.support.fio import fio
from tests.support.pools import PoolRig
from tests.support.tools import run

LIBRARIES = {"thread": "libtsan.so.2", "address": "libasan.so.8"}
STAMP = 65536
REPORTED = 66

# Each writer checks a region of its own as it goes; half of each block, the other half is trimmed.
JOBS = """
[global]
ioengine=nbd
uri={uri}
randrepeat=0
verify_fatal=1
size=8M
bs=4k
numjobs=2
zonemode=strided
zonerange=32k
zonesize=32k
zoneskip=32k

[writes]
rw=randwrite
iodepth=8
io_size=4M
offset_increment=8M
verify=crc32c
verify_backlog=256

[reads]
rw=randread
iodepth=8
io_size=4M
offset_increment=8M

[trims]
rw=randtrim
iodepth=2
io_size=4M
offset=32k
offset_increment=8M
"""


class Administrator(threading.Thread):
    """Snapshots, rollbacks, discards of whole volumes, deletes and resizes, until told to end."""

    def __init__(self, pool: PoolRig) -> None:
        super().__init__(daemon=True)
        self.pool = pool
        self.ending = threading.Event()
        self.turns = 0
        self.trouble: BaseException | None = None

    def run(self) -> None:
        try:
            for turn in itertools.count():
                if self.ending.is_set():
                    return
                self.turn(turn)
                self.turns = turn + 1
        except BaseException as trouble:
            self.trouble = trouble

    def turn(self, turn: int) -> None:
        pool = self.pool
        pool.snapshot("v", f"s{turn}", "w", f"t{turn}")
        with pool.connect(f"t{turn}") as frozen, pool.connect("w") as live:
            # What `w` has is of one stamp, in the snapshot for ever.
            before = frozen.read_all()
            assert before == before[:1] * len(before)
            live.write(0, bytes([turn % 255 + 1]) * live.size)
            assert live.read_all() == bytes([turn % 255 + 1]) * live.size
            assert frozen.read_all() == before
            if turn % 2:
                live.trim(0, live.size)
                assert live.read_all() == bytes(live.size)
        pool.await_released("r")
        pool.cli("rollback", "r", f"t{turn}", "--discard-current")
        with pool.connect("r") as rolled:
            assert rolled.read_all() == before
        with pool.connect("g") as growing:
            growing.write(0, b"g" * STAMP)
            pool.cli("resize", "g", str((turn + 2) * (8 << 20)))
            assert growing.read(0, STAMP) == b"g" * STAMP
        if turn:
            pool.delete(f"s{turn - 1}", f"t{turn - 1}")

    def finish(self) -> None:
        self.ending.set()
        self.join()
        if self.trouble is not None:
            raise self.trouble


def under_load(pool: PoolRig, directory: Path, runs: int) -> int:
    """Load and administrator together; returns how many turns the latter has had."""
    pool.create("v", "16M")
    for name in ("w", "r", "g"):
        pool.create(name, "2M")
    administrator = Administrator(pool)
    administrator.start()
    try:
        # One pass over each region a run: fio takes a block that it wrote twice for a bad one.
        while runs > 0 or (administrator.turns == 0 and administrator.is_alive()):
            runs -= 1
            totals = fio(directory, JOBS.format(uri=pool.uri("v")))
            assert totals["writes"]["write"] > 1000
    finally:
        administrator.finish()
    assert disagreements(pool) == []
    return administrator.turns


def test_nothing_is_lost_or_seen_that_should_not_be(new_pool: PoolMaker, tmp_path: Path) -> None:
    under_load(new_pool("512M"), tmp_path, 1)


@pytest.mark.slow
def test_nothing_is_in_a_long_run(new_pool: PoolMaker, tmp_path: Path) -> None:
    assert under_load(new_pool("512M"), tmp_path, 40) > 5


def inside(tmp_path: Path, filter_: Path, sanitizer: str, turns: int) -> tuple[int, str, list[str]]:
    """Status, output and reports of a run without nbdkit; a sanitizer's first report ends it."""
    library = run("cc", f"-print-file-name={LIBRARIES[sanitizer]}").stdout.strip()
    options = f"log_path={tmp_path}/report:exitcode={REPORTED}:halt_on_error=1"
    script = Path(__file__).with_name("inside.py")
    done = run(
        *(sys.executable, "-P", str(script), str(tmp_path / "p"), str(filter_), str(turns)),
        check=False,
        env={
            **os.environ,
            "LD_PRELOAD": library,
            "TSAN_OPTIONS": options,
            # Leaks are counted by the program itself: Python keeps what it has to the end.
            "ASAN_OPTIONS": f"{options}:detect_leaks=0",
        },
    )
    reports = [path.read_text() for path in tmp_path.glob("report*")]
    return done.returncode, done.stdout + done.stderr, reports


@pytest.mark.parametrize(
    ("sanitizer", "turns"),
    [
        ("thread", 8),
        ("address", 8),
        pytest.param("thread", 100, marks=pytest.mark.slow),
        pytest.param("address", 100, marks=pytest.mark.slow),
    ],
)
def test_nor_do_sanitizers_see_anything(
    tmp_path: Path, sanitizer: str, turns: int, filter_of: Callable[[str], Path]
) -> None:
    status, said, reports = inside(tmp_path, filter_of(sanitizer), sanitizer, turns)
    assert (status, reports) == (0, []), said
    assert int(said.split()[0]) > 100


def test_but_they_would_without_the_gate(tmp_path: Path, filter_of: Callable[[str], Path]) -> None:
    """So they do see what goes on between Python and the filter: races, or a table that is gone."""
    status, said, reports = inside(tmp_path, filter_of("racing"), "thread", 200)
    assert status == REPORTED, said
    assert any("data race" in report or "SEGV" in report for report in reports)
