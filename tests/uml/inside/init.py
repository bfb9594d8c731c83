"""The first process of the machine: gets it ready, runs the job, reports, and switches it off.

It needs nothing but Python and mount: modules are loaded, the network brought up and the power
switched off with system calls, so that no package of a booting system has to be there.

Invariants:
1. Whatever happens, the machine is switched off, and the file systems are synced before that.
2. The job is a child: what it does to itself does not end the machine.
3. A job over its time is ended, after every process inside was shown on the console.
"""

import ctypes
import fcntl
import os
import platform
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback
from pathlib import Path

from tests.uml.inside.job import JOB, REPORT, Job, Report, load, save

MODULES = Path("/usr/lib/uml/modules")

_MOUNTS = (
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("tmpfs", "/run"),
    ("tmpfs", "/mnt"),
    ("devpts", "/dev/pts"),
    ("tmpfs", "/dev/shm"),
)
# x86-64's numbers.
_FINIT_MODULE = 313
_POWER_OFF = 0x4321FEDC
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_WARNING = 4

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Runs the job of the directory named by the only argument."""
    directory = Path(sys.argv[1])
    report = Report()
    log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    os.lseek(log, 0, os.SEEK_END)  # What it said while it booted is nobody's fault here.
    try:
        for kind, at in _MOUNTS:
            _mount(kind, Path(at))
        job = load(directory / JOB)
        for module in job.modules:
            _load_module(module)
        _loopback_up()
        report = _run(directory, job)
    except BaseException:
        report.error = traceback.format_exc()
    finally:
        report.kernel = _kernel_log(log)
        save(directory / REPORT, report)
        os.sync()
        _libc.reboot(_POWER_OFF)


def _mount(kind: str, at: Path) -> None:
    at.mkdir(exist_ok=True)
    subprocess.run(["/bin/mount", "-t", kind, kind, str(at)], check=True)


def _load_module(name: str) -> None:
    path = MODULES / platform.release() / "kernel" / f"{name}.ko"
    with path.open("rb") as module:
        if _libc.syscall(_FINIT_MODULE, module.fileno(), b"", 0) != 0:
            raise OSError(ctypes.get_errno(), f"loading {path} failed")


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP))


def _run(directory: Path, job: Job) -> Report:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    deadline = time.monotonic() + job.limit_s
    child = os.fork()
    if child == 0:
        _job_process(directory / REPORT, job)
    # Orphans come here too: the first process is everybody's last parent.
    while (ended := os.waitpid(-1, os.WNOHANG))[0] != child:
        left = deadline - time.monotonic()
        if left <= 0:
            _show_processes()
            os.kill(child, signal.SIGKILL)
            return Report(error=f"the job took longer than {job.limit_s} s")
        if ended[0] == 0:
            signal.sigtimedwait([signal.SIGCHLD], left)
    try:
        report = load(directory / REPORT)
    except FileNotFoundError:
        code = os.waitstatus_to_exitcode(ended[1])
        return Report(error=f"the job ended with exit status {code}, and without a result")
    assert isinstance(report, Report)
    return report


def _job_process(result: Path, job: Job) -> None:
    """Never returns."""
    status = 1
    try:
        os.setsid()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        try:
            report = Report(job.function(*job.args, **job.kwargs), None)
        except BaseException:
            report = Report(error=traceback.format_exc())
        save(result, report)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _show_processes() -> None:
    """Who waits where, for the reader of a test that hung."""
    for process in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            command = (
                (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            )
            if command:
                state = (process / "stat").read_text().rpartition(")")[2].split()[0]
                where = (process / "stack").read_text().split("\n")[0:6]
                sys.stdout.write(f"{process.name} {state} {command}\n")
                sys.stdout.writelines(f"    {line}\n" for line in where if line)
        except OSError:
            continue
    sys.stdout.flush()


def _kernel_log(log: int) -> list[str]:
    """What the kernel logged as a warning or worse since `log` was opened."""
    lines: list[str] = []
    while True:
        try:
            record = os.read(log, 8192).decode(errors="replace")
        except BlockingIOError:
            return lines
        except BrokenPipeError:  # Overwritten before it was read.
            continue
        fields, _, text = record.partition(";")
        # Facility 0 is the kernel's own.
        if int(fields.split(",")[0]) <= _WARNING:
            lines.append(text.split("\n")[0])


if __name__ == "__main__":
    main()
