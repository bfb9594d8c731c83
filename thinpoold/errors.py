"""What can go wrong in the daemon and its command line, as exceptions.

The classes keep apart who has to act: the user asked for what cannot be (`UserError` and its
children), there is no room (`NoSpace`), the pool stopped serving (`PoolStopped`), the data device
or the machine failed (`DeviceError`), or the daemon could not be reached (`ControlError`). Errors
of the metadata keep their own classes (`thinmeta.errors`). Anything else is a bug.

A message is one line: what; why; what to do. `exit_status` is the command line's; the errno for
NBD and the code on the control socket are each mapped in one place of their own.
"""

# The names are those a caller reads in `except`: what happened, not that it is an error.
# ruff: noqa: N818

from errno import EIO
from typing import ClassVar

# Exit statuses, in one place.
DONE = 0
REFUSED = 1
USAGE = 2


class ThinPoolError(Exception):
    """Base of all errors that this package raises on purpose."""

    exit_status: ClassVar[int] = REFUSED


class UserError(ThinPoolError):
    """The request cannot be met as it stands; nothing was touched."""


class InvalidName(UserError):
    """A name breaks the rule for names."""


class InvalidSize(UserError):
    """A size is no size, or outside its limits."""


class InvalidSetting(UserError):
    """No such setting, or a value it cannot have."""


class NoSuchVolume(UserError):
    """No volume of that name."""


class VolumeExists(UserError):
    """The name is taken."""


class NameHeld(UserError):
    """A client has another volume open by the name, and may connect again."""


class VolumeInUse(UserError):
    """Clients have the volume open."""


class ContentJumped(UserError):
    """The volume's content is another than the one that was asked for."""

    errno: ClassVar[int] = EIO


class LossNotAccepted(UserError):
    """Something that was answered of the volume is lost, and no administrator has accepted that."""

    errno: ClassVar[int] = EIO


class NoSuchPool(UserError):
    """No pool where one was expected."""


class PoolExists(UserError):
    """A pool, or something else, lies where a new one should go."""


class PoolLocked(UserError):
    """Another process serves or changes the pool. `pid` is 0 when it is not known."""

    def __init__(self, message: str, pid: int = 0) -> None:
        super().__init__(message)
        self.pid = pid


class PoolNotRunning(UserError):
    """The request needs the daemon, and none runs."""


class NoSpace(ThinPoolError):
    """No room for data or metadata."""


class NoMetadataRoom(NoSpace):
    """What is new cannot be committed; what is there can be deleted."""


class PoolStopped(ThinPoolError):
    """The pool's mode does not allow it: read-only or failed."""


class DeviceError(ThinPoolError):
    """The data device is missing, too short, not ours, or failed. `errno` is the system's, or 0."""

    def __init__(self, message: str, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno


class NotRecovered(ThinPoolError):
    """Changes that were flushed could not be committed; they are kept."""


class ControlError(ThinPoolError):
    """The daemon could not be reached, or spoke nonsense."""
