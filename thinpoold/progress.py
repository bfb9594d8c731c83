"""Progress on stderr for what takes over a second, and only for a person to see.

Invariants

1. Nothing is written before `DELAY` has gone by, nor when stderr is no terminal.
2. The line is wiped at the end, so what follows starts on a clean one.

Thread-safety: `update` may be called from any thread; it only stores. One thread draws.
"""

import sys
import threading
from types import TracebackType
from typing import Self, TextIO

DELAY = 1.0
_INTERVAL = 0.2
_SPINNER = "|/-\\"


class Progress:
    """A context that says `what` is going on, and how far `update` said it is."""

    def __init__(self, what: str, stream: TextIO | None = None) -> None:
        self._what = what
        self._stream = sys.stderr if stream is None else stream
        self._done = threading.Event()
        self._position: tuple[int, int | None] | None = None
        self._thread: threading.Thread | None = None

    def update(self, done: int, total: int | None = None) -> None:
        """Say how much is done, of how much where that is known."""
        self._position = (done, total)

    def __enter__(self) -> Self:
        if self._stream.isatty():
            self._thread = threading.Thread(target=self._draw, name="progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def line(self, step: int) -> str:
        """Return what the `step`th drawing shows."""
        text = f"{_SPINNER[step % len(_SPINNER)]} {self._what}"
        position = self._position
        if position is None:
            return text
        done, total = position
        if total:
            return f"{text}: {min(done, total) * 100 // total}%"
        return f"{text}: {done:,}"

    def _draw(self) -> None:
        if self._done.wait(DELAY):
            return
        step = 0
        while True:
            self._stream.write(f"\r{self.line(step)}\x1b[K")
            self._stream.flush()
            step += 1
            if self._done.wait(_INTERVAL):
                break
        self._stream.write("\r\x1b[K")
        self._stream.flush()
