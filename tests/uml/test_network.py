"""A pool at a port, under a real kernel: thinpool attach over TCP, nbd-client over TLS."""

import pytest

from tests.uml.inside import networked
from tests.uml.machine import NBD, Machine
from tests.uml.test_attach import LOST

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _with_nbd(machine: Machine) -> None:
    machine.modules = NBD
    machine.memory_mib = 1024
    machine.expected = list(LOST)


def test_a_daemon_at_a_port_goes_and_comes_under_a_busy_file_system(machine: Machine) -> None:
    seen = machine.call(networked.over_tcp)
    assert (seen["same"], seen["complaints"]) == (True, [])
    assert seen["address"] == "127.0.0.1"
    assert "is attached over TCP" in str(seen["refusal"])


def test_nbd_client_needs_the_certificate(machine: Machine) -> None:
    seen = machine.call(networked.over_tls)
    refused = seen["refused"]
    assert isinstance(refused, dict)
    assert all(isinstance(said, str) for said in refused.values()), refused
    assert seen["listing"] != 0
    assert "v" not in str(seen["listed"]).split()
    assert (seen["tls"], seen["same"], seen["complaints"]) == (True, True, [])
