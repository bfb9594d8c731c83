"""The model test: random operations on several volumes through NBD, every byte compared.

After each run the pool's teardown has both checkers look at the metadata; here thin_dump's mappings
are compared with NBD's block status too.
"""

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.conftest import PoolMaker
from tests.model.exercise import Exercise
from tests.model.longrun import LongRun
from tests.model.machine import machine_for
from tests.support.agreement import disagreements
from tests.support.pools import PoolRig

DEFAULT_STEPS = 1500
SLOW_STEPS = 30_000


def drive(pool: PoolRig, seed: int, steps: int) -> None:
    exercise = Exercise(pool)
    try:
        LongRun(exercise, seed).run(steps)
        assert disagreements(pool) == []
        exercise.clear()
        assert pool.status()["data"]["used"] == 0
    finally:
        exercise.close()


def test_any_operations_in_any_order(new_pool: PoolMaker) -> None:
    pool = new_pool("64M")
    run_state_machine_as_test(
        machine_for(pool),
        settings=settings(max_examples=15, stateful_step_count=25),
    )
    assert pool.status()["data"]["used"] == 0


def test_random_run(new_pool: PoolMaker, seed: int, request: pytest.FixtureRequest) -> None:
    steps = request.config.getoption("--model-ops") or DEFAULT_STEPS
    drive(new_pool("64M"), seed, steps)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"block_size": "128K"},
        {"discard": "nopassdown"},
        {"discard": "ignore"},
    ],
    ids=lambda options: "-".join(options.values()) or "default",
)
def test_long_random_run(
    new_pool: PoolMaker, seed: int, options: dict[str, str], request: pytest.FixtureRequest
) -> None:
    steps = request.config.getoption("--model-ops") or SLOW_STEPS
    drive(new_pool("64M", **options), seed, steps)


@pytest.mark.slow
def test_any_operations_in_any_order_for_long(new_pool: PoolMaker) -> None:
    pool = new_pool("64M")
    run_state_machine_as_test(
        machine_for(pool),
        settings=settings(max_examples=200, stateful_step_count=50),
    )
    assert pool.status()["data"]["used"] == 0
