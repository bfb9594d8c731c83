"""Attaching without the kernel's nbd: a file of FUSE, and a loop device on it where that works.

    /dev/loopN ── DIR/VOLUME ── nbdfuse ── nbdkit's retry filter and NBD client ── the daemon

The retry filter is what lets I/O wait for a daemon that went: it repeats a request that failed, so
an error of the daemon's comes late too. With no patience nbdfuse talks to the daemon by itself.

Thread-safety: functions; the caller holds the records' lock.
"""

import contextlib
import os
import subprocess
import time
from pathlib import Path

from thinpoold.attach import nbdclient, records
from thinpoold.attach.devices import BlockDevice
from thinpoold.attach.errors import AttachFailed, AttachRefused
from thinpoold.attach.mounts import PROC, mounts, openers
from thinpoold.attach.records import Attachment

_SECONDS = 30.0
_LOOK_AGAIN = 0.02
_DELAY_SECONDS = 1


def command(
    program: str, file: Path, pid_file: Path, uri: str, *, read_only: bool, patience: int
) -> list[str]:
    """Return the command that serves a volume as `file`."""
    words = [program, "-P", str(pid_file), *(["-r"] if read_only else []), str(file)]
    if patience == 0:
        return [*words, uri]
    server = [nbdclient.find("nbdkit", "nbdkit"), "--exit-with-parent", "--filter=retry", "nbd"]
    server += [f"uri={uri}", f"retries={max(1, patience // _DELAY_SECONDS)}"]
    server += [f"retry-delay={_DELAY_SECONDS}", "retry-exponential=no"]
    return [*words, "[", *server, "]"]


def attach(
    *,
    pool: str,
    volume: str,
    uuid: str,
    generation: int,
    uri: str,
    read_only: bool,
    patience: int,
) -> Attachment:
    """Serve a volume as a file, and as a loop device if that can be had.

    Raises AttachRefused for what is missing here, AttachFailed.
    """
    program = nbdclient.find("nbdfuse", "libnbd-bin")
    nbdclient.find("fusermount3", "fuse3")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise AttachRefused(
            "cannot use /dev/fuse: load it as root with 'modprobe fuse', or let this user use it"
        )
    directory = records.make_directory() / uuid
    log = directory.with_suffix(".log")
    pid_file = directory.with_suffix(".pid")
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        pid_file.unlink(missing_ok=True)
    except OSError as error:
        raise AttachFailed(f"{error.filename}: {error.strerror}") from None
    file = directory / volume
    words = command(program, file, pid_file, uri, read_only=read_only, patience=patience)
    with log.open("wb") as said:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
            cwd="/",
        )
    device: Path | None = None
    try:
        _wait_until_served(process, pid_file, log)
        device = make_loop(file, read_only=read_only)
        attachment = Attachment(
            kind=records.FUSE,
            device=str(device or file),
            pool=pool,
            volume=volume,
            uuid=uuid,
            generation=generation,
            read_only=read_only,
            pid=process.pid,
            started=records.start_time(process.pid),
            patience=patience,
            file=str(file),
        )
        records.save(attachment)
    except BaseException as error:
        _take_back(process, file, device)
        if isinstance(error, OSError):
            raise AttachFailed(f"{error.filename or directory}: {error.strerror}") from None
        raise
    # It stays, and is nobody's to wait for.
    process.returncode = 0
    return attachment


def _take_back(process: "subprocess.Popen[bytes]", file: Path, device: Path | None) -> None:
    """Leave nothing of an attachment that failed but what nbdfuse said."""
    with contextlib.suppress(AttachFailed, AttachRefused):
        if device is not None:
            _free_loop(BlockDevice(device.name), str(file))
        _unmount(file.parent)
    process.kill()
    process.wait()
    with contextlib.suppress(OSError):
        file.parent.rmdir()


def _wait_until_served(process: "subprocess.Popen[bytes]", pid_file: Path, log: Path) -> None:
    deadline = time.monotonic() + _SECONDS
    while not pid_file.exists():
        if process.poll() is not None:
            said = log.read_text(errors="replace")
            raise AttachFailed(f"nbdfuse failed: {nbdclient.reason(said)}")
        if time.monotonic() >= deadline:
            process.kill()
            raise AttachFailed(
                f"nbdfuse does not serve the volume after {_SECONDS:.0f} s; see {log}"
            )
        time.sleep(_LOOK_AGAIN)
    pid_file.unlink(missing_ok=True)


def detach(attachment: Attachment, *, used: bool = False) -> None:
    """Take the loop device and the file away. Raises AttachFailed.

    Who has them open while they are `used` keeps what is left of them, nbdfuse having been ended.
    """
    device = attachment.block_device
    # Somebody may have taken it away, and it may serve another file by now.
    if device is not None and loop_file(device) == attachment.file:
        _free_loop(device, attachment.file, 0 if used else _SECONDS)
    directory = Path(attachment.file).parent
    _unmount(directory)
    deadline = time.monotonic() + _SECONDS
    while attachment.is_kept:
        if time.monotonic() >= deadline:
            raise AttachFailed(f"nbdfuse, process {attachment.pid}, does not end: end it with kill")
        time.sleep(_LOOK_AGAIN)
    records.remove(attachment)
    for left in (directory.with_suffix(".log"), directory.with_suffix(".pid")):
        left.unlink(missing_ok=True)
    directory.rmdir()


def users(attachment: Attachment) -> list[str]:
    """Say who uses the file, apart from our own loop device."""
    own = attachment.block_device
    found = [
        f"in use by {device.path}"
        for device in loop_devices()
        if loop_file(device) == attachment.file and (own is None or device.name != own.name)
    ]
    return found + [
        f"open by process {pid} ({name})" for pid, name in openers({attachment.file}, PROC)
    ]


def make_loop(file: Path, *, read_only: bool) -> Path | None:
    """Make a loop device over a file; None where that is not allowed."""
    words = ["--find", "--show", *(["--read-only"] if read_only else []), str(file)]
    try:
        done = subprocess.run(
            [nbdclient.find("losetup", "mount"), *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except (AttachRefused, OSError):
        return None
    path = done.stdout.strip()
    return Path(path) if done.returncode == 0 and path else None


def _free_loop(device: BlockDevice, file: str, seconds: float = _SECONDS) -> None:
    """Take a loop device off its file. Raises AttachFailed, AttachRefused."""
    nbdclient.run([nbdclient.find("losetup", "mount"), "--detach", str(device.path)])
    deadline = time.monotonic() + seconds
    while loop_file(device) == file and time.monotonic() < deadline:
        time.sleep(_LOOK_AGAIN)


def loop_devices() -> list[BlockDevice]:
    """The loop devices of this machine."""
    return [BlockDevice(path.name) for path in Path("/sys/block").glob("loop*")]


def loop_file(device: BlockDevice) -> str:
    """The file that a loop device is over; '' when it is over none."""
    try:
        return (device.directory / "loop/backing_file").read_text().rstrip("\n")
    except OSError:
        return ""


def _unmount(directory: Path) -> None:
    """Take FUSE's mount away. Raises AttachFailed, unless there is none."""
    # Not os.path.ismount, to which one without its nbdfuse is none.
    if any(one.point == str(directory) for one in mounts()):
        lazily = [] if os.path.ismount(directory) else ["-z"]
        nbdclient.run([nbdclient.find("fusermount3", "fuse3"), "-u", *lazily, str(directory)])
