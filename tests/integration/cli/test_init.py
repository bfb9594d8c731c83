"""thinpool init."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.cli.outcomes import GIB, MIB, refused, wrong_usage
from tests.support.pools import PoolRig


@pytest.fixture
def fresh(tmp_path: Path) -> PoolRig:
    """A rig whose pool is yet to be made."""
    return PoolRig(tmp_path / "p")


def settings(rig: PoolRig) -> dict[str, object]:
    found: dict[str, object] = rig.json("get")["settings"]
    return found


def test_a_sparse_data_file_in_the_pool(fresh: PoolRig) -> None:
    fresh.init("10G")
    data = fresh.directory / "data"
    assert data.stat().st_size == 10 * GIB
    assert data.stat().st_blocks * 512 < MIB
    status = fresh.status()
    assert status["data"] == {"path": str(data), "size": 10 * GIB, "used": 0}
    assert status["block_size"] == 64 << 10
    assert (status["name"], status["volumes"], status["mode"]) == ("p", 0, "write")
    assert status["running"] is False
    assert fresh.inspect() == []


def test_the_directory_is_private(fresh: PoolRig) -> None:
    fresh.init("1G")
    assert fresh.directory.stat().st_mode & 0o077 == 0
    for path in (fresh.directory / "data", fresh.directory / "metadata.lmdb"):
        assert path.stat().st_mode & 0o077 == 0


def test_the_settings(fresh: PoolRig) -> None:
    fresh.init(
        "1G",
        block_size="128K",
        on_full="error",
        full_timeout="5",
        discard="nopassdown",
        skip_zeroing=True,
        low_water="25%",
        cache="bufio",
        data_cache="1G",
    )
    assert fresh.status()["block_size"] == 128 << 10
    assert (
        settings(fresh).items()
        >= {
            "on_full": "error",
            "full_timeout": 5,
            "discard": "nopassdown",
            "skip_zeroing": True,
            "low_water": 25,
            "cache": "bufio",
            "data_cache": 1 << 30,
        }.items()
    )


def test_the_defaults(fresh: PoolRig) -> None:
    fresh.init("1G")
    assert (
        settings(fresh).items()
        >= {
            "on_full": "queue",
            "full_timeout": 60,
            "discard": "passdown",
            "skip_zeroing": False,
            "low_water": 10,
            "cache": "page",
            "data_cache": 256 << 20,
        }.items()
    )


def test_a_file_elsewhere(fresh: PoolRig, tmp_path: Path) -> None:
    data = tmp_path / "elsewhere"
    fresh.init("100M", data=str(data))
    assert data.stat().st_size == 100 * MIB
    assert fresh.status()["data"]["path"] == str(data)
    assert not (fresh.directory / "data").exists()


def test_a_file_that_is_there_is_taken_as_large_as_it_is(fresh: PoolRig, tmp_path: Path) -> None:
    data = tmp_path / "elsewhere"
    data.touch()
    os.truncate(data, 100 * MIB)
    fresh.cli("init", str(fresh.directory), "--data", str(data))
    assert fresh.status()["data"]["size"] == 100 * MIB


def test_a_file_that_is_too_short_is_made_larger(fresh: PoolRig, tmp_path: Path) -> None:
    data = tmp_path / "elsewhere"
    data.touch()
    fresh.init("1G", data=str(data))
    assert data.stat().st_size == GIB


def test_the_data_of_another_pool_is_refused(fresh: PoolRig, tmp_path: Path) -> None:
    fresh.init("64M")
    data = fresh.directory / "data"
    other = PoolRig(tmp_path / "other")
    refused(other, "init", str(other.directory), "--data", str(data), says="belongs to the pool")
    assert not other.directory.exists()


def test_a_file_with_data_is_refused_and_stays_as_it_is(fresh: PoolRig, tmp_path: Path) -> None:
    data = tmp_path / "elsewhere"
    data.write_bytes(b"precious" * 100_000)
    before = data.read_bytes(), data.stat().st_mtime_ns
    for words in ((), ("--size", "1G")):
        refused(
            fresh,
            *("init", str(fresh.directory), "--data", str(data), *words),
            says="is not ours: it holds data, which would be lost",
        )
    assert (data.read_bytes(), data.stat().st_mtime_ns) == before
    assert not fresh.directory.exists()


def test_a_file_with_data_is_taken_with_force_and_shows_none_of_it(
    fresh: PoolRig, tmp_path: Path
) -> None:
    data = tmp_path / "elsewhere"
    data.write_bytes(b"precious" * (MIB // 8))
    fresh.init("1G", data=str(data), force=True)
    fresh.start()
    fresh.create("disk", "1M")
    with fresh.connect("disk") as client:
        client.write(4096, b"mine")
        assert client.read(0, MIB) == bytes(4096) + b"mine" + bytes(MIB - 4100)
    assert fresh.dispose() == []


def test_the_data_of_another_pool_is_refused_even_with_force(
    fresh: PoolRig, tmp_path: Path
) -> None:
    fresh.init("64M")
    other = PoolRig(tmp_path / "other")
    refused(
        other,
        *("init", str(other.directory), "--force", "--data", str(fresh.directory / "data")),
        says="belongs to the pool",
    )


def test_an_empty_directory_may_be_there(fresh: PoolRig) -> None:
    fresh.directory.mkdir()
    fresh.init("1G")


def test_a_pool_is_not_made_twice(fresh: PoolRig) -> None:
    fresh.init("1G")
    fresh.create("kept", "1M")
    refused(fresh, "init", str(fresh.directory), "--size", "1G", says="already")
    assert "kept" in fresh.volumes()
    fresh.start()
    refused(fresh, "init", str(fresh.directory), "--size", "1G", says="already")
    assert fresh.dispose() == []


def test_a_directory_with_other_things_in_it_is_refused(fresh: PoolRig) -> None:
    fresh.directory.mkdir()
    (fresh.directory / "data").write_bytes(b"precious")
    refused(fresh, "init", str(fresh.directory), "--size", "1G", says="data")
    assert (fresh.directory / "data").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--size", "0"), "is zero: a pool has 64K to"),
        (("--size", "-1G"), "is negative"),
        (("--size", "1000000"), "not a multiple of 512"),
        (("--size", "32K"), "too small"),
        (("--size", "100P"), "over the format's limit"),
        (("--size", "1X"), "is not a size"),
        (("--size", "1G", "--block-size", "0"), "multiple of 64K, from 64K to 1G"),
        (("--size", "1G", "--block-size", "32K"), "multiple of 64K, from 64K to 1G"),
        (("--size", "1G", "--block-size", "100K"), "multiple of 64K, from 64K to 1G"),
        (("--size", "4G", "--block-size", "2G"), "multiple of 64K, from 64K to 1G"),
        (("--size", "1G", "--block-size", "-64K"), "is negative"),
        (("--size", "1M", "--block-size", "2M"), "too small"),
        (("--size", "1G", "--low-water", "200%"), "0% to 100%"),
        (("--size", "1G", "--full-timeout", "soon"), "seconds"),
        (("--size", "1G", "--data", "/nonexistent/dir/data"), "/nonexistent/dir"),
        (("--size", "1G", "--data", "/"), "neither"),
        (("--size", "1G", "--data", ""), "empty"),
    ],
)
def test_refusals_leave_nothing_behind(fresh: PoolRig, words: tuple[str, ...], says: str) -> None:
    refused(fresh, "init", str(fresh.directory), *words, says=says)
    assert not fresh.directory.exists()


def test_a_place_that_cannot_be(fresh: PoolRig, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(fresh, "init", str(tmp_path / "file/pool"), "--size", "1G", says="file/pool")
    refused(fresh, "init", str(tmp_path / "file"), "--size", "1G", says="file")


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 200])
def test_a_bad_name_is_refused(fresh: PoolRig, name: str) -> None:
    del fresh.env["THINPOOL_POOL"]
    refused(fresh, "init", name, "--size", "1G", says="a name is 1 to 127 bytes")


def test_wrong_usage(fresh: PoolRig) -> None:
    place = str(fresh.directory)
    wrong_usage(fresh, "init", place, says="--size")
    wrong_usage(fresh, "init", place, "--size", "1G", "--on-full", "panic", says="--on-full")
    wrong_usage(fresh, "init", place, "--size", "1G", "--discard", "no", says="--discard")
    del fresh.env["THINPOOL_POOL"]
    wrong_usage(fresh, "init", "--size", "1G", says="which pool?")
    assert not fresh.directory.exists()


def test_pools_lie_below_directories_whose_names_are_no_utf8(
    new_pool: Callable[..., PoolRig], tmp_path: Path
) -> None:
    directory = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))
    directory.mkdir()
    rig = new_pool(directory=directory / "p", data=str(directory / "data"))
    rig.create("v", "1M")
    assert "%FF%FE" in rig.uri("v")
    with rig.connect("v") as client:
        client.write(0, b"x" * 512)
        client.flush()
    rig.kill()
    rig.start()
    with rig.connect("v") as client:
        assert client.read(0, 512) == b"x" * 512
    assert rig.status()["data"]["path"] == str(directory / "data")
    rig.stop()
    assert rig.volumes()["v"]["mapped"] == 64 << 10
    # A pool's own name is shown to people, and typed by them.
    done = rig.run("init", str(directory), "--size", "1M")
    assert done.returncode == 1
    assert "not valid UTF-8" in done.stderr
