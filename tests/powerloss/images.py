"""What the files may hold after a power cut, at any moment of a recording.

What was durable is there. Of the rest each sector is as it was at some time since, whatever the
order in which things were written: a disk and a page cache promise no more. A write is durable when
a sync that began after its end has ended.

Thread-safety: none; one thread.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.powerloss.recording import Event, What

SECTOR = 512


@dataclass
class _File:
    durable: bytearray
    # Calls that no sync has covered yet, in the order of their beginnings.
    loose: dict[int, Event] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)

    def settle(self, ids: Sequence[int]) -> None:
        for serial in ids:
            event = self.loose.pop(serial, None)
            self.ended.discard(serial)
            if event is not None:
                _apply(self.durable, event, 0, _span(event))


class Disk:
    """The files of a recording, brought on event by event."""

    def __init__(self, files: Sequence[bytes]) -> None:
        self._files = [_File(bytearray(octets)) for octets in files]
        # Syncs under way: their file, and the calls that had ended when they began.
        self._syncs: dict[int, tuple[_File, list[int]]] = {}
        self._begun: dict[int, Event] = {}

    def take(self, event: Event) -> None:
        """The event has happened."""
        if event.what is What.DONE:
            self._end(event)
            return
        file = self._files[event.file]
        self._begun[event.id] = event
        if event.what is What.SYNC:
            self._syncs[event.id] = (file, list(file.ended))
        else:
            file.loose[event.id] = event

    def _end(self, event: Event) -> None:
        begun = self._begun.pop(event.id)
        file = self._files[begun.file]
        if begun.what is What.SYNC:
            synced, ids = self._syncs.pop(event.id)
            if event.length:
                synced.settle(sorted(ids, key=list(synced.loose).index))
        elif not event.length:
            del file.loose[event.id]
        else:
            assert event.length == begun.length, "a call that did only a part of it"
            file.ended.add(event.id)
            if begun.what is What.WRITE_DURABLY:
                file.settle([event.id])

    @property
    def loose(self) -> int:
        """How many calls a power cut now might undo."""
        return sum(len(file.loose) for file in self._files)

    def after_cut(self, kept: float, unit: int, rng: random.Random) -> list[bytearray]:
        """The files' bytes, with this share of what is loose, kept or lost `unit` bytes at a time.

        A `unit` of 0: each call is kept or lost whole.
        """
        images = []
        for file in self._files:
            image = bytearray(file.durable)
            for event in file.loose.values():
                span = _span(event)
                step = unit or max(span, 1)
                # Units are the file's, not the call's.
                first = event.offset - event.offset % step if unit else event.offset
                for begin in range(first, event.offset + max(span, 1), step):
                    if rng.random() < kept:
                        low = max(begin - event.offset, 0)
                        _apply(image, event, low, min(begin + step - event.offset, span))
            images.append(image)
        return images


def _span(event: Event) -> int:
    return 0 if event.what is What.SIZE else event.length


def _apply(image: bytearray, event: Event, begin: int, end: int) -> None:
    """Bytes begin..end-1 of a call happen to a file."""
    if event.what is What.SIZE:
        size = event.offset
        image[size:] = b""
        image.extend(bytes(size - len(image)))
        return
    first, last = event.offset + begin, event.offset + end
    if last > len(image):
        image.extend(bytes(last - len(image)))
    image[first:last] = bytes(end - begin) if event.what is What.ZERO else event.data[begin:end]
