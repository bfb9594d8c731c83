"""Unmounting what was attached, without getting stuck where its daemon is gone.

What a file system has not written yet umount writes, and while nobody serves the device that waits,
in the kernel, where no signal reaches it. So the daemon is asked for before, and meanwhile; a
command that gives up leaves the umount to end by itself, when the daemon is back.

Thread-safety: functions; the caller holds the records' lock.
"""

import subprocess
import tempfile
import time
from pathlib import Path

from thinpoold.attach import nbdclient
from thinpoold.attach.errors import AttachFailed, AttachRefused
from thinpoold.attach.handshake import Server, greet
from thinpoold.attach.records import Attachment
from thinpoold.control.client import ControlClient
from thinpoold.errors import ControlError, PoolNotRunning
from thinpoold.paths import pool_paths
from thinpoold.waiting import Waiting

# A daemon that does not greet for so long is not there. Greeting takes no lock, and no disk.
_GREET_SECONDS = 10.0
_ASK_AGAIN_SECONDS = 1.0
# An umount of a device whose requests all fail.
_FORCED_SECONDS = 30.0


def unmount(attachment: Attachment, *, force: bool) -> None:
    """Unmount it wherever it is mounted; the last mount first.

    Raises AttachRefused when what is unwritten has nobody to go to, AttachFailed. With `force` its
    requests fail already: a file system that is in use is taken away from under its users.
    """
    points = attachment.mounts()
    if points and not force and not attachment.read_only and not is_served(attachment):
        raise AttachRefused(_gone(attachment))
    for point in reversed(points):
        _unmount(attachment, point, force=force)


def is_served(attachment: Attachment) -> bool:
    """Whether a daemon answers for it, or a service manager would start one."""
    paths = pool_paths(Path(attachment.pool))
    try:
        with Server(str(paths.nbd_socket)).connect(_GREET_SECONDS) as peer:
            greet(peer)
            return True
    except (OSError, ControlError):
        pass
    if paths.nbd_socket.exists():
        return False
    # At a port, which only the daemon knows.
    try:
        ControlClient.connect(paths.control_socket, paths.trusted).close()
    except (PoolNotRunning, ControlError):
        return False
    return True


def _gone(attachment: Attachment) -> str:
    return (
        f"the daemon of pool {attachment.pool} does not answer, and what is not written yet has to "
        f"go there: start it, or lose that with 'thinpool detach {attachment.device} --unmount "
        "--force'"
    )


def _unmount(attachment: Attachment, point: str, *, force: bool) -> None:
    program = nbdclient.find("umount", "mount")
    what = f"umount {point}, which writes out to {attachment.device}"
    until = f"for at most {_FORCED_SECONDS:.0f} s" if force else "while its daemon answers"
    with Waiting(what, until):
        if _run([program, "--", point], attachment, force=force):
            return
        # Gone from here at once, and from the kernel when its last user lets go.
        _run([program, "--lazy", "--", point], attachment, force=force)


def _run(command: list[str], attachment: Attachment, *, force: bool) -> bool:
    """Run umount; False when it failed and there is a harder way. Raises AttachFailed."""
    deadline = time.monotonic() + _FORCED_SECONDS
    with tempfile.TemporaryFile() as said:
        # Not in a `with`, which would wait for it for ever.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
        )
        while True:
            try:
                status = process.wait(_ASK_AGAIN_SECONDS)
                break
            except subprocess.TimeoutExpired:
                given_up = time.monotonic() >= deadline if force else not is_served(attachment)
                if given_up:
                    process.returncode = 0  # It is nobody's to wait for.
                    why = "see dmesg for what it waits for" if force else _gone(attachment)
                    raise AttachFailed(
                        f"umount {command[-1]} waits in the kernel, and ends when it can: {why}"
                    ) from None
        said.seek(0)
        text = said.read().decode("utf-8", "replace")
    lazy = "--lazy" in command
    if status != 0 and (lazy or not force):
        raise AttachFailed(f"umount failed: {nbdclient.reason(text)}")
    return status == 0
