"""What the pool's store does beyond the contract: files, other processes, full disks, damage."""

import errno
import os
import random
import resource
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lmdb
import pytest

from tests.unit.meta.workbench import make_pool
from thinmeta.check import check, check_file
from thinmeta.errors import (
    AlreadyExists,
    Corrupt,
    NoMetadataSpace,
    ReadOnlyStore,
    StoreError,
    UnsupportedFormat,
)
from thinmeta.format.block import BLOCK_SIZE
from thinmeta.store import lmdb_view
from thinmeta.store.lmdb import LAYOUT_VERSION, LmdbStore
from thinmeta.store.lmdb_file import translated, verify_pages
from thinmeta.store.lmdb_room import RESERVE_BYTES, Room


def filled(byte: int) -> bytes:
    return bytes([byte]) * BLOCK_SIZE


def noise(seed: int) -> bytes:
    return random.Random(seed).randbytes(BLOCK_SIZE)


def raw(path: Path, **options: Any) -> Any:
    """The LMDB environment below a store."""
    return lmdb.open(str(path), subdir=False, max_dbs=8, map_size=64 << 20, **options)


def test_a_store_is_found_as_it_was_left(tmp_path: Path) -> None:
    path = tmp_path / "metadata.lmdb"
    store = LmdbStore(path, create=True)
    store.commit({3: filled(3)}, (), {("volumes", b"k"): b"v"})
    assert store.file_size() == path.stat().st_size > 0
    store.close()
    for read_only in (False, True):
        store = LmdbStore(path, read_only=read_only)
        assert store.read(3) == filled(3)
        assert list(store.records("volumes")) == [(b"k", b"v")]
        store.close()


def test_a_store_is_for_its_owner_alone(tmp_path: Path) -> None:
    LmdbStore(tmp_path / "m", create=True).close()
    assert (tmp_path / "m").stat().st_mode & 0o777 == 0o600


def test_creating_over_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"precious")
    with pytest.raises(AlreadyExists):
        LmdbStore(path, create=True)
    assert path.read_bytes() == b"precious"


def test_opening_nothing_is_refused_and_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught:
        LmdbStore(tmp_path / "m")
    assert caught.value.errno == 2
    with pytest.raises(StoreError):
        LmdbStore(tmp_path / "no" / "m", create=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"x", b"no LMDB file" * 2000, bytes(100000)])
def test_what_is_no_store_is_refused_untouched(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m"
    path.write_bytes(content)
    with pytest.raises(Corrupt) as caught:
        LmdbStore(path)
    assert caught.value.kind == "store"
    assert path.read_bytes() == content


def test_an_lmdb_file_of_somebody_else_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "m"
    raw(path).close()
    content = path.read_bytes()
    with pytest.raises(Corrupt, match="is not a pool's metadata"):
        LmdbStore(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("version", [b"0", b"2", b"99"])
def test_another_layout_is_refused_untouched(tmp_path: Path, version: bytes) -> None:
    path = tmp_path / "m"
    LmdbStore(path, create=True).close()
    env = raw(path)
    with env.begin(write=True) as txn:
        table = env.open_db(b"store", txn=txn)
        record = lmdb_view.encode_record("store", b"layout", version)
        txn.put(b"layout", record, db=table)
    env.close()
    content = path.read_bytes()
    for _ in range(2):
        with pytest.raises(UnsupportedFormat, match=f"knows layout {LAYOUT_VERSION}"):
            LmdbStore(path)
    assert path.read_bytes() == content


def test_read_only_is_read_only(tmp_path: Path) -> None:
    path = tmp_path / "m"
    LmdbStore(path, create=True).close()
    store = LmdbStore(path, read_only=True)
    with pytest.raises(ReadOnlyStore):
        store.commit({1: filled(1)}, (), {})
    store.close()


def test_who_is_alone_needs_no_lock_file(tmp_path: Path) -> None:
    path = tmp_path / "metadata.lmdb"
    store = LmdbStore(path, create=True)
    store.commit({1: filled(1)}, (), {("t", b"k"): b"v"})
    store.close()
    (tmp_path / "metadata.lmdb-lock").unlink()
    store = LmdbStore(path, read_only=True, alone=True)
    with store.snapshot() as view:
        assert view.read(1) == filled(1)
        assert view.record("t", b"k") == b"v"
    assert store.old_reader() is None
    with pytest.raises(ReadOnlyStore):
        store.commit({}, (), {})
    store.close()
    assert os.listdir(tmp_path) == ["metadata.lmdb"]


def test_the_stores_own_table_is_its_own(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path / "m", create=True)
    for table in ("store", "blocks"):
        with pytest.raises(ValueError, match="the store's own"):
            store.commit({}, (), {(table, b"layout"): b"7"})
    store.close()


def test_a_full_map_spoils_one_commit_alone(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path / "m", create=True, map_size=1 << 20)
    store.commit({1: noise(1)}, (), {("t", b"k"): b"v"})
    with pytest.raises(NoMetadataSpace):
        store.commit({n: noise(n) for n in range(1000)}, {1}, {("new", b"k"): b"v"})
    assert list(store.block_numbers()) == [1]
    assert store.record("new", b"k") is None
    store.commit({2: noise(2)}, (), {("new", b"k"): b"w"})
    assert store.read(2) == noise(2)
    assert store.record("new", b"k") == b"w"
    store.close()


def test_a_full_disk_spoils_one_commit_alone(tmp_path: Path) -> None:
    """A limit on file sizes stands in for the disk: EFBIG instead of ENOSPC, in a child."""
    path = tmp_path / "m"
    LmdbStore(path, create=True).close()
    script = """if True:
        import random, resource, signal, sys
        from pathlib import Path
        from thinmeta.errors import NoMetadataSpace
        from thinmeta.store.lmdb import LmdbStore
        rnd = random.Random(1)
        store = LmdbStore(Path(sys.argv[1]))
        store.commit({1: rnd.randbytes(4096)}, (), {})
        limit = store.file_size() + 300000
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            store.commit({n: rnd.randbytes(4096) for n in range(500)}, {1}, {})
        except NoMetadataSpace:
            print("full")
        assert list(store.block_numbers()) == [1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        store.commit({2: bytes(4096)}, (), {})
        store.close()
    """
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-c", script, path], capture_output=True, text=True, check=True
    )
    assert done.stdout == "full\n"
    store = LmdbStore(path)
    assert list(store.block_numbers()) == [1, 2]
    store.close()


def noisy(rnd: random.Random, numbers: Iterable[int]) -> dict[int, bytes]:
    return {number: rnd.randbytes(4096) for number in numbers}


def test_commits_find_room_that_was_made(tmp_path: Path) -> None:
    """What deletes and changes a little neither lengthens the file nor fills a hole of it."""
    path, rnd = tmp_path / "m", random.Random(3)
    store = LmdbStore(path, create=True)
    store.commit(noisy(rnd, range(1000)), (), {})
    assert store.make_room()
    before = path.stat()
    for number in range(0, 400, 20):
        store.commit(noisy(rnd, [number]), range(number + 1, number + 20), {("t", b"k"): b"v"})
    after = path.stat()
    assert (after.st_size, after.st_blocks) == (before.st_size, before.st_blocks)
    store.close()
    assert verify_pages(path) == []


def test_room_is_made_behind_what_a_commit_writes(tmp_path: Path) -> None:
    path, rnd = tmp_path / "m", random.Random(4)
    store = LmdbStore(path, create=True)
    for first in range(0, 3000, 500):
        store.commit(noisy(rnd, range(first, first + 500)), (), {})
        assert store.make_room()
    store.close()
    assert path.stat().st_size - len(used(path)) >= RESERVE_BYTES


ON_A_FULL_DISK = """if True:
    import random, resource, signal, sys
    from pathlib import Path
    from thinmeta.store.lmdb import LmdbStore
    rnd = random.Random(1)
    store = LmdbStore(Path(sys.argv[1]))
    store.commit({number: rnd.randbytes(4096) for number in range(1000)}, (), {})
    assert store.make_room()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = store.file_size()
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    for number in range(0, 1000, 20):
        store.commit({number: rnd.randbytes(4096)}, range(number + 1, number + 20), {})
    print(sum(1 for _ in store.block_numbers()), store.file_size() == limit)
    store.close()
"""


def test_what_is_erased_makes_room_on_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "m"
    LmdbStore(path, create=True).close()
    done = subprocess.run(
        [sys.executable, "-c", ON_A_FULL_DISK, path], capture_output=True, text=True, check=True
    )
    assert done.stdout == "50 True\n"
    assert verify_pages(path) == []


def test_room_that_cannot_be_synced_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"x" * 4096)
    room = Room(path, 4096)

    def failing(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", failing)
        with pytest.raises(StoreError):
            room.make(4096, 1 << 20)
    assert path.stat().st_size == 4096
    assert room.make(4096, 1 << 20)
    assert path.stat().st_size >= 4096 + (1 << 20)
    room.close()


READER = """if True:
    import sys
    from pathlib import Path
    from thinmeta.store.lmdb import LmdbStore
    store = LmdbStore(Path(sys.argv[1]), read_only=True)
    with store.snapshot() as view:
        print(view.read(1)[0], flush=True)
        sys.stdin.readline()
        print(view.read(1)[0], list(view.block_numbers()), view.record("new", b"k"), flush=True)
    print(store.read(1)[0], store.record("new", b"k"), store.tables(), flush=True)
"""


def test_another_process_sees_one_commit_whole(tmp_path: Path) -> None:
    path = tmp_path / "m"
    store = LmdbStore(path, create=True)
    store.commit({1: filled(1), 2: noise(2)}, (), {})
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert reader.stdout
    assert reader.stdin
    assert reader.stdout.readline() == "1\n"
    for byte in range(2, 30):
        store.commit({1: filled(byte), byte: noise(byte)}, {byte - 1}, {("new", b"k"): b"v"})
    reader.stdin.write("\n")
    reader.stdin.close()
    assert reader.stdout.readline() == "1 [1, 2] None\n"
    assert reader.stdout.readline() == "29 b'v' ['new', 'store']\n"
    assert reader.wait() == 0
    reader.stdout.close()
    store.close()


def test_a_damaged_record_is_told(tmp_path: Path) -> None:
    path = tmp_path / "m"
    store = LmdbStore(path, create=True)
    store.commit({}, (), {("volumes", b"a"): b"one", ("volumes", b"b"): b"two"})
    store.close()
    env = raw(path)
    with env.begin(write=True) as txn:
        table = env.open_db(b"volumes", txn=txn)
        value = bytearray(txn.get(b"a", db=table))
        value[-1] ^= 4
        txn.put(b"a", bytes(value), db=table)
    env.close()
    store = LmdbStore(path)
    with pytest.raises(Corrupt) as caught:
        store.record("volumes", b"a")
    assert caught.value.kind == "record"
    with pytest.raises(Corrupt):
        list(store.records("volumes"))
    assert store.record("volumes", b"b") == b"two"
    told = [(error.kind, error.where) for error in check(store).errors]
    assert ("record", "table 'volumes', key b'a'") in told
    store.close()


@pytest.mark.parametrize("name", [b"volumet", b"vol\xf5mes", b"\xf6olumes"])
def test_a_table_whose_name_is_damaged_is_told(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / "m"
    store = LmdbStore(path, create=True)
    make_pool(store)
    store.close()
    content = path.read_bytes()
    assert content.count(b"volumes") >= 1
    path.write_bytes(content.replace(b"volumes", name))
    store = LmdbStore(path)
    assert {error.kind for error in check(store).errors} == {"record"}
    store.close()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pool") / "metadata.lmdb"
    store = LmdbStore(path, create=True)
    make_pool(store)
    store.close()
    assert verify_pages(path) == []
    return path


def contents(store: LmdbStore) -> tuple[dict[int, bytes], dict[str, list[tuple[bytes, bytes]]]]:
    return (
        {block: bytes(store.read(block)) for block in store.block_numbers()},
        {table: list(store.records(table)) for table in store.tables()},
    )


def used(path: Path) -> bytes:
    """What LMDB uses of a file, without the room behind it."""
    with raw(path, readonly=True) as env:
        pages = env.info()["last_pgno"] + 1
    return path.read_bytes()[: pages * 4096]


def test_a_flipped_bit_anywhere_in_the_file_is_told_or_harmless(
    pool: Path, tmp_path: Path, seed: int
) -> None:
    """And crashes nobody: LMDB does not see what its verifier did not accept."""
    rnd = random.Random(seed)
    store = LmdbStore(pool, read_only=True)
    wanted = contents(store)
    store.close()
    told = 0
    for number in range(200):
        path = tmp_path / f"{number}"
        content = bytearray(used(pool))
        bit = rnd.randrange(len(content) * 8)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        if not check_file(path).ok:
            told += 1
            continue
        # In a free page, or between a page's entries.
        store = LmdbStore(path, read_only=True)
        assert contents(store) == wanted, f"bit {bit}"
        store.close()
    assert told > 20


WRITER = """if True:
    import random, sys
    from pathlib import Path
    from thinmeta.store.lmdb import LmdbStore
    rnd = random.Random(1)
    store = LmdbStore(Path(sys.argv[1]))
    print("writing", flush=True)
    while True:
        numbers = [rnd.randrange(20000, 20300) for _ in range(20)]
        blocks = {n: rnd.randbytes(rnd.randrange(4000)).ljust(4096, bytes(1)) for n in numbers[10:]}
        store.commit(blocks, numbers[:10], {})
"""


def test_a_file_in_use_by_another_process_is_checked(pool: Path, tmp_path: Path) -> None:
    """Its commits are no damage, though they make and free pages all the while."""
    path = tmp_path / "m"
    path.write_bytes(pool.read_bytes())
    writer = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE)
    try:
        assert writer.stdout
        assert writer.stdout.readline() == b"writing\n"
        for _ in range(20):
            assert {error.kind for error in check_file(path).errors} <= {"orphan"}
    finally:
        writer.kill()
        writer.communicate()


def test_what_is_no_store_cannot_be_checked(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"no LMDB file" * 1000)
    assert [error.kind for error in check_file(path).errors] == ["store"]
    with pytest.raises(StoreError):
        check_file(tmp_path / "nothing")


def test_a_file_cut_short_is_told(pool: Path, tmp_path: Path) -> None:
    content = used(pool)
    for length in range(4096, len(content), 12000):
        path = tmp_path / f"{length}"
        path.write_bytes(content[:length])
        with pytest.raises(Corrupt) as caught:
            LmdbStore(path)
        assert caught.value.kind == "store"


def test_errors_of_the_system_keep_their_number(tmp_path: Path) -> None:
    path = tmp_path / "m"
    error = translated(OSError(28, "No space left"), path)
    assert isinstance(error, NoMetadataSpace)
    error = translated(OSError(5, "Input/output error"), path)
    assert isinstance(error, StoreError)
    assert error.errno == 5
    error = translated(lmdb.BadTxnError("mdb_get"), path)
    assert isinstance(error, StoreError)
    assert error.errno == 5
    assert isinstance(translated(lmdb.VersionMismatchError("x"), path), UnsupportedFormat)
    with pytest.raises(StoreError):
        verify_pages(tmp_path / "nothing")
