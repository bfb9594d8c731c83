"""The crash rig on a stand-in: silent when all is well, and loud for each broken promise."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.crash.rounds import Rounds
from tests.crash.sectors import Lost, Op, VolumeStates, read_stamps, stamped
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


def test_rounds_are_silent_on_a_sound_server(fake: FakeMaker, seed: int) -> None:
    with Rounds(fake(""), seed, remembers=False) as rounds:
        rounds.run(10)


def test_rounds_notice_what_was_answered_and_forgotten(fake: FakeMaker) -> None:
    with Rounds(fake(""), 1, remembers=True) as rounds, pytest.raises(Lost):
        rounds.run(60)


@pytest.mark.parametrize(
    "fault",
    [
        "flip",
        "shift",
        "zero-short",
        "snapshot-alias",
        "rollback-noop",
        "resize-junk",
        "lost-flush",
        "lost-fua",
        "lost-snapshot",
        "half-group",
        "torn",
    ],
)
def test_rounds_notice(fake: FakeMaker, fault: str) -> None:
    with Rounds(fake(fault), 1, remembers=False) as rounds, pytest.raises(Lost):
        rounds.run(60)


def test_a_stamp_says_who_wrote_it_and_where() -> None:
    data = stamped(7, 3, 2)
    assert read_stamps(data, 3) == [7, 7]
    assert read_stamps(data, 4) == [-1, -1]
    assert read_stamps(bytes(1024)) == [0, 0]
    assert read_stamps(data[:100] + b"x" + data[101:], 3) == [-1, 7]


def test_a_flush_makes_older_values_impossible() -> None:
    states = VolumeStates("v", 4)
    first, second = Op((1,)), Op((2,))
    states.begin(range(1), first)
    states.end(range(1), first, 1)
    states.begin(range(1), second)
    assert states.allowed_after_crash(0) == {0, 1, 2}
    states.flushed(before=2)
    assert states.allowed_after_crash(0) == {1, 2}
    states.end(range(1), second, 3)
    assert states.allowed_after_crash(0) == {1, 2}
    assert states.allowed_now(0, 4) == {2}
    states.flushed(before=4)
    assert states.allowed_after_crash(0) == {2}


def test_a_trim_leaves_a_choice_that_no_flush_takes() -> None:
    states = VolumeStates("v", 1)
    write, trim = Op((5,)), Op((0,), strong=False)
    for op in (write, trim):
        states.begin(range(1), op)
        states.end(range(1), op, 1)
    states.flushed(before=2)
    assert states.allowed_after_crash(0) == {0, 5}


def test_what_the_origin_does_later_is_not_the_snapshots() -> None:
    states = VolumeStates("v", 1)
    late = Op((9,))
    states.begin(range(1), late)
    copy = states.shadow("s", since=5)
    states.unshadow(copy)
    states.end(range(1), late, 6)
    copy.flushed(before=7)
    states.flushed(before=7)
    assert copy.allowed_after_crash(0) == {0, 9}
    assert states.allowed_after_crash(0) == {9}


def test_a_flush_while_a_snapshot_is_taken_does_not_bind_the_snapshot() -> None:
    states = VolumeStates("v", 1)
    copy = states.shadow("s", since=1)
    write = Op((3,))
    states.begin(range(1), write)
    states.end(range(1), write, 2)
    states.flushed(before=3)
    states.unshadow(copy)
    assert states.allowed_after_crash(0) == {3}
    assert copy.allowed_after_crash(0) == {0, 3}
