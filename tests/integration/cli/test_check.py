"""thinpool check."""

import json
import os
import struct
from pathlib import Path

from tests.conftest import PoolMaker
from tests.integration.cli.outcomes import MIB, fill, refused, volume
from tests.support.pools import PoolRig
from tests.unit.data.test_flushed_notes import put_mark
from tests.unit.data.test_recent import die
from thinmeta.store.lmdb import LmdbStore
from thinpoold.pool import Pool
from thinpoold.volumes import new_record


def test_a_sound_pool(rig: PoolRig) -> None:
    rig.create("a", "1M")
    rig.snapshot("a", "a1")
    done = rig.run("check")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("sound: ")
    report = json.loads(rig.cli("check", "--json"))
    assert (report["ok"], report["errors"], report["leaked_blocks"]) == (True, [], 0)


def test_it_sees_the_last_commit_of_a_running_pool(running: PoolRig) -> None:
    running.create("b", "8M")
    with running.connect("b") as client:
        client.write(0, b"x" * MIB)
        client.flush()
        report = running.json("check")
        assert report["ok"]
        assert report["mappings"] >= 16
    fill(running, "b", MIB, offset=MIB)


def test_it_takes_no_lock(running: PoolRig) -> None:
    before = running.status()["transaction_id"]
    running.cli("check")
    assert running.status()["transaction_id"] == before
    assert volume(running, "nobody") is None


def test_damage_is_told_and_the_status_is_1(new_pool: PoolMaker) -> None:
    rig = new_pool()
    rig.create("a", "64M")
    fill(rig, "a", 8 * MIB)
    rig.stop()
    metadata = rig.directory / "metadata.lmdb"
    content = bytearray(metadata.read_bytes())
    for place in range(8192, len(content), 997):
        content[place] ^= 0x10
    metadata.write_bytes(content)
    rig.damaged = True
    done = rig.run("check")
    assert done.returncode == 1
    assert done.stdout
    assert done.stderr.startswith("thinpool: the metadata of pool ")
    assert done.stderr.count("\n") == 1
    told = rig.run("check", "--json")
    assert told.returncode == 1
    report = json.loads(told.stdout)
    assert report["ok"] is False
    assert report["errors"][0].keys() == {"kind", "where", "message"}


def test_damage_of_the_store_itself_is_told(new_pool: PoolMaker) -> None:
    """LMDB does not survive reading such a page."""
    rig = new_pool(start=False)
    rig.create("a", "1M")
    metadata = rig.directory / "metadata.lmdb"
    content = bytearray(metadata.read_bytes())
    for meta_page in (0, 4096):
        # The root page of LMDB's main database: where its entries begin.
        (root,) = struct.unpack_from("<Q", content, meta_page + 128)
        content[root * 4096 + 16 : root * 4096 + 60] = b"\xff" * 44
    metadata.write_bytes(content)
    rig.damaged = True
    for words in (["--clear-needs-check"], []):
        done = rig.run("check", *words)
        assert done.returncode == 1
        assert "[store]" in done.stdout
        assert "keep a copy of its directory" in done.stderr


def mark(rig: PoolRig) -> None:
    """What a daemon does that met damage."""
    pool = Pool.open(rig.directory)
    with pool.core.lock:
        pool.metadata.set_needs_check(True)
    pool.close()


def test_a_mark_is_cleared_by_a_check_that_finds_nothing(new_pool: PoolMaker) -> None:
    rig = new_pool(start=False)
    rig.create("a", "1M")
    mark(rig)
    told = rig.run("check")
    assert told.returncode == 0
    assert "--clear-needs-check" in told.stdout
    assert "--clear-needs-check" in refused(rig, "create", "b", "1M", says="needs a check")
    assert rig.json("check", "--clear-needs-check")["needs_check"] is False
    assert rig.json("check")["needs_check"] is False
    rig.create("b", "1M")
    # Once more does no harm.
    before = rig.json("check")["transaction_id"]
    assert "nothing to clear" in rig.cli("check", "--clear-needs-check")
    assert rig.json("check")["transaction_id"] == before


def test_a_mark_is_cleared_together_with_the_commit_of_what_was_flushed(
    new_pool: PoolMaker,
) -> None:
    rig = new_pool(start=False)
    rig.create("a", "1M")
    pool = Pool.open(rig.directory)
    volume = pool.open_volume("a")
    volume.pwrite(b"f" * 512, 0)
    pool.core.sync()
    die(pool)
    told = rig.run("check")
    assert (told.returncode, told.stderr.count("1 change flushed since")) == (0, 1)
    assert "the next start commits them" in told.stderr
    put_mark(rig.directory, pool)
    told = rig.run("check", "--json")
    assert (told.returncode, json.loads(told.stdout)["needs_check"]) == (0, True)
    assert "they wait for the mark to go" in told.stderr
    for words in (["start"], ["create", "b", "1M"]):
        refused(rig, *words, says="1 changes that were flushed wait")
    # To look changes nothing.
    assert rig.status()["mode"] == "read-only"
    done = rig.run("check", "--clear-needs-check")
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert "made 1 changes of mappings good" in done.stderr
    assert "it takes writes again" in done.stdout
    rig.start()
    with rig.connect("a") as client:
        assert client.read(0, 512) == b"f" * 512


def test_the_mark_of_a_running_pool_stays(new_pool: PoolMaker) -> None:
    rig = new_pool(start=False)
    mark(rig)
    rig.start()
    for words in (["--clear-needs-check"], ["--clear-needs-check", "--json"]):
        refused(rig, "check", *words, says="'thinpool stop'")
    assert rig.json("check")["needs_check"] is True
    status = rig.status()
    assert (status["mode"], status["needs_check"]) == ("read-only", True)
    assert "--clear-needs-check" in rig.cli("status")
    rig.stop()
    rig.cli("check", str(rig.directory), "--clear-needs-check")
    rig.start()
    assert rig.status()["mode"] == "write"


def test_the_mark_of_a_damaged_pool_stays(new_pool: PoolMaker) -> None:
    rig = new_pool(start=False)
    mark(rig)
    # A volume's record without a device: not for the metadata's walk, for the audit's.
    store = LmdbStore(rig.directory / "metadata.lmdb")
    record = new_record("ghost", 77, MIB)
    store.commit({}, (), {("volumes", record.uuid): record.pack()})
    store.close()
    rig.damaged = True
    done = rig.run("check", "--clear-needs-check")
    assert done.returncode == 1
    assert "has no device 77" in done.stdout
    assert "is damaged: 1 problem" in done.stderr
    assert json.loads(rig.run("check", "--json").stdout)["needs_check"] is True


def test_no_metadata_at_all(new_pool: PoolMaker) -> None:
    rig = new_pool(start=False)
    rig.damaged = True
    metadata = rig.directory / "metadata.lmdb"
    for content in (b"", os.urandom(1 << 16), bytes(1 << 16)):
        metadata.write_bytes(content)
        done = rig.run("check", "--json")
        assert done.returncode == 1
        assert json.loads(done.stdout)["ok"] is False


def test_no_pool(rig: PoolRig, tmp_path: Path) -> None:
    refused(rig, "check", "-p", str(tmp_path), says="no pool in")
