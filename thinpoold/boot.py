"""Which boot of the machine this is: the page cache, and all else in memory, dies with it.

The kernel's boot id tells boots apart, but not everywhere what reads it: systemd-nspawn and LXC put
a file of the container's own over it, which differs at each start of the container while the
machine, and its page cache, go on. Two ids that differ then say nothing about the machine, and
nothing else does that a container can see: clocks and counters can be alike in two boots, a file in
a tmpfs dies with the container or is the administrator's to keep.

A service that sees no more of /proc than processes (ProcSubset=pid, as ours) cannot read it; its
unit hands it over as THINPOOLD_BOOT_ID.

    ids equal                          the same boot
    ids equal, but the clock that runs
    from boot on shows less than then  unknown: the id is one that never changes
    ids differ, both the kernel's own  another boot: memory is gone, and every local client with it
    ids differ, one is a container's   unknown: neither may be assumed

What is assumed: an id that is mounted over is another's, and so is one that a service manager hands
over within a container; any other is the kernel's. And a kernel's id never comes twice. Some
sandboxes show the same id for ever, and so does what an administrator has mounted over it; there
the clock tells of a restart as long as the machine has not been up for longer than it was then.
That clock proves no restart by itself: a time namespace gives each container another.

Thread-safety: no state.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from time import CLOCK_BOOTTIME, clock_gettime_ns
from typing import Final

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
ENVIRONMENT: Final = "THINPOOLD_BOOT_ID"
CONTAINER: Final = Path("/run/systemd/container")
"""systemd puts it there in a container that it is the first process of."""
_ID_BYTES: Final = 16
_MOUNTS: Final = Path("/proc/self/mountinfo")
# mountinfo(5): the fifth field of a line.
_MOUNT_POINT: Final = 4


class Since(Enum):
    """What became of the machine since an earlier boot was noted."""

    SAME = "the same boot"
    OTHER = "another boot"
    UNKNOWN = "an unknown boot"


@dataclass(frozen=True)
class Boot:
    """`id` is 16 bytes, empty where there is none; `own`: it is the kernel's, not a container's.

    `uptime_ns` is how long it had lasted when it was noted, in nanoseconds; 0 where nobody did.
    """

    id: bytes
    own: bool
    uptime_ns: int = field(default=0, compare=False)

    def since(self, earlier: Boot) -> Since:
        """Return what became of the machine since that boot."""
        if not self.id or not earlier.id:
            return Since.UNKNOWN
        if self.id == earlier.id:
            return Since.UNKNOWN if self.uptime_ns < earlier.uptime_ns else Since.SAME
        return Since.OTHER if self.own and earlier.own else Since.UNKNOWN


NO_BOOT: Final = Boot(b"", own=False)
"""Of which nothing is known."""


def current() -> Boot:
    """Return this boot."""
    now = uptime_ns()
    try:
        return Boot(_parsed(BOOT_ID.read_text()), not _is_mounted_over(BOOT_ID), now)
    except (OSError, ValueError):
        pass
    try:
        return Boot(_parsed(os.environ.get(ENVIRONMENT, "")), not CONTAINER.exists(), now)
    except ValueError:
        return NO_BOOT


def uptime_ns() -> int:
    """Return how long this boot has lasted, in nanoseconds; it goes on while the machine sleeps."""
    return clock_gettime_ns(CLOCK_BOOTTIME)


def _parsed(text: str) -> bytes:
    boot_id = bytes.fromhex(text.strip().replace("-", ""))
    if len(boot_id) != _ID_BYTES:
        raise ValueError(f"{text[:80]!r} is no boot id")
    return boot_id


def _is_mounted_over(path: Path) -> bool:
    try:
        lines = _MOUNTS.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        # Without /proc/self/mountinfo this is no ordinary Linux: nothing is known.
        return True
    return any(line.split(" ", _MOUNT_POINT + 1)[_MOUNT_POINT] == str(path) for line in lines)
