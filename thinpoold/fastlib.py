"""The C filter's functions, and a volume as it sees it.

nbdkit loads the filter; this finds the same library again in the process and calls it. What the
functions do is in plugins/fastpath/filter.c and volume.h.

Invariants

1. A function that waits (`close`) lets the interpreter's lock go; those that do not, keep it.
2. A C volume lives until this object and every connection of the filter's have let it go.
3. What a C volume is shown stays in place until the next `show` or `withdraw` has returned.

Thread-safety: `close` and `open` from any thread; `show` and `withdraw` under the metadata lock.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import TYPE_CHECKING

from thinpoold.errors import NoSpace

if TYPE_CHECKING:
    from thinpoold.mapping_table import MappingTable

_u64, _pointer = ctypes.c_uint64, ctypes.c_void_p


class Library:
    """The filter's library."""

    def __init__(self, path: Path, mode: int = ctypes.DEFAULT_MODE) -> None:
        """Load it, or with RTLD_NOLOAD find it loaded. Raises OSError."""
        waits = ctypes.CDLL(str(path), mode=mode)
        quick = ctypes.PyDLL(str(path), mode=mode)
        self.path = path

        self.close = waits.fastpath_close
        self.close.argtypes, self.close.restype = [_pointer], None
        # As requests come, for tests.
        self.read = waits.fastpath_read
        self.read.argtypes = [_pointer, _pointer, ctypes.c_uint32, _u64]
        self.write = waits.fastpath_write
        self.write.argtypes = [_pointer, _pointer, ctypes.c_uint32, _u64]

        self.new = quick.fastpath_new
        self.new.argtypes, self.new.restype = [], _pointer
        self.free = quick.fastpath_free
        self.free.argtypes, self.free.restype = [_pointer], None
        self.open = quick.fastpath_open
        self.open.argtypes, self.open.restype = [_pointer], None
        self.show = quick.fastpath_show
        self.show.argtypes = [
            *(_pointer, _pointer, _u64, _u64, _u64),
            *(ctypes.c_int, ctypes.c_int, _pointer),
        ]
        self.show.restype = None
        self.offer = quick.fastpath_offer
        self.offer.argtypes, self.offer.restype = [_pointer], None
        self.store = quick.fastpath_store
        self.store.argtypes, self.store.restype = [_pointer, ctypes.c_size_t, _u64, _u64], None
        self.count = quick.fastpath_count
        self.count.argtypes, self.count.restype = [], ctypes.c_uint


def loaded(path: Path) -> Library | None:
    """Return the library if nbdkit has it loaded in this process.

    A file that was built anew since then is another, which it has not.
    """
    try:
        return Library(path, os.RTLD_NOLOAD | os.RTLD_NOW)
    except (OSError, AttributeError):  # The latter: one that lacks a function is not ours.
        return None


class FastVolume:
    """A volume on the C side; withdrawn when made. Raises `NoSpace` without memory."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self.served = False
        pointer: int | None = library.new()
        if pointer is None:
            raise NoSpace("no memory for a volume")
        self.pointer = pointer

    def __del__(self) -> None:
        if hasattr(self, "pointer"):
            self._library.free(self.pointer)

    def close(self) -> None:
        """Close its gate, and wait until no request is inside."""
        self._library.close(self.pointer)

    def open(self) -> None:
        """Take one `close` back."""
        self._library.open(self.pointer)

    def withdraw(self) -> None:
        """Leave all requests to Python from now on; those inside have ended."""
        if self.served:
            self.served = False
            self.close()

    def show(
        self,
        table: MappingTable,
        size: int,
        block_size: int,
        fd: int,
        *,
        writable: bool,
        credit: int | None = None,
    ) -> None:
        """Serve what `table` knows of a volume of `size` bytes from `fd`.

        `credit` is the address of the number of bytes that may be written before Python is asked.
        """
        self.withdraw()
        self._library.show(
            self.pointer, table.address, table.blocks, block_size, size, fd, writable, credit
        )
        self.served = True
        self.open()

    def offer(self) -> None:
        """Have the connection that this thread is opening use it."""
        self._library.offer(self.pointer)
