"""Boots a real Linux as a process, and runs a job of the tests inside it.

User Mode Linux takes this machine's file system as its root, so the job is a plain function of
these tests, called with plain values: both are pickled into the machine's directory, `inside.init`
is the machine's first process, calls the function, and leaves the result beside them.

    machine = Machine(tmp_path, disks=[image])
    digests = machine.call(some_module.some_function, argument)
    machine.call(shell, "mkfs.ext4 -q /dev/ubda")

Invariants:
1. A machine that does not come to its end in time is ended, and the test gets its console.
2. No process outlives `call`; if the test process itself is killed, the machine goes with it.
3. What the kernel inside logs as a warning or worse fails the call, unless it was expected, or
   tells of nothing but a slow machine.

Thread safety: one call at a time per Machine; several Machines side by side are fine.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ParamSpec, TypeVar, cast

from tests.support.tools import program
from tests.uml.inside.job import JOB, REPORT, Job, Report, load, save

P = ParamSpec("P")
T = TypeVar("T")

KERNEL = "linux.uml"
ROOT = Path(__file__).resolve().parents[2]

NBD = ("drivers/block/nbd",)
DM_THIN = (
    "drivers/md/dm-mod",
    "drivers/md/dm-bufio",
    "drivers/md/dm-bio-prison",
    "drivers/md/persistent-data/dm-persistent-data",
    "drivers/md/dm-thin-pool",
)

# What a kernel says that is not given the processor in time.
_SLOWNESS = ("hrtimer: interrupt took", "rcu: INFO:", "clocksource:")

# The machine is the leader of its process group: it would make one of its own otherwise. With it
# goes a shell that ends the group when the other end of its stdin is closed, which the death of the
# test process does as well.
_START = """
exec 3<&0 </dev/null
(read -r _ <&3; kill -9 -$$) &
exec 3<&-
exec "$@"
"""


class JobFailed(AssertionError):  # noqa: N818 - a test's verdict
    """The job inside raised, or the machine did not come to its end."""


class Machine:
    """Runs jobs, one boot each.

    `disks` are files that appear inside as /dev/ubda, /dev/ubdb, ... `limit_s` is what a job may
    take, and `margin_s` is for the boot. `expected` are pieces of kernel log lines that are no
    reason to fail. The console goes to a file, or to the file descriptor `console`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        disks: Sequence[Path] = (),
        modules: Sequence[str] = (),
        memory_mib: int = 512,
        limit_s: float = 420.0,
    ) -> None:
        self.directory = directory
        self.disks = list(disks)
        self.modules = tuple(modules)
        self.memory_mib = memory_mib
        self.limit_s = limit_s
        self.margin_s = 60.0
        self.expected: list[str] = []
        self.console: int | None = None
        self.boots = 0

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Boots, calls `function` inside, and returns what it returned. Raises JobFailed."""
        self.boots += 1
        directory = self.directory / f"boot{self.boots}"
        directory.mkdir(parents=True)
        save(directory / JOB, Job(function, args, kwargs, self.modules, self.limit_s))
        self._boot(directory)
        report = self._report(directory)
        complaints = [
            line
            for line in report.kernel
            if not any(piece in line for piece in (*_SLOWNESS, *self.expected))
        ]
        if report.error is not None or complaints:
            said = "".join(f"\nkernel: {line}" for line in complaints)
            raise JobFailed(f"{report.error or ''}{said}\n{self._console(directory)}")
        return cast(T, report.value)

    def _boot(self, directory: Path) -> None:
        first = directory / "init"
        first.write_text(
            f"#!/bin/sh\nexport PATH={Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin\n"
            f"cd '{ROOT}' && exec '{sys.executable}' -m tests.uml.inside.init '{directory}'\n"
        )
        first.chmod(0o755)
        with (
            TemporaryDirectory(prefix="uml-") as scratch,
            (directory / "console").open("wb") as console,
        ):
            environment = dict(os.environ)
            if shutil.disk_usage("/dev/shm").free < self.memory_mib << 20:
                environment["TMPDIR"] = scratch
            _run_group(
                self._command(first, scratch),
                timeout_s=self.limit_s + self.margin_s,
                stdout=console.fileno() if self.console is None else self.console,
                environment=environment,
            )

    def _command(self, first: Path, scratch: str) -> list[str]:
        disks = [f"ubd{number}={path}" for number, path in enumerate(self.disks)]
        return [
            program(KERNEL),
            *("root=/dev/root", "rootfstype=hostfs", "rootflags=/", "rw", f"init={first}"),
            *(f"mem={self.memory_mib}M", f"uml_dir={scratch}", *disks),
            # Its console is our file; warnings go there too.
            *("con=null", "con0=null,fd:1", "con1=null", "loglevel=5", "panic=-1"),
        ]

    def _report(self, directory: Path) -> Report:
        try:
            report = load(directory / REPORT)
        except FileNotFoundError:
            return Report(error="the machine did not come to its end")
        assert isinstance(report, Report)
        return report

    def _console(self, directory: Path) -> str:
        text = (directory / "console").read_text(errors="replace").replace("\r", "")
        return f"--- console of {directory.name}\n{text}"


def installed() -> bool:
    """Whether this machine has User Mode Linux."""
    return shutil.which(KERNEL) is not None


def _run_group(
    command: Sequence[str], *, timeout_s: float, stdout: int, environment: Mapping[str, str]
) -> None:
    """Runs a program, to its end or its time, and returns when all its processes have gone."""
    alive, held_by_all = os.pipe()
    try:
        with subprocess.Popen(
            ["/bin/sh", "-c", _START, "sh", *command],
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            pass_fds=[held_by_all],
        ) as leader:
            try:
                leader.wait(timeout_s)
            except subprocess.TimeoutExpired:
                pass  # The report will be missing.
            # Leaving this block closes its stdin, which ends whatever is left of the group.
    finally:
        os.close(held_by_all)
        os.read(alive, 1)
        os.close(alive)
