"""What the kernel gives: the nbd module, FUSE, loop devices."""

import os
from collections.abc import Iterator

from thinpoold.doctor.finding import Finding
from thinpoold.doctor.machine import Machine
from thinpoold.doctor.programs import INSTALL

_NBD_FOR = "makes volumes block devices: attach"
_FUSE_FOR = "makes volumes files without root: attach --user"
_LOOP_FOR = "mounts what nbdfuse shows"


def nbd(machine: Machine) -> Finding:
    """Whether the nbd module is loaded, or can be."""
    if machine.file("/sys/module/nbd").is_dir():
        return Finding("nbd module", True, "loaded", _NBD_FOR)
    release = machine.text("/proc/sys/kernel/osrelease")
    modprobe = machine.program("modprobe")
    if modprobe is not None and machine.run(modprobe, "--dry-run", "--quiet", "nbd")[0] == 0:
        return Finding("nbd module", False, "not loaded", _NBD_FOR, "modprobe nbd")
    remedy = f"{INSTALL} linux-image-amd64, and boot it; until then: thinpool attach --user"
    return Finding("nbd module", False, f"kernel {release} has none", _NBD_FOR, remedy)


def fuse(machine: Machine) -> Iterator[Finding]:
    """Whether a file system in user space can be mounted, by whoever asks."""
    node = machine.file("/dev/fuse")
    if not node.exists():
        yield Finding("/dev/fuse", False, "not there", _FUSE_FOR, "modprobe fuse")
    elif not os.access(node, os.R_OK | os.W_OK):
        yield Finding("/dev/fuse", False, "not for this user", _FUSE_FOR, f"chmod 666 {node}")
    else:
        yield Finding("/dev/fuse", True, "there", _FUSE_FOR)
    helper = machine.program("fusermount3", "fusermount")
    yield Finding(
        "fusermount",
        helper is not None,
        helper or "not installed",
        "mounts and unmounts for nbdfuse",
        "" if helper else f"{INSTALL} fuse3",
    )


def loop(machine: Machine) -> Finding:
    """Whether a loop device can be had."""
    node = machine.file("/dev/loop-control")
    if not node.exists():
        return Finding("loop devices", False, "none", _LOOP_FOR, "modprobe loop")
    if not os.access(node, os.R_OK | os.W_OK):
        return Finding("loop devices", False, "not for this user", _LOOP_FOR, "run it as root")
    return Finding("loop devices", True, "there", _LOOP_FOR)
