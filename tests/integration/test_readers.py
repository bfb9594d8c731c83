"""Tools that read the metadata of a running pool see one commit, whole, whatever goes on."""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lmdb

from tests.conftest import PoolMaker
from tests.crash import verbs
from tests.crash.load import Load
from tests.support.audit import audit_image
from tests.support.pools import PoolRig
from tests.support.thin import thin_check


def look(pool: PoolRig, image: Path) -> list[str]:
    """Both checkers and the audit on what the last commit was just then."""
    complaints = pool.check()
    pool.cli("export-metadata", str(image))
    complaints += thin_check(image)
    audit_image(image)
    image.unlink()
    return complaints


def test_checkers_are_silent_under_load(new_pool: PoolMaker, tmp_path: Path, seed: int) -> None:
    pool = new_pool("40M")
    load = Load(pool, random.Random(seed), remembers=True)
    try:
        for name in ("one", "two"):
            load.do(verbs.Create(name, 4000))
        with ThreadPoolExecutor(1) as reader:
            for turn in range(8):
                looking = reader.submit(look, pool, tmp_path / f"image{turn}")
                while not looking.done():
                    load.run(20)
                assert looking.result() == []
        load.settle()
    finally:
        load.close()


def test_a_reader_holds_nothing_up(pool: PoolRig) -> None:
    """Commits go on, and what they free is used again, while a check looks at an older one."""
    pool.create("vol", "64M")
    with pool.connect("vol") as client, ThreadPoolExecutor(1) as reader:
        for turn in range(4):
            looking = reader.submit(pool.check)
            for block in range(0, 1024, 7):
                client.write(block * 65536, bytes([turn + 1]) * 512)
                if block % 70 == 0:
                    client.flush()
            client.trim(0, 64 << 20, 1)
            assert looking.result() == []


def test_the_daemon_counts_as_alive_for_the_readers_beside_it(new_pool: PoolMaker) -> None:
    """Else a command that opens the metadata would clear the daemon's own readers away."""
    pool = new_pool()
    for _ in range(3):
        pool.status()
        assert pool.check() == []
        store = lmdb.open(str(pool.directory / "metadata.lmdb"), subdir=False, readonly=True)
        try:
            assert store.reader_check() == 0
            assert str(pool.pid) in store.readers()
        finally:
            store.close()
