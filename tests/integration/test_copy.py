"""nbdcopy and qemu-img: in and out byte-identical, sparseness kept, on volume and snapshot."""

import json
import os
import random
from pathlib import Path

import pytest

from tests.conftest import PoolMaker
from tests.support.client import merged
from tests.support.pools import PoolRig
from tests.support.tools import run, run_json

pytestmark = pytest.mark.disk

MIB = 1 << 20
SIZE = 40 * MIB


def sparse_file(path: Path, seed: int, size: int = SIZE) -> Path:
    """Data in some places, holes in others, aligned to nothing in particular."""
    rng = random.Random(seed)
    with path.open("wb") as out:
        out.truncate(size)
        for _ in range(12):
            out.seek(rng.randrange(size - 300_000) // 512 * 512)
            out.write(rng.randbytes(rng.randrange(512, 300_000)))
        out.seek(size - 1000)
        out.write(rng.randbytes(1000))
    return path


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


@pytest.mark.parametrize("block_size", ["64K", "128K", "1M"])
def test_nbdcopy_there_and_back(new_pool: PoolMaker, tmp_path: Path, block_size: str) -> None:
    pool = new_pool(block_size=block_size)
    source = sparse_file(tmp_path / "source", 1)
    pool.create("vol", SIZE)
    run("nbdcopy", str(source), pool.uri("vol"))
    run("nbdcopy", pool.uri("vol"), str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    mapped = pool.volumes()["vol"]["mapped"]
    block = pool.status()["block_size"]
    # Each of the 13 pieces may touch a block more at either end than its bytes fill.
    assert 0 < mapped <= allocated(source) + 26 * block
    assert mapped < SIZE
    assert allocated(tmp_path / "back") <= mapped + MIB


def test_nbdcopy_between_volumes_and_to_its_snapshot(pool: PoolRig, tmp_path: Path) -> None:
    first, second = sparse_file(tmp_path / "1", 1), sparse_file(tmp_path / "2", 2)
    pool.create("vol", SIZE)
    pool.create("copy", SIZE)
    run("nbdcopy", str(first), pool.uri("vol"))
    pool.snapshot("vol", "snap")
    run("nbdcopy", "--flush", str(second), pool.uri("vol"))
    run("nbdcopy", pool.uri("snap"), pool.uri("copy"))
    for name, source in (("vol", second), ("snap", first), ("copy", first)):
        run("nbdcopy", pool.uri(name), str(tmp_path / name))
        assert (tmp_path / name).read_bytes() == source.read_bytes(), name


def test_qemu_img_convert_and_compare(pool: PoolRig, tmp_path: Path) -> None:
    source = sparse_file(tmp_path / "source", 3)
    pool.create("vol", SIZE)
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", str(source), pool.uri("vol"))
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", str(source), pool.uri("vol"))
    pool.snapshot("vol", "snap")
    with pool.connect("vol") as client:
        client.write(5, b"changed")
        client.flush()
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", str(source), pool.uri("snap"))
    differs = run(
        "qemu-img", "compare", "-f", "raw", "-F", "raw", pool.uri("vol"), pool.uri("snap"),
        check=False,
    )  # fmt: skip
    assert differs.returncode == 1
    assert "mismatch at offset 0" in differs.stdout
    qcow2 = tmp_path / "back.qcow2"
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", pool.uri("snap"), str(qcow2))
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(source), str(qcow2))
    assert allocated(qcow2) < SIZE // 2


def test_qemu_img_map_is_nbd_block_status(pool: PoolRig) -> None:
    pool.create("vol", SIZE)
    with pool.connect("vol") as client:
        for offset in (0, 5 * MIB + 7, 20 * MIB - 512):
            client.write(offset, os.urandom(100_000))
        client.flush()
        extents = merged(client.extents())
    found = json.loads(run("qemu-img", "map", "-f", "raw", "--output=json", pool.uri("vol")).stdout)
    seen = [(entry["start"], entry["length"], entry["data"]) for entry in found]
    assert seen == [(extent.offset, extent.length, not extent.hole) for extent in extents]
    data = [extent for extent in extents if not extent.hole]
    assert len(data) == 3
    assert all(e.offset % 65536 == 0 and e.length % 65536 == 0 for e in data)


def test_nbdinfo_map_of_an_empty_volume(pool: PoolRig) -> None:
    pool.create("vol", SIZE)
    assert run_json("nbdinfo", "--map", "--json", pool.uri("vol")) == [
        {"offset": 0, "length": SIZE, "type": 3, "description": "hole,zero"}
    ]


def test_zeroes_copied_in_take_no_space(pool: PoolRig, tmp_path: Path) -> None:
    zeroes = tmp_path / "zeroes"
    zeroes.write_bytes(bytes(4 * MIB))
    pool.create("vol", 4 * MIB)
    run("nbdcopy", str(zeroes), pool.uri("vol"))
    assert pool.volumes()["vol"]["mapped"] == 0
