"""Data on a block device with sectors of 4096 bytes, which direct I/O cannot go below."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PoolMaker
from tests.support.loop import Loops, loop_devices
from tests.support.tools import run

MIB = 1 << 20
SIZE = 32 * MIB


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A loop device with such sectors."""
    with loop_devices() as loops:
        yield sectors_of_4096(loops, tmp_path / "backing", SIZE)


@pytest.mark.parametrize("cache", ["page", "bufio"])
def test_pieces_smaller_than_a_sector_are_kept(
    disk: Path, new_pool: PoolMaker, cache: str, seed: int
) -> None:
    """Writes at odd places and of odd lengths, and zeroes; then the mark at the end, and growth."""
    rng = random.Random(seed)
    rig = new_pool("16M", data=str(disk), cache=cache)
    assert rig.status()["cache"] == cache
    rig.create("v", "8M")
    expected = bytearray(8 * MIB)
    with rig.connect("v") as client:
        for _ in range(60):
            at, count = rng.randrange(7 * MIB), rng.choice((1, 511, 512, 4095, 4097, 70001))
            if rng.random() < 0.2:
                client.zero(at, count)
                expected[at : at + count] = bytes(count)
            else:
                octets = rng.randbytes(count)
                client.write(at, octets)
                expected[at : at + count] = octets
        client.flush()
        assert client.read_all() == expected
    rig.cli("grow", "--size", "24M")
    rig.snapshot("v", "s")
    rig.kill()
    rig.start()
    for name in ("v", "s"):
        with rig.connect(name) as client:
            assert client.read_all() == expected
    rig.stop()
    assert rig.check() == []


def sectors_of_4096(loops: Loops, backing: Path, size: int) -> Path:
    """A loop device with such sectors over a new sparse file."""
    backing.touch()
    os.truncate(backing, size)
    device = loops.attach(backing, "--sector-size", "4096")
    assert run("blockdev", "--getss", str(device)).stdout.strip() == "4096"
    return device
