"""What clients' requests take of the daemon's memory: no more than `status` says."""

import errno
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from tests.conftest import PoolMaker
from tests.support.client import NbdClient, NbdError, translated
from tests.support.libnbd import nbd
from tests.support.pools import PoolRig
from tests.support.tools import run

MIB = 1 << 20
LARGEST = 4 * MIB
# nbdkit's own limit, and the size of the volume.
HUGE = 64 * MIB
CLIENTS = 12


@pytest.fixture
def rig(new_pool: PoolMaker) -> PoolRig:
    rig = new_pool(start=False)
    # Each thread of a connection may have a buffer.
    rig.start("--threads", "1")
    rig.create("v", str(HUGE))
    return rig


def refused(client: NbdClient, ask: Callable[[], object]) -> None:
    with pytest.raises(NbdError) as refusal, translated():
        ask()
    assert refusal.value.errno == errno.ENOMEM
    # And the connection goes on.
    assert client.read(0, 512) == bytes(512)


def reads(client: NbdClient) -> None:
    refused(client, lambda: client.raw.pread(HUGE, 0))


def writes(client: NbdClient) -> None:
    refused(client, lambda: client.raw.pwrite(b"x" * HUGE, 0))


def stops_in_a_write(client: NbdClient) -> None:
    # What the socket takes at once is sent, and no more.
    client.raw.aio_pwrite(nbd.Buffer(HUGE), 0)


def asks_for_the_most(client: NbdClient) -> None:
    assert client.read(0, LARGEST) == bytes(LARGEST)
    client.write(LARGEST, b"x" * LARGEST)
    assert client.read(LARGEST, LARGEST) == b"x" * LARGEST


KINDS = [reads, writes, stops_in_a_write, asks_for_the_most]


@pytest.mark.both_ways
@pytest.mark.parametrize("does", KINDS)
def test_clients_take_what_their_bound_says(
    rig: PoolRig, does: Callable[[NbdClient], None]
) -> None:
    memory = rig.status()["memory"]
    assert memory["bounds"]["requests"] == 128 * (LARGEST + 64 * 1024)
    with ExitStack() as stack:
        clients = [stack.enter_context(rig.connect("v", strict=False)) for _ in range(CLIENTS)]
        for client in clients:
            does(client)
        now = rig.status()["memory"]
        # Beside the buffers, what threads and new metadata need; one buffer of nbdkit's would be
        # too much already.
        assert now["resident"] < memory["resident"] + CLIENTS * (LARGEST + 64 * 1024) + 12 * MIB
        assert now["resident"] < now["bounds"]["total"]
        if does is stops_in_a_write:
            # libnbd would send the rest before it says goodbye.
            for client in clients:
                client.raw = None
                stack.pop_all()


@pytest.mark.parametrize("block_size", ["64K", "192K", "16M"])
def test_the_largest_request_is_told(new_pool: PoolMaker, block_size: str) -> None:
    rig = new_pool(block_size=block_size)
    rig.create("v", "64M")
    with rig.connect("v") as client:
        assert client.largest_request == rig.status()["largest_request"] == LARGEST
        assert client.preferred_block <= LARGEST
    assert f"block_size_maximum: {LARGEST}" in run("nbdinfo", rig.uri("v")).stdout


def test_a_pool_has_room_for_so_many_clients_and_no_more(rig: PoolRig) -> None:
    most = rig.json("get")["settings"]["max_clients"]
    with ExitStack() as stack:
        for _ in range(most):
            stack.enter_context(rig.connect("v"))
        assert rig.status()["clients"] == most
        with pytest.raises(NbdError):
            rig.connect("v")
    rig.cli("set", "max-clients=0")
    assert rig.status()["memory"]["bounds"]["total"] is None
    assert "without a bound while max-clients is 0" in rig.cli("status")
