"""What must not happen to a volume that is, or would be, a device of this machine.

The daemon refuses what would hurt clients that it has. An attached volume has one even while the
daemon is stopped, or has only just started: the kernel, which waits.

Thread-safety: nothing is kept; any thread.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thinpoold.attach.errors import AttachRefused
from thinpoold.attach.records import attachments

# With several connections the kernel repeats requests after 120 seconds (see keeper). Those of a
# full pool may wait for so many, and still be done in time.
MOST_FULL_SECONDS = 90


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


def refuse_repeats(settings: Mapping[str, Any], connections: int) -> None:
    """Raise AttachRefused if the kernel would repeat requests that wait for space in the pool.

    The first could still be under way, and overtake what comes after the second.
    """
    waits: int = settings["full_timeout"]
    if connections == 1 or settings["on_full"] != "queue" or 0 < waits <= MOST_FULL_SECONDS:
        return
    how_long = f"{waits} s" if waits else "for ever"
    raise AttachRefused(
        "with several connections the kernel repeats requests that take long, and in this pool "
        f"they may wait {how_long} for space: leave --connections out, or "
        f"'thinpool set full-timeout={MOST_FULL_SECONDS}'"
    )
