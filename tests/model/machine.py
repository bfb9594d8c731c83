"""The model test as a Hypothesis state machine: short runs, shrunk to the shortest that fails.

One daemon serves all runs of a test; each run deletes its volumes, so the next begins on a pool
whose blocks have been used before.
"""

import random

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.model.exercise import FAST_ZERO, FUA, NO_HOLE, Exercise
from tests.support.served import Served

BLOCK = 65536
SECTOR = 512
MOST_VOLUMES = 6

sizes = st.integers(1, 3 << 11).map(lambda sectors: sectors * SECTOR)

# Ranges lie on, just before and just after the edges of blocks and sectors.
near_edge = st.builds(
    lambda block, shift: max(0, block * BLOCK + shift),
    st.integers(0, 48),
    st.sampled_from([0, 0, 0, -1, 1, -511, 511, -512, 512, 513, 4096, 32768, -4096]),
)
offsets = st.one_of(near_edge, st.integers(0, 3 << 20))
counts = st.one_of(
    st.integers(1, 2000),
    st.sampled_from([512, 4096, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 5 * BLOCK, 20 * BLOCK]),
    st.builds(lambda base, shift: base * BLOCK + shift, st.integers(1, 6), st.integers(-600, 600)),
)
picks = st.integers(0, 1000)


def machine_for(pool: Served) -> type[RuleBasedStateMachine]:
    """A state machine class that works on `pool`."""

    class ModelMachine(RuleBasedStateMachine):
        exercise: Exercise

        def pick(self, number: int) -> str:
            names = self.exercise.names
            return names[number % len(names)]

        @initialize(size=sizes)
        def begin(self, size: int) -> None:
            self.exercise = Exercise(pool)
            self.exercise.create(size)

        def room(self) -> bool:
            return len(self.exercise.names) < MOST_VOLUMES

        def several(self) -> bool:
            return len(self.exercise.names) > 1

        @rule(pick=picks, offset=offsets, count=counts, seed=st.integers(0, 255), fua=st.booleans())
        def write(self, pick: int, offset: int, count: int, seed: int, fua: bool) -> None:
            data = random.Random(seed).randbytes(count)
            self.exercise.write(self.pick(pick), offset, data, fua=fua)

        @rule(pick=picks, offset=offsets, count=counts)
        def read(self, pick: int, offset: int, count: int) -> None:
            self.exercise.read(self.pick(pick), offset, count)

        @rule(
            pick=picks,
            offset=offsets,
            count=counts,
            flags=st.sets(st.sampled_from([FUA, NO_HOLE, FAST_ZERO])),
        )
        def zero(self, pick: int, offset: int, count: int, flags: set[int]) -> None:
            self.exercise.zero(self.pick(pick), offset, count, sum(flags))

        @rule(pick=picks, offset=offsets, count=counts, fua=st.booleans())
        def trim(self, pick: int, offset: int, count: int, fua: bool) -> None:
            self.exercise.trim(self.pick(pick), offset, count, fua=fua)

        @rule(pick=picks, offset=offsets, count=counts)
        def extents(self, pick: int, offset: int, count: int) -> None:
            self.exercise.extents(self.pick(pick), offset, count)

        @rule(pick=picks, offset=offsets, count=counts)
        def cache(self, pick: int, offset: int, count: int) -> None:
            self.exercise.cache(self.pick(pick), offset, count)

        @rule(pick=picks)
        def flush(self, pick: int) -> None:
            self.exercise.flush(self.pick(pick))

        @precondition(room)
        @rule(size=sizes)
        def create(self, size: int) -> None:
            self.exercise.create(size)

        @precondition(room)
        @rule(choice=st.lists(picks, min_size=1, max_size=3))
        def snapshot(self, choice: list[int]) -> None:
            self.exercise.snapshot(sorted({self.pick(number) for number in choice}))

        @precondition(several)
        @rule(pick=picks)
        def delete(self, pick: int) -> None:
            self.exercise.delete(self.pick(pick))

        @rule(pick=picks)
        def rename(self, pick: int) -> None:
            self.exercise.rename(self.pick(pick))

        @rule(pick=picks, size=sizes)
        def resize(self, pick: int, size: int) -> None:
            self.exercise.resize(self.pick(pick), size)

        @precondition(several)
        @rule(volume=picks, snap=picks, discard=st.booleans())
        def rollback(self, volume: int, snap: int, discard: bool) -> None:
            name, source = self.pick(volume), self.pick(snap)
            if name != source:
                self.exercise.rollback(name, source, discard=discard)

        def teardown(self) -> None:
            if not hasattr(self, "exercise"):
                return
            try:
                self.exercise.verify()
                self.exercise.clear()
            finally:
                self.wipe()

        def wipe(self) -> None:
            """Whatever happened, the next run begins with no volumes."""
            self.exercise.close()
            if not pool.running:
                return
            after = Exercise(pool)
            for name in after.admin.volumes():
                after.model.create(name, SECTOR)
                after.delete(name)
            after.close()

    return ModelMachine
