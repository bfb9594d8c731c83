"""thinpool stop."""

import json
import os
import select
from pathlib import Path

from tests.conftest import PoolMaker
from tests.integration.cli.outcomes import refused
from tests.support.pools import PoolRig


def test_everything_written_is_there_afterwards(pool: PoolRig) -> None:
    pool.create("a", "1M")
    # Not flushed, and the client stays: stopping flushes, and disconnects it.
    with pool.connect("a") as client:
        client.write(0, b"x" * 4096)
        process = os.pidfd_open(pool.pid)
        done = pool.run("stop")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert select.select([process], [], [], 0)[0], "the process is still there"
        os.close(process)
    pool._forget()
    pool.start()
    with pool.connect("a") as client:
        assert client.read(0, 8192) == b"x" * 4096 + bytes(4096)


def test_nothing_is_left(pool: PoolRig) -> None:
    run_dir = Path(pool.status()["control_socket"]).parent
    pid = pool.pid
    assert json.loads(pool.cli("stop", str(pool.directory), "--json")) == {
        "stopped": True,
        "pid": pid,
    }
    pool._forget()
    assert list(run_dir.iterdir()) == []
    assert pool.status()["running"] is False


def test_a_stopped_pool_is_said_to_be(new_pool: PoolMaker) -> None:
    rig = new_pool(start=False)
    done = rig.run("stop")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"thinpool: pool {rig.directory} is not running: nothing to stop\n"
    assert rig.json("stop") == {"stopped": False, "pid": None}


def test_no_pool(tmp_path: Path) -> None:
    rig = PoolRig(tmp_path / "nothing")
    refused(rig, "stop", says="no pool in")
