"""The model rig on a stand-in: silent when all is well, and loud for each broken promise."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.contents import Mismatch
from tests.model.exercise import Exercise
from tests.model.longrun import LongRun
from tests.model.machine import machine_for
from tests.support.fake.rig import FakeRig

FakeMaker = Callable[[str], FakeRig]


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeMaker]:
    rigs: list[FakeRig] = []

    def make(fault: str) -> FakeRig:
        rig = FakeRig(tmp_path / "f", fault)
        rigs.append(rig)
        rig.start()
        return rig

    yield make
    for rig in rigs:
        if rig.running:
            rig.kill()


def drive(rig: FakeRig, seed: int, steps: int) -> None:
    exercise = Exercise(rig)
    try:
        LongRun(exercise, seed).run(steps, verify_each=100)
    finally:
        exercise.close()


def test_long_run_is_silent_on_a_sound_server(fake: FakeMaker, seed: int) -> None:
    drive(fake(""), seed, 200)


def test_machine_is_silent_on_a_sound_server(fake: FakeMaker) -> None:
    run_state_machine_as_test(
        machine_for(fake("")), settings=settings(max_examples=5, stateful_step_count=15)
    )


@pytest.mark.parametrize(
    "fault",
    [
        "flip",
        "shift",
        "zero-short",
        "trim-junk",
        "resize-junk",
        "snapshot-alias",
        "rollback-noop",
        "hole-lie",
    ],
)
def test_long_run_notices(fake: FakeMaker, fault: str) -> None:
    with pytest.raises(Mismatch):
        drive(fake(fault), 1, 600)


def test_machine_notices_one_wrong_byte(fake: FakeMaker) -> None:
    with pytest.raises(Mismatch):
        run_state_machine_as_test(
            machine_for(fake("flip")),
            settings=settings(
                max_examples=50,
                phases=[Phase.generate],
                derandomize=True,
                database=None,
                report_multiple_bugs=False,
            ),
        )
