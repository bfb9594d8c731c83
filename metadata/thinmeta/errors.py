"""What can go wrong in the metadata, as exceptions.

The classes keep apart who has to act: the user asked for something that cannot be (`NotFound`,
`AlreadyExists`), the pool is full (`NoDataSpace`, `NoMetadataSpace`), the machine failed
(`StoreError`), another process is in the way (`Busy`), the metadata is damaged (`Corrupt`) or not
ours to touch (`UnsupportedFormat`, `ReadOnlyStore`), or a handle outlived its store (`Closed`).
Anything else is a bug, and is not caught here. They carry no errno for NBD and no exit status: each
front end maps them in one place.
"""

# The names are those a caller reads in `except`: what happened, not that it is an error.
# ruff: noqa: N818

from __future__ import annotations

import os


class ThinMetaError(Exception):
    """Base of all errors that the metadata library raises on purpose."""


class NotFound(ThinMetaError):
    """No such device or record."""


class AlreadyExists(ThinMetaError):
    """The device id or record is taken."""


class NoDataSpace(ThinMetaError):
    """The data space map has no free block."""


class NoMetadataSpace(ThinMetaError):
    """The metadata cannot grow.

    Its space map is at the format's limit, the LMDB map is full, or the file system under it is.
    """


class StoreError(ThinMetaError):
    """The store failed to read or write; the last commit stands.

    `errno` is the operating system's, and EIO where the store gave none.
    """

    def __init__(self, errno: int, message: str | None = None) -> None:
        self.errno = errno
        super().__init__(message or os.strerror(errno))


class Busy(ThinMetaError):
    """Another process is in the way, and will not be for ever; the metadata is as it was."""


class Corrupt(ThinMetaError):
    """What was read is not what was written, or never made sense.

    `kind` is one word for programs to tell damage apart: 'checksum', 'blocknr', 'node', 'bitmap',
    'index', 'superblock', 'missing', 'encoding', 'record', 'store', ... `where` names the place.
    """

    def __init__(self, kind: str, where: str, message: str) -> None:
        self.kind = kind
        self.where = where
        self.message = message
        super().__init__(f"{where}: {message}" if where else message)

    def __reduce__(self) -> tuple[type[Corrupt], tuple[str, str, str]]:
        return type(self), (self.kind, self.where, self.message)


class ReadOnlyStore(ThinMetaError):
    """A write was tried on a store that was opened read-only, or on a snapshot of one."""


class UnsupportedFormat(ThinMetaError):
    """The metadata is of a newer version, or has features this program does not know."""


class Closed(ThinMetaError):
    """The store or its user was closed before this call."""
