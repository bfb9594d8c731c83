"""What a daemon did to its files, in order, as recorder.c wrote it down.

A record is 32 bytes: what u32, file u32, id u64, offset u64, length u64; after those of writes come
`length` bytes of data. Every call has a record before it, and a DONE with its id after it.

Thread-safety: none; one thread.
"""

import os
import struct
import subprocess
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from tests.support.tools import program

SOURCE = Path(__file__).with_name("recorder.c")
_RECORD = struct.Struct("<IIQQQ")


class What(IntEnum):
    """`recorder.c` has the same numbers."""

    WRITE = 1
    WRITE_DURABLY = 2
    ZERO = 3
    SIZE = 4
    SYNC = 5
    DONE = 6


@dataclass(frozen=True, slots=True)
class Event:
    """The beginning of a call, or its end. `position` is the length of the log after it.

    `offset` is the new size for SIZE; `length` is what was done for DONE, 0 when the call failed.
    """

    what: What
    file: int
    id: int
    offset: int
    length: int
    data: bytes
    position: int


class Recorder:
    """Records the daemons that are started with `environment`."""

    def __init__(self, directory: Path, files: list[Path]) -> None:
        self.log = directory / "log"
        self._files = files
        self._library = directory / "recorder.so"
        flags = ["-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
        compiler = program("cc")
        subprocess.run([compiler, *flags, "-o", self._library, SOURCE, "-ldl"], check=True)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(self._library),
            "POWERLOSS_FILES": os.pathsep.join(map(str, self._files)),
            "POWERLOSS_LOG": str(self.log),
        }

    def position(self) -> int:
        """How long the log is: whatever was answered by now was done by then."""
        return self.log.stat().st_size if self.log.exists() else 0

    def events(self) -> list[Event]:
        return parse(self.log.read_bytes())


def parse(log: bytes) -> list[Event]:
    events = []
    at = 0
    while at < len(log):
        number, file, serial, offset, length = _RECORD.unpack_from(log, at)
        what = What(number)
        at += _RECORD.size
        data = b""
        if what in (What.WRITE, What.WRITE_DURABLY):
            data = log[at : at + length]
            assert len(data) == length, "the log is cut short"
            at += length
        events.append(Event(what, file, serial, offset, length, data, at))
    return events
