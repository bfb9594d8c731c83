"""A daemon whose descriptors idle clients have used up: it says so, and ends when told to."""

import os
import signal
import socket
import time
from contextlib import ExitStack

from tests.conftest import PoolMaker
from tests.support.tools import PATIENCE, free_port

MOST = 128


def test_it_ends_when_idle_clients_have_all_descriptors(new_pool: PoolMaker) -> None:
    rig = new_pool(start=False)
    port = free_port()
    rig.start("--listen", f"127.0.0.1:{port}", prefix=["prlimit", f"--nofile={MOST}:{MOST}"])
    deadline = time.monotonic() + PATIENCE
    with ExitStack() as stack:
        # Many more than it has room for: the rest wait to be accepted.
        for _ in range(MOST):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        while len(os.listdir(f"/proc/{rig.pid}/fd")) < MOST - 3:
            assert time.monotonic() < deadline
        handle = os.pidfd_open(rig.pid)
        try:
            signal.pidfd_send_signal(handle, signal.SIGTERM)
            rig._await_end(handle)
        finally:
            os.close(handle)
    rig._forget()
