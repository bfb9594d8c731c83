"""Standard streams that are closed, or cannot be written, with every kind of command."""

import subprocess
from collections.abc import Callable

import pytest

from tests.support.pools import BIN, PoolRig

SILENT = {"stderr": "2>&-", "full-stderr": "2>/dev/full", "stdin": "<&-"}
LOST = {
    "stdout": ">&-",
    "all": "<&- >&- 2>&-",
    "full-stdout": ">/dev/full",
}


def shell(rig: PoolRig, command: str, how: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", f"'{BIN}/thinpool' {command} {how}"],
        env=rig.env,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("how", SILENT)
def test_a_command_does_not_need_where_it_says_nothing(rig: PoolRig, how: str) -> None:
    done = shell(rig, f"create {how} 1M", SILENT[how])
    assert (done.returncode, done.stdout, done.stderr) == (0, f"created {how}, 1M\n", "")
    assert how in rig.volumes()
    done = shell(rig, "status", SILENT[how])
    assert (done.returncode, done.stderr) == (0, "")
    assert "volumes" in done.stdout
    done = shell(rig, "info nobody", SILENT[how])
    assert (done.returncode, done.stdout) == (1, "")
    assert ("no volume 'nobody'" in done.stderr) is (how == "stdin")


@pytest.mark.parametrize("how", LOST)
def test_an_answer_that_is_lost_is_told_by_the_status(rig: PoolRig, how: str) -> None:
    for command in (f"create lost-{how} 1M", "status", "list --json", "uri lost-stdout"):
        done = shell(rig, command, LOST[how])
        assert (done.returncode, done.stdout) == (1, "")
        if how != "all":
            (line,) = done.stderr.splitlines()
            assert line.startswith("thinpool: stdout: ")
    assert f"lost-{how}" in rig.volumes()
    done = shell(rig, "nonsense", LOST[how])
    assert done.returncode == 2


def test_a_daemon_is_started_and_stopped_without_streams(new_pool: Callable[..., PoolRig]) -> None:
    rig = new_pool(start=False)
    assert shell(rig, "start", "<&- >&- 2>&-").returncode == 1
    assert rig.status()["running"] is True
    rig.create("v", "1M")
    assert shell(rig, "stop", "<&- >&- 2>&-").returncode == 0
    assert rig.status()["running"] is False
