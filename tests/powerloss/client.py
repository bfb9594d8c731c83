"""A client that writes, trims, flushes, snapshots and deletes, and notes what it did and when.

Thread-safety: none; one thread.
"""

import random
from collections.abc import Callable

from tests.powerloss.history import SECTOR, Flush, History, Step, Verb, Write, stamped
from tests.powerloss.recording import Recorder
from tests.support import admin
from tests.support.client import FUA
from tests.support.pools import PoolRig

MOST_VOLUMES = 5
LARGEST_BLOCKS = 24


class Client:
    """Does random things to a pool that `recorder` watches."""

    def __init__(self, rig: PoolRig, recorder: Recorder, rng: random.Random) -> None:
        self.history = History()
        self._rig, self._recorder, self._rng = rig, recorder, rng
        self._block = int(rig.status()["block_size"]) // SECTOR
        self._sizes: dict[str, int] = {}
        self._number = 0
        self._connected = ""

    def run(self, steps: int) -> None:
        self.create()
        kinds: list[tuple[int, Callable[[], None]]] = [
            (60, self.write),
            (10, self.trim),
            (12, self.flush),
            (3, self.create),
            (6, self.snapshot),
            (4, self.delete),
            (3, self.rollback),
        ]
        weights = [weight for weight, _ in kinds]
        for _ in range(steps):
            self._rng.choices([kind for _, kind in kinds], weights)[0]()

    # What goes over NBD

    def write(self) -> None:
        # Also several blocks at once, and parts of one.
        self._put(*self._place(), durably=self._rng.random() < 0.05)

    def write_durably_into_new_blocks(self, count: int) -> None:
        """Each mapped by a write that no flush follows, and which another connection made."""
        self.create()
        name = self._volume()
        for number in range(count):
            first = number % (self._sizes[name] // self._block) * self._block
            self._put(name, first + 3, 1, durably=False)
            self._put(name, first + 8, 2, durably=True)

    def _put(self, name: str, first: int, count: int, *, durably: bool) -> None:
        self._number += 1
        step = Write(self._now(), 0, name, first, count, self._number, durably)
        with self._rig.connect(name) as client:
            data = stamped(self._number, first, count)
            client.write(first * SECTOR, data, FUA if durably else 0)
            self._did(step)

    def trim(self) -> None:
        name = self._volume()
        blocks = self._sizes[name] // self._block
        first = self._rng.randrange(blocks)
        count = self._rng.randint(1, min(6, blocks - first))
        step = Write(self._now(), 0, name, first * self._block, count * self._block, number=0)
        with self._rig.connect(name) as client:
            client.trim(step.first * SECTOR, step.count * SECTOR)
            self._did(step)

    def flush(self) -> None:
        with self._rig.connect(self._volume()) as client:
            step = Flush(self._now())
            client.flush()
            self._did(step)

    # Verbs

    def create(self) -> None:
        if len(self._sizes) == MOST_VOLUMES:
            return
        name, size = self._fresh(), self._rng.randrange(4, LARGEST_BLOCKS) * self._block
        self._verb(admin.create(name, size * SECTOR), {name: ""}, {name: size})
        self._sizes[name] = size

    def snapshot(self) -> None:
        if len(self._sizes) == MOST_VOLUMES:
            return
        origin, name = self._volume(), self._fresh()
        self._verb(admin.snapshot([(origin, name)]), {name: origin})
        self._sizes[name] = self._sizes[origin]

    def delete(self) -> None:
        if len(self._sizes) > 1:
            name = self._volume()
            self._verb(admin.delete(name), {name: None})
            del self._sizes[name]

    def rollback(self) -> None:
        if len(self._sizes) > 1:
            name, other = self._rng.sample(sorted(self._sizes), 2)
            self._verb(admin.rollback(name, other, discard=True), {name: other})
            self._sizes[name] = self._sizes[other]

    # Within

    def _verb(
        self,
        call: admin.Call,
        becomes: dict[str, str | None],
        sizes: dict[str, int] | None = None,
    ) -> None:
        with self._rig.rpc() as rpc:
            for name in self._sizes:
                admin.Admin(rpc).await_released(name)
            step = Verb(self._now(), 0, becomes, sizes or {})
            admin.Admin(rpc).do(call)
            self._did(step)

    def _now(self) -> int:
        return self._recorder.position()

    def _did(self, step: Step) -> None:
        step.end = self._now()
        self.history.steps.append(step)

    def _volume(self) -> str:
        return self._rng.choice(sorted(self._sizes))

    def _fresh(self) -> str:
        self._number += 1
        return f"v{self._number}"

    def _place(self) -> tuple[str, int, int]:
        name = self._volume()
        size = self._sizes[name]
        count = self._rng.choice((1, 3, 8, self._block, 3 * self._block + 5))
        first = self._rng.randrange(size)
        return name, first, min(count, size - first)
