"""What was answered and is lost, volume by volume, for whoever has to deal with it.

That something is lost the ledger says, in a slot that was there before; what, and why, is told here
as far as it is known: a file of JSON that is written when there is room for it.

    {"UUID": [{"when": "2026-01-31T12:00:00Z", "why": "...", "ranges": [[offset, length], ...]}]}

Ranges are bytes of the volume that had new blocks. What was overwritten in place nobody notes, so a
loss without ranges, or with, may be of anything that was written since the flush before it.

Thread-safety: any thread. `_lock` is held while the file is read and written.
"""

from __future__ import annotations

import json
import logging
import threading
import uuid as uuids
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

from thinpoold import poolfiles

log = logging.getLogger(__name__)

# Beyond it what is known is cut: it is for people to read.
_MOST_RANGES: Final = 1000


@dataclass(frozen=True)
class Loss:
    """One loss of one volume. `ranges` are (offset, length) in bytes, ascending."""

    when: str
    why: str
    ranges: Sequence[tuple[int, int]] = ()

    @classmethod
    def now(cls, why: str, ranges: Sequence[tuple[int, int]] = ()) -> Self:
        when = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        return cls(when, why, _joined(ranges)[:_MOST_RANGES])


class Losses:
    """The losses of one pool; without a path they are kept in memory.

    With `read_only` those that come to the file's are kept in memory, too.
    """

    def __init__(self, path: Path | None = None, *, read_only: bool = False) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._kept: dict[str, list[dict[str, Any]]] = {}
        if read_only:
            self._kept, self._path = self._read(), None

    def add(self, lost: Mapping[bytes, Loss]) -> None:
        """Tell of losses. What cannot be written is logged: that there are some the ledger says."""
        with self._lock:
            told = self._read()
            for uuid, loss in lost.items():
                told.setdefault(str(uuids.UUID(bytes=uuid)), []).append(asdict(loss))
            self._write(told)

    def of(self, uuid: bytes) -> list[dict[str, Any]]:
        """What is known of a volume's losses, as in the file."""
        with self._lock:
            return self._read().get(str(uuids.UUID(bytes=uuid)), [])

    def forget(self, uuid: bytes) -> None:
        """A volume's losses are accepted, or it is gone."""
        with self._lock:
            told = self._read()
            if told.pop(str(uuids.UUID(bytes=uuid)), None) is not None:
                self._write(told)

    def _read(self) -> dict[str, list[dict[str, Any]]]:
        if self._path is None:
            return self._kept
        try:
            told = json.loads(poolfiles.read(self._path))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            log.warning("%s: what was lost cannot be told: %s", self._path, error)
            return {}
        return told if isinstance(told, dict) else {}

    def _write(self, told: dict[str, list[dict[str, Any]]]) -> None:
        if self._path is None:
            self._kept = told
            return
        try:
            if told:
                poolfiles.replace(self._path, f"{json.dumps(told, indent=1)}\n".encode())
            else:
                poolfiles.remove(self._path)
        except OSError as error:
            log.warning("%s: what was lost cannot be told: %s", self._path, error)


def _joined(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for offset, length in sorted(ranges):
        if joined and offset <= sum(joined[-1]):
            end = max(sum(joined[-1]), offset + length)
            joined[-1] = (joined[-1][0], end - joined[-1][0])
        else:
            joined.append((offset, length))
    return joined
