"""File systems' own tools, inside the machine."""

from tests.uml.inside.commands import run

# Left to itself, the kernel writes ext4's inode tables out some time after the first mount: space
# that is in use or is not, as the clock has it.
_OPTIONS = {"ext4": ("-E", "lazy_itable_init=0")}
_CHECK = {"ext4": ("e2fsck", "-fn"), "xfs": ("xfs_repair", "-n")}


def mkfs(kind: str, device: str) -> None:
    """An empty file system, whole from the start: nothing of it is written behind one's back."""
    run(f"mkfs.{kind}", "-q", *_OPTIONS.get(kind, ()), device)


def fsck(kind: str, device: str) -> None:
    """The file system's checker, which changes nothing. Raises AssertionError if it complains."""
    run(*_CHECK[kind], device)
