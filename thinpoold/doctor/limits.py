"""Limits: open files, address space, overcommitted memory."""

import resource
from collections.abc import Iterator

from thinpoold.doctor.finding import Finding
from thinpoold.doctor.machine import Machine
from thinpoold.sizes import format_size

# A connection takes three, or one if it has one thread (daemon.safe_threads); a pool a few dozen.
LEAST_FILES = 256
GOOD_FILES = 1024
# LMDB maps the whole size that a metadata file may grow to; the rest is for the process.
ADDRESS_SPACE = (64 << 30) + (4 << 30)
_STRICT = "2"


def limits(machine: Machine) -> Iterator[Finding]:
    """Compare the limits of this process with what a daemon needs that was started from here."""
    files = machine.limits["files"]
    enough = files == resource.RLIM_INFINITY or files >= GOOD_FILES
    yield Finding(
        "open files",
        enough,
        "no limit" if files == resource.RLIM_INFINITY else str(files),
        "each connection takes up to three",
        ""
        if enough
        else f"as root, ulimit -n {GOOD_FILES}; for a service: LimitNOFILE={GOOD_FILES}",
        needed=files != resource.RLIM_INFINITY and files < LEAST_FILES,
    )
    space = machine.limits["address space"]
    enough = space == resource.RLIM_INFINITY or space >= ADDRESS_SPACE
    yield Finding(
        "address space",
        enough,
        "no limit" if space == resource.RLIM_INFINITY else format_size(space // 512 * 512),
        "metadata is mapped as a whole, however little there is of it",
        "" if enough else "ulimit -v unlimited; for a service: LimitAS=infinity",
        needed=True,
    )
    mode = machine.text("/proc/sys/vm/overcommit_memory")
    yield Finding(
        "memory overcommit",
        mode != _STRICT,
        {"0": "heuristic", "1": "always", _STRICT: "never"}.get(mode, "unknown"),
        "volumes' mapping tables reserve memory that they seldom use",
        "" if mode != _STRICT else "sysctl vm.overcommit_memory=0",
    )
