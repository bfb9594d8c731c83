"""fio's NBD engine with verification: several jobs and connections, volume and snapshot at once."""

from pathlib import Path

import pytest

from tests.conftest import PoolMaker
from tests.support.agreement import disagreements
from tests.support.fio import fio
from tests.support.pools import PoolRig

pytestmark = pytest.mark.disk

GLOBAL = """
[global]
ioengine=nbd
iodepth=8
randrepeat=0
verify_fatal=1
"""

# Writes to the first half of every 64 KiB, checked as they go; trims of the other half.
MIXED = """
[writes-{name}]
uri={uri}
rw=randwrite
bs=4k
size=16M
io_size=8M
numjobs=2
offset_increment=16M
zonemode=strided
zonerange=32k
zonesize=32k
zoneskip=32k
verify=crc32c
verify_backlog=256

[trims-{name}]
uri={uri}
rw=randtrim
bs=4k
size=16M
io_size=8M
numjobs=2
offset=32k
offset_increment=16M
zonemode=strided
zonerange=32k
zonesize=32k
zoneskip=32k

[sizes-{name}]
uri={uri}
rw=randwrite
bssplit=512/20:4k/30:64k/30:200k/20
offset=40M
size=20M
verify=crc32c
"""


def mixed(pool: PoolRig, *names: str) -> str:
    return GLOBAL + "".join(MIXED.format(name=name, uri=pool.uri(name)) for name in names)


def check(pool: PoolRig, names: tuple[str, ...], directory: Path) -> None:
    totals = fio(directory, mixed(pool, *names))
    for name in names:
        assert totals[f"writes-{name}"]["write"] == 4096
        assert totals[f"writes-{name}"]["read"] == 4096
        assert totals[f"trims-{name}"]["trim"] == 4096
        assert totals[f"sizes-{name}"]["write"] > 100
    assert disagreements(pool) == []


@pytest.mark.both_ways
def test_volume_and_its_snapshot_at_once(pool: PoolRig, tmp_path: Path) -> None:
    """The snapshot shares what a first run wrote: both break that sharing in each other's way."""
    pool.create("vol", "64M")
    check(pool, ("vol",), tmp_path)
    pool.snapshot("vol", "snap")
    check(pool, ("vol", "snap"), tmp_path)


def test_past_the_page_cache(new_pool: PoolMaker, tmp_path: Path) -> None:
    """Through a data cache smaller than what is written, which evicts all the while."""
    pool = new_pool(cache="bufio", data_cache="16M")
    pool.create("vol", "64M")
    check(pool, ("vol",), tmp_path)
    pool.snapshot("vol", "snap")
    check(pool, ("vol", "snap"), tmp_path)
    memory = pool.status()["memory"]
    assert 0 < memory["data_cache"] <= memory["bounds"]["data_cache"] == 16 << 20


@pytest.mark.parametrize("block_size", ["128K", "1M"])
def test_other_block_sizes(new_pool: PoolMaker, tmp_path: Path, block_size: str) -> None:
    pool = new_pool(block_size=block_size)
    pool.create("vol", "64M")
    check(pool, ("vol",), tmp_path)


def test_flushes_and_fua_between_writes(pool: PoolRig, tmp_path: Path) -> None:
    pool.create("vol", "32M")
    totals = fio(
        tmp_path,
        GLOBAL
        + f"""
[durable]
uri={pool.uri("vol")}
rw=randwrite
bs=4k
size=16M
io_size=2M
numjobs=2
offset_increment=16M
fsync=4
verify=crc32c
""",
    )
    assert totals["durable"]["write"] == 1024


@pytest.mark.slow
def test_two_volumes_and_snapshots_of_both_for_long(new_pool: PoolMaker, tmp_path: Path) -> None:
    pool = new_pool("600M")
    for name in ("a", "b"):
        pool.create(name, "64M")
    check(pool, ("a", "b"), tmp_path)
    for turn in range(4):
        pool.snapshot("a", f"a{turn}", "b", f"b{turn}")
        check(pool, ("a", "b", f"a{turn}"), tmp_path)
        pool.delete(f"b{turn}")
