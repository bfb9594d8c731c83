"""What can go wrong in attaching and detaching."""

# The names are those a caller reads in `except`: what happened, not that it is an error.
# ruff: noqa: N818

from thinpoold.errors import ThinPoolError, UserError


class AttachRefused(UserError):
    """It cannot be done as things are; nothing was touched."""


class AttachFailed(ThinPoolError):
    """A program or the kernel failed at it; what had been done is undone."""


class DeviceBusy(AttachFailed):
    """Somebody else took the device first."""
