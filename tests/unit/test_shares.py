"""Shares of Python's time, with a clock that moves when somebody works or waits."""

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinpoold.shares import (
    BURST_SECONDS,
    LOOK_SECONDS,
    MOST_OF_FLUSH,
    MOST_OF_TRANSFER,
    MOST_SECONDS,
    Share,
    Shares,
    level,
)

EVER = math.inf


class Machine:
    """One interpreter: time passes when somebody runs, and when all wait."""

    def __init__(self) -> None:
        self.now = 100.0
        self.ran = 0.0
        self.ending = False
        self.waited: list[float] = []
        self.shares = Shares(clock=lambda: self.now, used=lambda: self.ran, wait=self.wait)

    def wait(self, timeout: float) -> bool:
        assert timeout > 0
        self.waited.append(timeout)
        self.now += timeout
        return self.ending

    def run(self, seconds: float) -> None:
        self.now += seconds
        self.ran += seconds


@dataclass
class Client:
    """Clients of one volume that ask for `cost` seconds of Python each `every` seconds."""

    share: Share
    cost: float
    every: float = 0.0
    had: float = 0.0
    due: float = 0.0
    here: list[bool] = field(default_factory=list)


def volume(machine: Machine, cost: float, every: float = 0.0) -> Client:
    here: list[bool] = []
    return Client(machine.shares.add(lambda: bool(here)), cost, every, here=here)


def simulate(machine: Machine, clients: list[Client], seconds: float) -> None:
    """Have clients' requests run in turn, each as soon as it may."""
    end = machine.now + seconds
    under_way: list[tuple[Client, tuple[float, float]]] = []
    while machine.now < end:
        for one in clients:
            asks = one.due <= machine.now and not one.here
            # Else it would wait within `begin`, and everybody with it: here it waits beside them.
            if asks and (machine.shares.level is None or one.share._due <= machine.now):
                one.share._waiting = 0
                under_way.append((one, one.share.begin()))
                one.here.append(True)
            elif asks:
                one.share._waiting = 1
        if not under_way:
            machine.now += 0.0001
            if machine.now >= machine.shares.look_at:
                machine.shares.look(machine.now)
            continue
        one, begun = under_way.pop(0)
        machine.run(one.cost)
        one.had += one.cost
        one.here.clear()
        # Its thread had the processor for no longer than that.
        one.share.end((begun[0], machine.ran - one.cost))
        one.due = machine.now + one.every


def test_a_volume_alone_waits_for_nothing() -> None:
    machine = Machine()
    machine.shares.add(lambda: False)
    one = volume(machine, 0.001)
    for _ in range(1000):
        begun = one.share.begin()
        machine.run(0.001)
        one.share.end(begun)
    assert machine.waited == []


@pytest.mark.parametrize("cost", [0.0001, 0.001, 0.004])
def test_two_that_want_all_have_half_each_whatever_a_request_takes(cost: float) -> None:
    machine = Machine()
    quick, slow = volume(machine, 0.0001), volume(machine, cost)
    simulate(machine, [quick, slow], 4.0)
    assert quick.had == pytest.approx(2.0, rel=0.15)
    assert slow.had == pytest.approx(2.0, rel=0.15)


def test_who_wants_little_has_it_and_the_others_the_rest() -> None:
    machine = Machine()
    little = volume(machine, 0.0001, every=0.002)
    much, more = volume(machine, 0.001), volume(machine, 0.002)
    simulate(machine, [little, much, more], 4.0)
    assert little.had == pytest.approx(4.0 * 0.0001 / 0.0021, rel=0.6)
    assert much.had == pytest.approx(more.had, rel=0.2)
    assert little.had + much.had + more.had > 3.0


def test_who_comes_back_has_no_more_than_a_burst_to_its_credit() -> None:
    machine = Machine()
    one, other = volume(machine, 0.001), volume(machine, 0.001)
    simulate(machine, [one], 5.0)
    one.had = 0.0
    simulate(machine, [one, other], 2.0)
    assert other.had - one.had < 0.2 + BURST_SECONDS


def test_nobody_waits_for_long_or_at_the_end() -> None:
    machine = Machine()
    one, other = volume(machine, 1.0), volume(machine, 1.0)
    one.here.append(True)
    other.here.append(True)
    for _ in range(3):
        machine.shares.look(machine.now + LOOK_SECONDS)
        assert machine.shares.level == 0.5
        before = machine.now
        begun = one.share.begin()
        assert machine.now - before <= MOST_SECONDS + 1e-6
        machine.run(10.0)
        one.share.end(begun, EVER)
    machine.ending, machine.waited = True, []
    one.share.begin()
    assert len(machine.waited) == 1


def test_a_volume_that_is_closed_wants_nothing() -> None:
    machine = Machine()
    one, other = volume(machine, 1.0), volume(machine, 1.0)
    one.here.append(True)
    other.here.append(True)
    machine.now += 1
    machine.shares.look(machine.now)
    assert machine.shares.level == 0.5
    machine.shares.remove(other.share)
    assert machine.shares.level is None


def test_a_transfer_and_a_flush_are_charged_for_python_alone() -> None:
    machine = Machine()
    one, other = volume(machine, 1.0), volume(machine, 1.0)
    one.here.append(True)
    other.here.append(True)
    machine.now += 1
    machine.shares.look(machine.now)
    begun = one.share.begin()
    # What the kernel copies is no time of Python's.
    machine.ran += 0.1
    one.share.end(begun, MOST_OF_TRANSFER)
    assert one.share._due == pytest.approx(machine.now - BURST_SECONDS + 2 * MOST_OF_TRANSFER)
    one.here.clear()
    machine.shares.look_at = EVER
    one.share.wanted_in(1.0)
    with one.share.taken_for_flush():
        # The disk's time.
        machine.now += 5.0
    assert one.share._spent == pytest.approx(MOST_OF_FLUSH)


@given(st.lists(st.floats(0, 1), max_size=20))
def test_no_level_is_below_an_even_share_and_all_that_can_be_had_is(wanted: list[float]) -> None:
    found = level(wanted)
    wanting = [one for one in wanted if one > 0.02]
    if found is None:
        assert len(wanting) <= 1 or sum(wanting) <= 1 + 1e-9
    else:
        assert found >= 1 / len(wanting) - 1e-9
        assert sum(min(one, found) for one in wanting) == pytest.approx(1.0)
