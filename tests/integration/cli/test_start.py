"""thinpool start."""

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import PoolMaker
from tests.integration.cli.outcomes import refused, wrong_usage
from tests.support.pools import PoolRig
from tests.support.tools import free_port, run


def test_it_serves_when_it_returns(new_pool: PoolMaker) -> None:
    rig = new_pool(start=False)
    rig.create("a", "1M")
    uri = rig.start()
    assert uri == f"nbd+unix:///?socket={rig.socket}"
    assert run("nbdinfo", "--size", rig.uri("a")).stdout == "1048576\n"
    status = rig.status()
    assert (status["running"], status["uri"], status["pid"]) == (True, uri, rig.pid)
    assert Path(f"/proc/{rig.pid}/comm").read_text() == "nbdkit\n"
    assert (rig.directory / "lock").read_text().split()[0] == str(rig.pid)


def test_it_is_no_child_of_anything_that_ends(pool: PoolRig) -> None:
    assert os.getsid(pool.pid) != os.getsid(0)
    assert pool.cli("list")


def test_sockets_are_private(pool: PoolRig) -> None:
    control = Path(pool.status()["control_socket"])
    assert control.stat().st_mode & 0o777 == 0o600
    assert control.parent.stat().st_mode & 0o777 == 0o700
    assert Path(pool.socket).parent == control.parent


def test_a_second_is_refused_naming_the_first(pool: PoolRig) -> None:
    place = str(pool.directory)
    refused(pool, "start", place, says=f"process {pool.pid}")
    assert pool.status()["pid"] == pool.pid


def test_after_a_crash_its_sockets_are_cleared(pool: PoolRig) -> None:
    pool.create("a", "1M")
    first = pool.pid
    control = Path(pool.status()["control_socket"])
    pool.kill()
    assert control.exists()
    assert pool.json("list")["volumes"][0]["name"] == "a"
    pool.start()
    assert pool.pid != first


def test_on_a_loopback_address(new_pool: PoolMaker) -> None:
    rig = new_pool(start=False)
    rig.create("a b", "1M")
    port = free_port()
    assert rig.start("--listen", f"127.0.0.1:{port}") == f"nbd://127.0.0.1:{port}/"
    assert rig.uri("a b") == f"nbd://127.0.0.1:{port}/a%20b"
    assert run("nbdinfo", "--size", rig.uri("a b")).stdout == "1048576\n"
    rig.stop()


def test_options_are_taken(new_pool: PoolMaker) -> None:
    rig = new_pool(start=False)
    rig.start("--threads", "2", "--cache-size", "16M")
    assert rig.json("list") == {"volumes": []}


def test_json_is_what_runs(new_pool: PoolMaker) -> None:
    rig = new_pool(start=False)
    facts = rig.json("start")
    # There when the tests run without the C filter.
    facts.pop("fastpath_reason", None)
    rig._note_sockets()
    assert facts == {
        "running": True,
        "pid": rig.pid,
        "uri": f"nbd+unix:///?socket={rig.socket}",
        "control_socket": rig.status()["control_socket"],
    }


@pytest.fixture(scope="module")
def stopped(module_pools: Callable[[str], PoolRig]) -> PoolRig:
    return module_pools("stopped")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--listen", "0.0.0.0:10809"), "without TLS only loopback"),
        (("--listen", "nowhere"), "neither 'unix' nor ADDR:PORT"),
        (("--listen", "127.0.0.1:99999"), "neither 'unix' nor ADDR:PORT"),
        (("--cache-size", "0"), "at least 1M"),
        (("--cache-size", "1025G"), "cache size 1025G is too large: at most 1T"),
        (("--cache-size", "lots"), "is not a size"),
    ],
)
def test_bad_options_are_refused(stopped: PoolRig, words: tuple[str, ...], says: str) -> None:
    refused(stopped, "start", *words, says=says)


def test_wrong_usage(stopped: PoolRig) -> None:
    wrong_usage(stopped, "start", "--threads", "0", says="--threads")
    wrong_usage(stopped, "start", "a", "b", says="unexpected extra argument")


def test_an_address_that_is_taken(stopped: PoolRig) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(stopped, "start", "--listen", f"127.0.0.1:{port}", says="in use")


def test_no_pool(stopped: PoolRig, tmp_path: Path) -> None:
    refused(stopped, "start", str(tmp_path), says="no pool in")
    refused(stopped, "start", str(tmp_path / "nothing"), says="no pool in")


def test_a_data_device_that_is_missing_or_short(new_pool: PoolMaker) -> None:
    rig = new_pool(start=False)
    data = rig.directory / "data"
    before = (rig.directory / "metadata.lmdb").read_bytes()
    os.truncate(data, 1 << 20)
    refused(rig, "start", says=str(data))
    os.truncate(data, 256 << 20)
    data.rename(rig.directory / "away")
    refused(rig, "start", says=str(data))
    assert not data.exists()
    data.touch()
    os.truncate(data, 256 << 20)
    refused(rig, "start", says="not this pool's")
    assert (rig.directory / "metadata.lmdb").read_bytes() == before
    (rig.directory / "away").rename(data)
    rig.start()


def test_metadata_that_is_no_metadata(new_pool: PoolMaker) -> None:
    rig = new_pool(start=False)
    metadata = rig.directory / "metadata.lmdb"
    sound = metadata.read_bytes()
    metadata.write_bytes(os.urandom(1 << 16))
    refused(rig, "start", says="metadata")
    metadata.write_bytes(b"")
    refused(rig, "start", says="metadata")
    metadata.write_bytes(sound)


def test_a_term_signal_stops_it_cleanly(pool: PoolRig) -> None:
    pool.create("a", "1M")
    with pool.connect("a") as idle:
        idle.write(0, b"x" * 512)
        handle = os.pidfd_open(pool.pid)
        os.kill(pool.pid, signal.SIGTERM)
        pool._await_end(handle)
        os.close(handle)
    pool._forget()
    pool.start()
    with pool.connect("a") as client:
        assert client.read(0, 512) == b"x" * 512
