"""Btrees against plain dicts: random inserts, removes and ranges on trees that share nodes."""

import random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.unit.meta.rigs import Forest, keys_near
from thinmeta.btree import portions

MOST_TREES = 4
MAX_KEY = (1 << 64) - 1
keys = st.one_of(
    st.integers(0, 3000),
    st.integers(0, MAX_KEY),
    st.sampled_from([0, MAX_KEY, MAX_KEY - 1, 1 << 63, (1 << 63) - 1]),
)
picks = st.integers(0, 100)
lengths = st.one_of(st.integers(1, 8), st.integers(1, 800))


@pytest.fixture(autouse=True)
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trees of a test are let go of in many portions."""
    monkeypatch.setattr(portions, "PORTION", 300)
    monkeypatch.setattr(portions, "LEFT", 4)


class TreeMachine(RuleBasedStateMachine):
    """Any operations in any order; all structure and every count checked now and at the end."""

    forest: Forest

    @initialize(size=st.sampled_from([8, 4, 128, 64]), cache=st.sampled_from([8, 40, 4000]))
    def begin(self, size: int, cache: int) -> None:
        self.forest = Forest(size, cache)
        self.forest.new()

    def pick(self, number: int) -> int:
        return number % len(self.forest.roots)

    def some(self) -> bool:
        return len(self.forest.roots) > 1

    def room(self) -> bool:
        return len(self.forest.roots) < MOST_TREES

    @rule(pick=picks, key=keys, value=st.integers(0, 1 << 31))
    def insert(self, pick: int, key: int, value: int) -> None:
        self.forest.insert(self.pick(pick), key, value)

    @rule(pick=picks, key=keys, count=lengths, value=st.integers(0, 1 << 30))
    def insert_run(self, pick: int, key: int, count: int, value: int) -> None:
        key = min(key, MAX_KEY + 1 - count)
        self.forest.insert_run(self.pick(pick), key, count, value)

    @rule(pick=picks, key=keys)
    def remove(self, pick: int, key: int) -> None:
        self.forest.remove(self.pick(pick), key)

    @rule(pick=picks, key=keys, count=lengths)
    def remove_range(self, pick: int, key: int, count: int) -> None:
        self.forest.remove_range(self.pick(pick), key, min(key + count, MAX_KEY + 1))

    @rule(pick=picks, key=keys)
    def remove_all_above(self, pick: int, key: int) -> None:
        self.forest.remove_range(self.pick(pick), key, MAX_KEY + 1)

    @rule(pick=picks, key=keys)
    def lookup(self, pick: int, key: int) -> None:
        self.forest.lookup(self.pick(pick), key)

    @rule(pick=picks, key=keys, count=lengths)
    def items(self, pick: int, key: int, count: int) -> None:
        self.forest.compare(self.pick(pick), key, min(key + count, MAX_KEY + 1))

    @precondition(room)
    @rule(pick=picks)
    def clone(self, pick: int) -> None:
        self.forest.clone(self.pick(pick))

    @precondition(some)
    @rule(pick=picks)
    def drop(self, pick: int) -> None:
        self.forest.drop(self.pick(pick))

    @precondition(some)
    @rule(pick=picks, most=st.sampled_from([1, 2, 1000]))
    def drop_some(self, pick: int, most: int) -> None:
        self.forest.drop_some(self.pick(pick), most)

    @rule()
    def commit(self) -> None:
        self.forest.commit()

    @rule()
    def check(self) -> None:
        self.forest.check()

    def teardown(self) -> None:
        if hasattr(self, "forest"):
            self.forest.check()


def test_trees_equal_dicts() -> None:
    run_state_machine_as_test(
        TreeMachine, settings=settings(max_examples=60, stateful_step_count=30)
    )


def random_run(seed: int, value_size: int, steps: int, space: int, check_each: int) -> Forest:
    """A long run that lets the trees grow and shrink in turns."""
    rng = random.Random(seed)
    forest = Forest(value_size, cache_blocks=60)
    forest.new()
    for step in range(steps):
        which = rng.randrange(len(forest.roots))
        model = forest.models[which]
        growing = step // (check_each * 3) % 2 == 0
        key = keys_near(rng, model, space)
        kind = rng.random()
        if kind < (0.55 if growing else 0.25):
            forest.insert(which, key, rng.getrandbits(31))
        elif kind < (0.65 if growing else 0.3):
            count = min(rng.choice((3, 40, 700)), space - key)
            forest.insert_run(which, key, count, rng.getrandbits(30))
        elif kind < 0.8:
            forest.remove(which, key)
        elif kind < 0.84:
            reach = rng.choice((3, 40, 700)) if growing else rng.choice((40, 700, space // 4))
            forest.remove_range(which, key, key + reach)
        elif kind < 0.97:
            forest.lookup(which, key)
        elif kind < 0.98 and len(forest.roots) < MOST_TREES:
            forest.clone(which)
        elif kind < 0.983 and len(forest.roots) > 1:
            forest.drop(which)
        elif kind < 0.986 and len(forest.roots) > 1:
            forest.drop_some(which, rng.choice((1, 3, 1000)))
        elif kind < 0.99:
            forest.commit()
        else:
            forest.compare(which, key, key + 300)
        if step % check_each == 0:
            forest.check()
    forest.check()
    return forest


@pytest.mark.parametrize("value_size", [8, 128])
def test_random_run(seed: int, value_size: int) -> None:
    random_run(seed, value_size, 6000, 20_000, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("value_size", [4, 8, 16, 24, 64, 128])
def test_long_random_run(seed: int, value_size: int) -> None:
    random_run(seed, value_size, 100_000, 60_000, 5000)


@pytest.mark.parametrize("value_size", [8, 128])
def test_deleting_every_tree_leaves_nothing(seed: int, value_size: int) -> None:
    forest = random_run(seed, value_size, 1500, 5000, 500)
    while forest.roots:
        forest.drop_some(0, 1000)
    forest.check()
    # The superblock, the index, one bitmap and the empty overflow tree.
    assert forest.counts.nr_allocated == 4


@pytest.mark.parametrize(
    "order",
    ["random", *(pytest.param(one, marks=pytest.mark.slow) for one in ("ascending", "descending"))],
)
def test_three_levels(order: str) -> None:
    """Nodes above the leaves split, share and merge as well."""
    forest = Forest(128, cache_blocks=500)
    forest.new()
    keys: Any = list(range(30_000))
    if order == "descending":
        keys.reverse()
    elif order == "random":
        random.Random(5).shuffle(keys)
    for key in keys:
        forest.insert(0, key, key)
    forest.clone(0)
    forest.check()
    random.Random(6).shuffle(keys)
    for key in keys[:29_500]:
        forest.remove(0, key)
    forest.check()
    forest.clone(1)
    forest.remove_range(1, 100, 29_990)
    forest.check()
    assert len(forest.models[1]) == 110
    while len(forest.roots) > 2:
        forest.drop_some(2, 1)
        forest.check()
    assert len(forest.models[1]) == 110
