"""Load on four connections while everything that closes gates goes on, under sanitizers too.

nbdkit and Python are not instrumented; the filter in their midst is, and the sanitizer's library
comes before all others in the process of nbdkit alone: a wrapper of that name sees to it.
"""

import itertools
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import PoolMaker
from tests.support.agreement import disagreements
from tests.support.fastpath import FILTER
from tests.support.fio import fio
from tests.support.pools import BIN, PoolRig
from tests.support.tools import program

LIBRARIES = {"thread": "libtsan.so.2", "address": "libasan.so.8"}
STAMP = 65536

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
io_size={amount}
offset_increment=8M
verify=crc32c
verify_backlog=256

[reads]
rw=randread
iodepth=8
io_size={amount}
offset_increment=8M

[trims]
rw=randtrim
iodepth=2
io_size=4M
offset=32k
offset_increment=8M
"""


def wrapped(directory: Path, variant: str) -> Path:
    """A folder with an `nbdkit` that loads a sanitizer first; reports go to `report.*` there."""
    directory.mkdir()
    library = subprocess.run(
        ["cc", f"-print-file-name={LIBRARIES[variant]}"], check=True, capture_output=True, text=True
    ).stdout.strip()
    options = f"log_path={directory}/report:exitcode=66"
    script = directory / "nbdkit"
    # Leaks: Python keeps what it has to the end, and says so to nobody.
    script.write_text(
        f"#!/bin/sh\n"
        f"export TSAN_OPTIONS='{options}' ASAN_OPTIONS='{options}:detect_leaks=0'\n"
        f'LD_PRELOAD={library} exec {program("nbdkit")} "$@"\n'
    )
    script.chmod(0o755)
    return directory


def started(pool: PoolRig, filter_: Path, wrapper: Path | None) -> None:
    pool.env["THINPOOL_FASTPATH"] = str(filter_)
    if wrapper is not None:
        # The daemon looks beside its own interpreter first; there is no nbdkit there.
        assert not (BIN / "nbdkit").exists()
        pool.env["PATH"] = os.pathsep.join((str(wrapper), pool.env["PATH"]))
    pool.start("--threads", "1")


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


def under_load(pool: PoolRig, directory: Path, amount: str) -> int:
    """Load and administrator together; returns how many turns the latter has had."""
    pool.create("v", "16M")
    for name in ("w", "r", "g"):
        pool.create(name, "2M")
    administrator = Administrator(pool)
    administrator.start()
    try:
        totals = fio(directory, JOBS.format(uri=pool.uri("v"), amount=amount))
    finally:
        administrator.finish()
    assert totals["writes"]["write"] > 1000
    assert disagreements(pool) == []
    return administrator.turns


@pytest.mark.disk
def test_nothing_is_lost_or_seen_that_should_not_be(new_pool: PoolMaker, tmp_path: Path) -> None:
    pool = new_pool("512M", start=False)
    started(pool, FILTER, None)
    assert under_load(pool, tmp_path, "4M") > 0


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["thread", "address"])
def test_nor_do_sanitizers_see_anything(
    new_pool: PoolMaker, tmp_path: Path, variant: str, filter_of: Callable[[str], Path]
) -> None:
    wrapper = wrapped(tmp_path / "bin", variant)
    pool = new_pool("512M", start=False)
    started(pool, filter_of(variant), wrapper)
    assert "libtsan" in maps(pool) or "libasan" in maps(pool)
    turns = under_load(pool, tmp_path, "24M")
    pool.stop()
    reports = [path.read_text() for path in wrapper.glob("report*")]
    assert reports == []
    assert turns > 1


def maps(pool: PoolRig) -> str:
    """What the daemon's process has loaded."""
    return Path(f"/proc/{pool.pid}/maps").read_text()
