"""What nbdinfo and libnbd see of an export: flags, sizes, the list, refusals."""

import errno
import json
from collections.abc import Callable

import pytest

from tests.conftest import PoolMaker
from tests.support.client import FAST_ZERO, FUA, NO_HOLE, NbdError, exports
from tests.support.pools import PoolRig
from tests.support.tools import run, run_json

MIB = 1 << 20


def test_flags_of_a_volume(pool: PoolRig) -> None:
    pool.create("vol", "100M")
    (export,) = run_json("nbdinfo", "--json", pool.uri("vol"))["exports"]
    assert export["export-name"] == "vol"
    assert export["export-size"] == 100 * MIB
    assert export["is_read_only"] is False
    for flag in (
        "can_flush",
        "can_fua",
        "can_trim",
        "can_zero",
        "can_fast_zero",
        "can_multi_conn",
        "can_cache",
        "can_df",
    ):
        assert export[flag] is True, flag
    assert export["contexts"] == ["base:allocation"]
    assert isinstance(export["is_rotational"], bool)


def test_block_size_says_what_is_fast(new_pool: PoolMaker) -> None:
    pool = new_pool(block_size="128K")
    pool.create("vol", "10M")
    with pool.connect("vol") as client:
        assert client.minimum_block in (1, 512)
        assert client.preferred_block in (4096, 128 << 10)


def test_list_of_exports_with_descriptions(pool: PoolRig) -> None:
    pool.create("one", "1M")
    pool.create("two", "2M")
    pool.snapshot("one", "snap of one")
    found = exports(pool.socket)
    assert set(found) == {"one", "two", "snap of one"}
    assert all(found.values()), "every export has a description"
    listed = run_json("nbdinfo", "--list", "--json", f"nbd+unix:///?socket={pool.socket}")
    sizes = {export["export-name"]: export["export-size"] for export in listed["exports"]}
    assert sizes == {"one": MIB, "two": 2 * MIB, "snap of one": MIB}


def test_list_follows_changes(pool: PoolRig) -> None:
    assert exports(pool.socket) == {}
    pool.create("a", "1M")
    assert set(exports(pool.socket)) == {"a"}
    pool.cli("rename", "a", "b")
    assert set(exports(pool.socket)) == {"b"}
    pool.delete("b")
    assert exports(pool.socket) == {}


def test_uri_works_as_printed(pool: PoolRig) -> None:
    pool.create("dots.and-dashes_é", "1M")
    assert run("nbdinfo", "--size", pool.uri("dots.and-dashes_é")).stdout.strip() == str(MIB)


def test_unknown_export_is_refused_and_others_go_on(pool: PoolRig) -> None:
    pool.create("vol", "1M")
    with pool.connect("vol") as client:
        client.write(0, b"x" * 512)
        with pytest.raises(NbdError):
            pool.connect("nobody")
        assert client.read(0, 512) == b"x" * 512
        client.flush()
    with pool.connect("vol") as again:
        assert again.read(0, 1) == b"x"


@pytest.mark.parametrize(("offset", "count"), [(MIB, 512), (MIB - 512, 1024), (1 << 40, 512)])
def test_past_the_end(pool: PoolRig, offset: int, count: int) -> None:
    """Refused as the protocol says, and nothing of it is written."""
    pool.create("vol", MIB)
    with pool.connect("vol", strict=False) as client:
        client.write(MIB - 512, b"a" * 512)
        requests: list[Callable[[], object]] = [
            lambda: client.read(offset, count),
            lambda: client.write(offset, b"z" * count),
            lambda: client.trim(offset, count),
            lambda: client.zero(offset, count),
        ]
        for request in requests:
            with pytest.raises(NbdError) as caught:
                request()
            assert caught.value.errno in (errno.EINVAL, errno.ENOSPC)
        assert client.read(MIB - 512, 512) == b"a" * 512


def test_read_only_volume(pool: PoolRig) -> None:
    pool.create("vol", "1M")
    with pool.connect("vol") as client:
        client.write(0, b"kept" * 128)
    pool.cli("snapshot", "vol", "frozen", "--read-only")
    pool.create("blank", "1M", "--read-only")
    for name in ("frozen", "blank"):
        (export,) = run_json("nbdinfo", "--json", pool.uri(name))["exports"]
        assert export["is_read_only"] is True
    with pool.connect("frozen", strict=False) as client:
        requests: list[Callable[[], object]] = [
            lambda: client.write(0, b"z" * 512),
            lambda: client.trim(0, 65536),
            lambda: client.zero(0, 65536),
        ]
        for request in requests:
            with pytest.raises(NbdError) as caught:
                request()
            assert caught.value.errno in (errno.EPERM, errno.EROFS)
        assert client.read(0, 512) == b"kept" * 128


def test_fast_zero_is_fast_or_declined(pool: PoolRig) -> None:
    """A whole unmapped or unshared block costs no data write; what would is declined."""
    pool.create("vol", "1M")
    with pool.connect("vol") as client:
        client.write(0, b"q" * 200_000)
        for offset, count, flags in ((0, 65536, 0), (512, 512, 0), (65536, 65536, NO_HOLE)):
            before = client.read(offset, count)
            try:
                client.zero(offset, count, FAST_ZERO | flags)
            except NbdError as error:
                declined = error.errno
            else:
                declined = 0
            assert declined in (0, errno.ENOTSUP, errno.EOPNOTSUPP)
            assert client.read(offset, count) == (before if declined else bytes(count))


def test_zero_with_no_hole_stays_allocated(pool: PoolRig) -> None:
    pool.create("vol", "1M")
    with pool.connect("vol") as client:
        client.write(0, b"q" * 65536 * 2)
        client.zero(0, 65536, NO_HOLE)
        client.zero(65536, 65536)
        client.flush()
        assert client.read(0, 131072) == bytes(131072)
        first, second = client.extents(0, 65536), client.extents(65536, 65536)
        assert not any(extent.hole for extent in first)
        assert all(extent.hole for extent in second)


def test_every_flag_of_every_request(pool: PoolRig) -> None:
    pool.create("vol", "1M")
    with pool.connect("vol") as client:
        client.write(100, b"w" * 70_000, FUA)
        client.zero(200, 66_000, FUA | NO_HOLE)
        client.trim(0, 65536, FUA)
        client.cache(0, MIB)
        client.flush()
        assert client.read(200 + 66_000, 3900) == b"w" * 3900


def test_status_counts_clients(pool: PoolRig) -> None:
    pool.create("vol", "1M")
    assert pool.status()["clients"] == 0
    with pool.connect("vol"), pool.connect("vol"):
        assert pool.status()["clients"] == 2
        assert pool.volumes()["vol"]["clients"] == 2
        refused = pool.run("delete", "vol")
        assert refused.returncode == 1
        assert "vol" in refused.stderr
    assert json.loads(pool.cli("info", "vol", "--json"))["size"] == MIB
