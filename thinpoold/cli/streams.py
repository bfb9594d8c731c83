"""Standard streams that whoever started the program has closed, or that cannot be written.

Invariants

1. Descriptors 0 to 2 are open: no file that a command opens takes the number of a standard stream,
   and gets what is meant for it.
2. What goes to a closed stderr is dropped. What goes to a closed stdout is an error that names it:
   whoever counts on an answer is told by the exit status.

One thread, before others start.
"""

import io
import os
import sys
from errno import EBADF


class _Closed(io.TextIOBase):
    """A stdout that is closed."""

    def write(self, text: str, /) -> int:
        raise OSError(EBADF, os.strerror(EBADF), "stdout")


def fill() -> None:
    """Put something in the place of standard streams that are closed."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            # The lowest number that is free, and so this one. Programs that are run inherit it.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    # The interpreter has None for one that was closed when it started.
    if sys.stdout is None:
        sys.stdout = _Closed()
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - to the end
