"""What must not happen to a volume that is a device of this machine.

The daemon refuses what would hurt clients that it has. An attached volume has one even while the
daemon is stopped, or has only just started: the kernel, which waits.

Thread-safety: nothing is kept; any thread.
"""

from pathlib import Path

from thinpoold.attach.errors import AttachRefused
from thinpoold.attach.records import attachments


def any_attached(pool: Path) -> bool:
    """Whether this machine has anything of the pool attached."""
    return bool(attachments(pool))


def refuse_attached(pool: Path, name: str, uuid: str) -> None:
    """Raise AttachRefused, with device and mount point, if a volume is attached here."""
    for one in attachments(pool):
        if one.uuid == uuid:
            where = "".join(f", mounted on {point}" for point in one.mounts())
            raise AttachRefused(
                f"volume {name!r} is attached as {one.device}{where}: detach it first, with "
                f"'thinpool detach {one.device}'"
            )
