"""A synchronous NBD client with types, over libnbd.

Offsets and counts are bytes. Every method raises `NbdError`, with the errno the server sent.

Thread-safety: one thread at a time per client; different clients are independent.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.libnbd import nbd

FUA: int = nbd.CMD_FLAG_FUA
NO_HOLE: int = nbd.CMD_FLAG_NO_HOLE
FAST_ZERO: int = nbd.CMD_FLAG_FAST_ZERO
HOLE: int = nbd.STATE_HOLE
ZERO: int = nbd.STATE_ZERO

# The largest request that the daemon takes.
LARGEST = 4 << 20


class NbdError(Exception):
    """The server, or libnbd, refused or failed a request."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(f"{message} ({errno.errorcode.get(number, number)})")
        self.errno = number


@contextmanager
def translated() -> Iterator[None]:
    """Turns libnbd's untyped exception into NbdError."""
    try:
        yield
    except nbd.Error as error:
        raise NbdError(error.string, error.errnum) from None


@dataclass(frozen=True, slots=True)
class Extent:
    """One run of block status: `length` bytes from `offset`, NBD's hole and zero bits."""

    offset: int
    length: int
    hole: bool
    zero: bool

    @property
    def end(self) -> int:
        return self.offset + self.length


class NbdClient:
    """One connection to one export over a Unix socket."""

    def __init__(self, socket: Path | str, export: str, *, strict: bool = True) -> None:
        """Connects; with `strict` off, libnbd sends even what it knows the server must refuse."""
        self.export = export
        self.raw: Any = nbd.NBD()
        with translated():
            self.raw.set_export_name(export)
            self.raw.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
            if not strict:
                self.raw.set_strict_mode(0)
            self.raw.connect_unix(str(socket))
            self.size: int = self.raw.get_size()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        return bool(self.raw.aio_is_ready() or self.raw.aio_is_processing())

    @property
    def minimum_block(self) -> int:
        """The smallest request and alignment the server takes, in bytes."""
        size: int = self.raw.get_block_size(nbd.SIZE_MINIMUM)
        return size or 1

    @property
    def preferred_block(self) -> int:
        size: int = self.raw.get_block_size(nbd.SIZE_PREFERRED)
        return size

    @property
    def largest_request(self) -> int:
        """The most bytes that the server takes in one request."""
        size: int = self.raw.get_block_size(nbd.SIZE_MAXIMUM)
        return size

    def close(self) -> None:
        """Ends the connection; says goodbye to a server that still listens."""
        try:
            if self.alive:
                self.raw.shutdown()
        except nbd.Error:
            pass  # The server is gone: nobody to say goodbye to.
        self.raw = None

    def read(self, offset: int, count: int) -> bytes:
        """Reads `count` bytes, in as many requests as it takes."""
        pieces = []
        with translated():
            while count > LARGEST:
                pieces.append(bytes(self.raw.pread(LARGEST, offset)))
                count -= LARGEST
                offset += LARGEST
            return b"".join([*pieces, bytes(self.raw.pread(count, offset))])

    def read_all(self) -> bytes:
        """Every byte of the export."""
        return self.read(0, self.size)

    def write(self, offset: int, data: bytes | bytearray, flags: int = 0) -> None:
        """Writes `data`, in as many requests as it takes."""
        rest = memoryview(data)
        with translated():
            while len(rest) > LARGEST:
                self.raw.pwrite(bytes(rest[:LARGEST]), offset, flags)
                rest = rest[LARGEST:]
                offset += LARGEST
            self.raw.pwrite(bytes(rest), offset, flags)

    def flush(self) -> None:
        with translated():
            self.raw.flush()

    def trim(self, offset: int, count: int, flags: int = 0) -> None:
        with translated():
            self.raw.trim(count, offset, flags)

    def zero(self, offset: int, count: int, flags: int = 0) -> None:
        with translated():
            self.raw.zero(count, offset, flags)

    def cache(self, offset: int, count: int) -> None:
        with translated():
            self.raw.cache(count, offset)

    def extents(self, offset: int = 0, count: int | None = None) -> list[Extent]:
        """Block status of `count` bytes from `offset`, as many requests as it takes."""
        end = self.size if count is None else offset + count
        found: list[Extent] = []

        def note(_context: str, at: int, entries: list[int], _error: Any) -> int:
            for length, flags in zip(entries[::2], entries[1::2], strict=True):
                stop = min(at + length, end)
                if stop > at:
                    extent = Extent(at, stop - at, bool(flags & HOLE), bool(flags & ZERO))
                    found.append(extent)
                at += length
            return 0

        while offset < end:
            # NBD lengths are 32 bits wide.
            with translated():
                self.raw.block_status(min(end - offset, 1 << 30), offset, note)
            if not found or found[-1].end <= offset:
                raise AssertionError(f"block status of {self.export} made no way at {offset}")
            offset = found[-1].end
        return found


def merged(extents: list[Extent]) -> list[Extent]:
    """The same extents, neighbours of one kind joined: answers may be cut anywhere."""
    out: list[Extent] = []
    for extent in extents:
        last = out[-1] if out else None
        if (
            last
            and last.end == extent.offset
            and (last.hole, last.zero)
            == (
                extent.hole,
                extent.zero,
            )
        ):
            out[-1] = Extent(last.offset, last.length + extent.length, last.hole, last.zero)
        else:
            out.append(extent)
    return out


def exports(socket: Path | str) -> dict[str, str]:
    """The server's list of exports: name -> description."""
    handle = nbd.NBD()
    found: dict[str, str] = {}

    def note(name: str, description: str) -> int:
        found[name] = description
        return 0

    with translated():
        handle.set_opt_mode(True)
        handle.connect_unix(str(socket))
        handle.opt_list(note)
        handle.opt_abort()
    return found
