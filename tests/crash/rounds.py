"""Rounds of load, kill -9 at a random moment, start, and verification.

Some deaths come while the daemon stops, or starts.

Thread-safety: none; one thread.
"""

import random
from types import TracebackType
from typing import Self

from tests.crash import verbs
from tests.crash.load import MOST_SECTORS, Load
from tests.crash.sectors import Lost
from tests.support.served import Served


class Rounds:
    """All rounds on one pool: what one leaves, the next begins with."""

    def __init__(self, pool: Served, seed: int, *, remembers: bool) -> None:
        self.pool = pool
        self.rng = random.Random(seed)
        self.load = Load(pool, self.rng, remembers=remembers)
        for _ in range(2):
            name = self.load.fresh_name()
            self.load.do(verbs.Create(name, self.rng.randrange(MOST_SECTORS // 2, MOST_SECTORS)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.load.close()

    def run(self, rounds: int, *, inspect_each: int = 1) -> None:
        """Raises Lost when a promise was broken, with the round in a note."""
        for number in range(1, rounds + 1):
            try:
                self.round(inspect=number % inspect_each == 0)
            except Exception as error:
                error.add_note(f"in round {number}; log:\n{self.pool.log_tail()}")
                raise

    def round(self, *, inspect: bool) -> None:
        """One life of the daemon and its death."""
        load, rng = self.load, self.rng
        moment = rng.random()
        if moment < 0.08:
            pass  # At once after the start.
        elif moment < 0.25:
            load.run(rng.randrange(1, 60))
            if not load.verb_in_flight:
                load.ask(load.draw_verb())
            # Any number of answers, also none: the verb is at any point of its way.
            for _ in range(rng.randrange(4)):
                if load.pump.waiting or load.verb_in_flight:
                    load.turn()
        else:
            load.run(rng.randrange(10, 400))
        load.kill(stopping=rng.random() < 0.1)
        if rng.random() < 0.1:
            self.pool.start_and_kill(rng.random() * 0.3)
        self.pool.start()
        load.recover()
        if inspect:
            complaints = self.pool.inspect()
            if complaints:
                raise Lost("\n".join(complaints))
