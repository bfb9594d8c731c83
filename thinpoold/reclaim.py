"""What happens to data blocks after the commit that freed them: punched out, then free again.

    durable commit -> queue -> grace period of all gates -> punch (discard=passdown) -> release

Invariants

1. A freed block is punched, or handed out again, only after a grace period: no request that looked
   its mapping up before the commit is still reading or writing it.
2. No flush waits for any of this: the queue is worked on by a thread of its own, and by those who
   wait for space.
3. A block whose punching failed is released all the same: a block that is not known to be zero is
   zeroed when it is used.

Thread-safety: any thread. `_lock` guards `_queue`; `_working` is held by whoever works on it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from thinpoold.device import DataDevice
from thinpoold.errors import DeviceError

log = logging.getLogger(__name__)

Ranges = list[tuple[int, int]]

# Blocks are released in portions, so that a large deletion helps writers soon; and not more ranges
# at a time than keep the metadata lock for 10 ms.
_PORTION_BYTES = 4 << 30
_PORTION_RANGES = 1 << 12


class Reclaimer:
    """Reclaims blocks of `block_size` bytes of one pool.

    `synchronize` is the grace period over all volumes; `passdown` tells whether to punch; `release`
    hands ranges back to the metadata.
    """

    def __init__(
        self,
        device: DataDevice,
        block_size: int,
        *,
        synchronize: Callable[[], None],
        passdown: Callable[[], bool],
        release: Callable[[Ranges], None],
    ) -> None:
        self._device = device
        self._block_size = block_size
        self._synchronize = synchronize
        self._passdown = passdown
        self._release = release
        self._lock = threading.Lock()
        self._working = threading.Lock()
        self._queue: Ranges = []
        self._can_punch = True

    def add(self, freed: Ranges) -> None:
        """A durable commit has freed these data blocks: (first, how many)."""
        with self._lock:
            self._queue.extend(freed)

    @property
    def pending(self) -> bool:
        return bool(self._queue)

    def drain(self) -> None:
        """Reclaim all that was added before the call; what another has begun is waited for."""
        with self._working:
            with self._lock:
                todo, self._queue = self._queue, []
            if not todo:
                return
            left = _portions(todo, max(1, _PORTION_BYTES // self._block_size))
            try:
                self._synchronize()
                while left:
                    self._punch(left[0])
                    self._release(left[0])
                    del left[0]
            finally:
                # Nobody else knows of them.
                self.add([freed for portion in left for freed in portion])

    def _punch(self, portion: Ranges) -> None:
        if not self._can_punch or not self._passdown():
            return
        size = self._block_size
        try:
            for begin, count in portion:
                if not self._device.punch(begin * size, count * size):
                    self._can_punch = False
                    log.warning("the data device takes no discards: freed space stays allocated")
                    return
        except DeviceError as error:
            log.warning("%s: the space stays allocated", error)


def _portions(ranges: Ranges, blocks: int) -> list[Ranges]:
    """Cut ranges into portions of at most `blocks` blocks and `_PORTION_RANGES` ranges."""
    portions: list[Ranges] = []
    room = 0
    for begin, count in ranges:
        end, at = begin + count, begin
        while at < end:
            if not room or len(portions[-1]) >= _PORTION_RANGES:
                portions.append([])
                room = blocks
            take = min(end - at, room)
            portions[-1].append((at, take))
            at, room = at + take, room - take
    return portions
