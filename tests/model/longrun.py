"""The model test as one long random run, repeatable by its seed."""

import random
from collections.abc import Callable

from tests.model.exercise import FAST_ZERO, FUA, NO_HOLE, Exercise

BLOCK = 65536
SECTOR = 512
MOST_VOLUMES = 8


class LongRun:
    """Draws operations from `rng` and does them; `verify` each so many steps and at the end."""

    def __init__(self, exercise: Exercise, seed: int, *, restarts: bool = True) -> None:
        self.exercise = exercise
        self.rng = random.Random(seed)
        self.done: dict[str, int] = {}
        self._menu: list[tuple[Callable[[], None], int]] = [
            (self.write, 40),
            (self.read, 15),
            (self.zero, 10),
            (self.trim, 12),
            (self.extents, 4),
            (self.cache, 2),
            (self.flush, 4),
            (self.create, 1),
            (self.snapshot, 4),
            (self.delete, 2),
            (self.rename, 1),
            (self.resize, 1),
            (self.rollback, 1),
        ]
        if restarts:
            self._menu.append((self.restart, 0))
        self.restarts = restarts

    def run(self, steps: int, verify_each: int = 500) -> None:
        """`steps` operations. Raises Mismatch, NbdError or RpcError, with the step in a note."""
        self.exercise.create(self.size())
        actions = [action for action, _ in self._menu]
        weights = [weight for _, weight in self._menu]
        for step in range(1, steps + 1):
            action = self.rng.choices(actions, weights)[0]
            try:
                action()
                if step % verify_each == 0 or step == steps:
                    self.exercise.verify()
                    if self.restarts and step != steps:
                        self.restart()
                        self.exercise.verify()
            except Exception as error:
                error.add_note(f"at step {step}: {action.__name__}")
                raise
            self.done[action.__name__] = self.done.get(action.__name__, 0) + 1

    # Draws

    def name(self) -> str:
        return self.rng.choice(self.exercise.names)

    def size(self) -> int:
        return self.rng.randrange(1, 5 << 11) * SECTOR

    def span(self) -> tuple[int, int]:
        rng = self.rng
        if rng.random() < 0.6:
            shift = rng.choice([0, 0, 0, -1, 1, -511, 512, 513, 4096, -4096, 32768])
            offset = max(0, rng.randrange(80) * BLOCK + shift)
        else:
            offset = rng.randrange(5 << 20)
        kind = rng.random()
        if kind < 0.5:
            count = rng.randrange(1, 8192)
        elif kind < 0.8:
            count = max(1, rng.randrange(1, 5) * BLOCK + rng.choice([0, 0, -1, 1, 512, -512, 700]))
        else:
            count = rng.randrange(1, 600_000)
        return offset, count

    # Operations

    def write(self) -> None:
        offset, count = self.span()
        data = self.rng.randbytes(count)
        self.exercise.write(self.name(), offset, data, fua=self.rng.random() < 0.05)

    def read(self) -> None:
        self.exercise.read(self.name(), *self.span())

    def zero(self) -> None:
        flags = sum(flag for flag in (NO_HOLE, FAST_ZERO) if self.rng.random() < 0.5)
        flags |= FUA if self.rng.random() < 0.1 else 0
        self.exercise.zero(self.name(), *self.span(), flags)

    def trim(self) -> None:
        self.exercise.trim(self.name(), *self.span(), fua=self.rng.random() < 0.1)

    def extents(self) -> None:
        self.exercise.extents(self.name(), *self.span())

    def cache(self) -> None:
        self.exercise.cache(self.name(), *self.span())

    def flush(self) -> None:
        self.exercise.flush(self.name())

    def create(self) -> None:
        if len(self.exercise.names) < MOST_VOLUMES:
            self.exercise.create(self.size())

    def snapshot(self) -> None:
        if len(self.exercise.names) < MOST_VOLUMES:
            many = self.rng.choice([1, 1, 1, 2, 3])
            names = self.exercise.names
            self.exercise.snapshot(self.rng.sample(names, min(many, len(names))))

    def delete(self) -> None:
        if len(self.exercise.names) > 3:
            self.exercise.delete(self.name())

    def rename(self) -> None:
        self.exercise.rename(self.name())

    def resize(self) -> None:
        self.exercise.resize(self.name(), self.size())

    def rollback(self) -> None:
        name, snap = self.name(), self.name()
        if name != snap:
            discard = len(self.exercise.names) >= MOST_VOLUMES or self.rng.random() < 0.5
            self.exercise.rollback(name, snap, discard=discard)

    def restart(self) -> None:
        self.exercise.restart()
