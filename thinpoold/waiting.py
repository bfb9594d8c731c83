"""Says what a command waits for, and until when, once it has waited for a while.

One line on stderr, also where that is no terminal: whoever reads a log later wants to know, too.

Invariants

1. Nothing is written before `AFTER` has gone by, and nothing once the waiting is over.

Thread-safety: a context is one thread's; another writes the line.
"""

import sys
import threading
from types import TracebackType
from typing import Self, TextIO

AFTER = 3.0


class Waiting:
    """A context in which the command waits for `what`, for as long as `until` says."""

    def __init__(self, what: str, until: str, stream: TextIO | None = None) -> None:
        self._line = f"thinpool: waiting for {what}; {until}\n"
        self._stream = sys.stderr if stream is None else stream
        self._timer = threading.Timer(AFTER, self._say)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        self._timer.join()

    def _say(self) -> None:
        # What `Progress` has drawn is wiped.
        start = "\r\x1b[K" if self._stream.isatty() else ""
        self._stream.write(start + self._line)
        self._stream.flush()
