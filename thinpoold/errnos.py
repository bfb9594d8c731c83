"""Which errno an NBD client gets for which exception: the one place where that is decided.

nbdkit passes on those that the protocol knows (EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW,
EOPNOTSUPP, ESHUTDOWN), turns EROFS into EPERM and EDQUOT and EFBIG into ENOSPC, and others into
EINVAL; so none but these leave here.
"""

from __future__ import annotations

import errno

from thinmeta import errors as meta
from thinpoold import errors

_SENT = frozenset(
    {
        errno.EPERM,
        errno.EIO,
        errno.ENOMEM,
        errno.EINVAL,
        errno.ENOSPC,
        errno.EOVERFLOW,
        errno.EOPNOTSUPP,
        errno.ESHUTDOWN,
        errno.EROFS,
        errno.EDQUOT,
        errno.EFBIG,
        errno.ENOENT,
    }
)


class OutOfRange(errors.UserError):
    """A request reaches past the end of its volume."""

    def __init__(self, message: str, *, write: bool) -> None:
        super().__init__(message)
        self.errno = errno.ENOSPC if write else errno.EINVAL


class NotFast(errors.ThinPoolError):
    """A fast zero was asked for where zeroing is as slow as writing; nothing was done."""


class ReadOnlyVolume(errors.UserError):
    """A write to a volume, or through a connection, that is read-only."""


def errno_of(error: BaseException) -> int:
    """Return the errno that stands for `error` on the wire."""
    if isinstance(error, errors.NoSuchVolume | meta.NotFound):
        return errno.ENOENT
    if isinstance(error, errors.NoSpace | meta.NoDataSpace | meta.NoMetadataSpace):
        return errno.ENOSPC
    if isinstance(error, ReadOnlyVolume):
        return errno.EPERM
    if isinstance(error, NotFast):
        return errno.EOPNOTSUPP
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    number = getattr(error, "errno", None)
    return number if number in _SENT else errno.EIO
