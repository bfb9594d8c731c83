"""A pool seen from another process id namespace, by another path: as from a container beside it."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import PoolMaker
from tests.support.pools import PoolRig
from tests.support.tools import PATIENCE, run

LAST_PID = Path("/proc/sys/kernel/ns_last_pid")

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not LAST_PID.exists(), reason="a namespace needs root"
)

# $1, mounted as $2; then, as process $3, the rest.
AS_PROCESS = (
    'mount --bind "$1" "$2"; echo $(($3 - 1)) > /proc/sys/kernel/ns_last_pid; shift 3; "$@"'
)


class Elsewhere:
    """A container, as far as process ids and paths go."""

    def __init__(self, rig: PoolRig, path: Path) -> None:
        self._rig, self._path = rig, path
        path.mkdir()

    def run(self, program: str, *arguments: str, pid: int) -> subprocess.CompletedProcess[str]:
        """A program of ours with the pool as its other path, and with that process id."""
        return run(
            *(
                "unshare",
                "--pid",
                "--fork",
                "--mount",
                "--mount-proc",
                "sh",
                "-c",
                AS_PROCESS,
                "sh",
            ),
            *(str(self._rig.directory), str(self._path), str(pid), program, *arguments),
            check=False,
            env={**self._rig.env, "THINPOOL_POOL": str(self._path)},
            timeout=PATIENCE,
        )


def test_a_pool_in_another_process_id_namespace(new_pool: PoolMaker, tmp_path: Path) -> None:
    rig = new_pool("64M")
    rig.create("v", "1M")
    elsewhere = Elsewhere(rig, tmp_path / "there")
    another = elsewhere.run("thinpool", "check", pid=rig.pid + 1)
    assert another.returncode == 0, another.stderr
    # LMDB knows readers by their process id.
    alike = elsewhere.run("thinpool", "check", pid=rig.pid)
    assert alike.returncode == 1
    assert "of another process id namespace reads it" in alike.stderr
    assert "damaged" not in alike.stdout + alike.stderr
    second = elsewhere.run("thinpoold", str(tmp_path / "there"), "--foreground", pid=rig.pid)
    assert second.returncode == 1
    assert "is locked by process" in second.stderr
    assert elsewhere.run("thinpool", "create", "w", "1M", pid=rig.pid).returncode == 0
    assert set(rig.volumes()) == {"v", "w"}


def test_a_daemon_in_another_process_id_namespace_can_be_stopped(
    new_pool: PoolMaker, tmp_path: Path
) -> None:
    rig = new_pool("64M")
    stopped = Elsewhere(rig, tmp_path / "there").run("thinpool", "stop", pid=7)
    assert (stopped.returncode, stopped.stderr) == (0, "")
    rig.kill()
    assert not rig.status()["running"]
