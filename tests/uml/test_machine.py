"""The machine: it boots, answers, is loud when something went wrong, and leaves nothing behind."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.uml.inside import samples
from tests.uml.inside.commands import shell
from tests.uml.machine import DM_THIN, NBD, ROOT, JobFailed, Machine

pytestmark = pytest.mark.slow


def processes_of(directory: Path) -> list[str]:
    """Command lines of the living processes that mention the directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(directory) in line:
            found.append(line)
    return found


def test_a_job_runs_on_another_kernel(machine: Machine, tmp_path: Path) -> None:
    total, release = machine.call(samples.add, 2, right=3)
    assert total == 5
    assert release != platform.release()
    assert processes_of(tmp_path) == []


def test_disks_and_modules_are_there(machine: Machine, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"before" + bytes(1 << 20))
    machine.disks, machine.modules = [image], NBD + DM_THIN
    found = machine.call(
        shell,
        "head -c 6 /dev/ubda; echo; cat /proc/modules; test -b /dev/nbd0; dmsetup targets;"
        "echo after | dd of=/dev/ubda conv=notrunc status=none",
    )
    assert found.startswith("before\n")
    assert {"nbd", "dm_thin_pool", "thin"} <= {line.split()[0] for line in found.splitlines()}
    assert image.read_bytes().startswith(b"after\n")


def test_an_error_comes_back_with_its_place(machine: Machine) -> None:
    with pytest.raises(JobFailed, match=r"(?s)in fail.*ValueError: for this reason"):
        machine.call(samples.fail, "for this reason")


def test_a_failing_shell_says_what_it_said(machine: Machine) -> None:
    with pytest.raises(JobFailed, match="to no avail"):
        machine.call(shell, "echo to no avail >&2; false; true")


def test_a_job_that_vanishes_is_missed(machine: Machine) -> None:
    with pytest.raises(JobFailed, match="ended with exit status 7"):
        machine.call(samples.vanish)


def test_a_machine_without_power_is_missed(machine: Machine) -> None:
    with pytest.raises(JobFailed, match="did not come to its end"):
        machine.call(samples.cut_power)


def test_a_job_has_its_time(machine: Machine, tmp_path: Path) -> None:
    machine.limit_s = 1.0
    with pytest.raises(JobFailed, match=r"(?s)took longer than 1.0 s.*hanging.*sleep 1000000"):
        machine.call(samples.hang)
    assert processes_of(tmp_path) == []


def test_a_stuck_machine_has_its_time(machine: Machine, tmp_path: Path) -> None:
    machine.margin_s = -machine.limit_s + 1.0
    with pytest.raises(JobFailed, match="did not come to its end"):
        machine.call(samples.hang)
    assert processes_of(tmp_path) == []


def test_what_upsets_the_kernel_fails_the_job(machine: Machine) -> None:
    machine.modules = DM_THIN
    with pytest.raises(JobFailed, match=r"kernel: device-mapper: .*Device lookup failed"):
        machine.call(samples.upset_the_kernel)
    machine.expected = ["Device lookup failed", "error adding target"]
    machine.call(samples.upset_the_kernel)


def test_the_machine_goes_when_the_test_is_killed(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from tests.uml.inside.samples import hang
from tests.uml.machine import Machine
machine = Machine(Path({str(tmp_path)!r}))
machine.console = 1
machine.call(hang)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as test:
        assert test.stdout is not None
        assert any(b"hanging" in line for line in test.stdout)
        test.kill()
        # Ends when the last process that holds the console has gone.
        test.stdout.read()
