"""What must not happen to a volume that is, or would be, a device of this machine.

The daemon refuses what would hurt clients that it has. An attached volume has one even while the
daemon is stopped, or has only just started: the kernel, which waits.

Thread-safety: nothing is kept; any thread.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from thinpoold.attach.errors import AttachRefused
from thinpoold.attach.records import Attachment, attachments

# With several connections the kernel repeats requests after 120 seconds (see keeper). Those of a
# full pool may wait for so many, and still be done in time.
MOST_FULL_SECONDS = 90
# Settings of pools and volumes that say how long requests wait.
SLOW = frozenset({"on_full", "full_timeout", "iops", "bps"})


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
    """Raise AttachRefused if the kernel would repeat requests that wait because of settings.

    The first could still be under way, and overtake what comes after the second. `settings` are
    those of the pool, those of the volume, or both.
    """
    reason = _what_waits(settings)
    if reason and connections > 1:
        raise AttachRefused(
            f"with several connections the kernel repeats requests that take long, and {reason}: "
            f"leave --connections out, or 'thinpool set {_remedy(settings)}'"
        )


def refuse_to_slow(settings: Mapping[str, Any], attached: Iterable[Attachment]) -> None:
    """Raise AttachRefused if settings would have the kernel repeat requests to what is attached.

    `settings` are those of the pool or of the volume, as they would be.
    """
    reason = _what_waits(settings)
    for one in attached:
        if reason and one.connections > 1:
            raise AttachRefused(
                f"{one.device} is attached with {one.connections} connections: the kernel repeats "
                f"requests that take long, and {reason}; detach it first, and attach it without "
                "--connections"
            )


def _what_waits(settings: Mapping[str, Any]) -> str:
    """Say what may take longer than the kernel waits; '' for nothing."""
    if settings.get("iops") or settings.get("bps"):
        # However high: the one that came last waits for all before it, and those of other clients
        # too, for the limit is one for all.
        return "those to a volume with limits wait for as long as others come before them"
    full: int = settings.get("full_timeout", MOST_FULL_SECONDS)
    if settings.get("on_full") != "queue" or 0 < full <= MOST_FULL_SECONDS:
        return ""
    return f"in this pool they may wait {f'{full} s' if full else 'for ever'} for space"


def _remedy(settings: Mapping[str, Any]) -> str:
    if settings.get("iops") or settings.get("bps"):
        return "--volume VOL iops=unlimited bps=unlimited"
    return f"full-timeout={MOST_FULL_SECONDS}"
