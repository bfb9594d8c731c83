"""thinpool resize."""

import resource
from pathlib import Path

import pytest

from tests.integration.cli.outcomes import MIB, fill, refused, volume
from tests.support.pools import PoolRig


def test_larger(rig: PoolRig) -> None:
    rig.create("a", "1M")
    done = rig.run("resize", "a", "10G")
    assert (done.returncode, done.stdout) == (0, "resized a to 10G\n")
    assert volume(rig, "a")["size"] == 10 << 30


def test_smaller_only_when_asked(rig: PoolRig) -> None:
    rig.create("b", "10M")
    refused(rig, "resize", "b", "5M", says="--shrink")
    assert volume(rig, "b")["size"] == 10 * MIB
    rig.cli("resize", "b", "5M", "--shrink")
    assert volume(rig, "b")["size"] == 5 * MIB


def test_what_is_cut_off_is_discarded_and_never_comes_back(running: PoolRig) -> None:
    running.create("c", "4M")
    fill(running, "c", 4 * MIB)
    running.cli("resize", "c", str(MIB + 512), "--shrink")
    assert volume(running, "c")["mapped"] == MIB + (64 << 10)
    running.cli("resize", "c", "4M")
    with running.connect("c") as client:
        assert client.read(0, MIB + 512) == b"x" * (MIB + 512)
        assert client.read(MIB + 512, 3 * MIB - 512) == bytes(3 * MIB - 512)


def test_the_same_size_is_fine(rig: PoolRig) -> None:
    rig.create("d", "1M")
    rig.cli("resize", "d", "1M")


@pytest.mark.parametrize(
    ("size", "says"),
    [
        ("0", "is zero"),
        ("-1G", "is negative"),
        ("1000", "not a multiple of 512"),
        ("100P", "over the format's limit"),
        ("x", "is not a size"),
    ],
)
def test_bad_sizes(rig: PoolRig, size: str, says: str) -> None:
    refused(rig, "resize", "d", size, says=says)


def test_no_such_volume(rig: PoolRig) -> None:
    refused(rig, "resize", "nobody", "1M", says="no volume")


def test_a_size_for_which_the_daemon_has_no_address_space_changes_nothing(
    running: PoolRig,
) -> None:
    running.create("e", "1M")
    with running.connect("e") as client:
        client.write(0, b"e" * 4096)
        resource.prlimit(
            running.pid, resource.RLIMIT_AS, (address_space(running.pid) + 64 * MIB,) * 2
        )
        before = running.status()
        refused(running, "resize", "e", "1P", says="no address space")
        # A commit is what such a size used to come with.
        with running.rpc() as rpc:
            rpc.call("commit")
        assert volume(running, "e")["size"] == MIB
        assert running.status()["transaction_id"] == before["transaction_id"]
        client.write(4096, b"f" * 4096)
        client.flush()
    running.kill()
    running.start()
    assert volume(running, "e")["size"] == MIB
    with running.connect("e") as client:
        assert client.read(0, 8192) == b"e" * 4096 + b"f" * 4096


def address_space(pid: int) -> int:
    """How many bytes of addresses a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
