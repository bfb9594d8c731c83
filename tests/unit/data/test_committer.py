"""Group commit: who shares a round, who leads, and what a failure does."""

import threading
from collections.abc import Sized

import pytest

from tests.unit.data.rigs import PATIENCE, finish, spin, threads
from thinpoold.committer import Committer, Timer


class Rounds:
    """A commit that stops in each round until it is let go."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.let_go = threading.Semaphore(0)
        self.count = 0
        self.errors: dict[int, Exception] = {}

    def commit(self, whole: bool) -> None:
        self.count += 1
        number = self.count
        self.begun.release()
        assert self.let_go.acquire(timeout=PATIENCE)
        if number in self.errors:
            raise self.errors[number]


def waiting(committer: Committer) -> int:
    """How many threads wait for a round."""
    waiters: Sized = vars(committer._changed)["_waiters"]
    return len(waiters)


def test_a_lone_flush_is_one_round() -> None:
    rounds = Rounds()
    rounds.let_go.release()
    Committer(rounds.commit).flush()
    assert rounds.count == 1


def test_flushes_that_come_during_a_round_share_the_next() -> None:
    rounds = Rounds()
    committer = Committer(rounds.commit)
    with threads(12) as pool:
        first = pool.submit(committer.flush)
        assert rounds.begun.acquire(timeout=PATIENCE)
        rest = [pool.submit(committer.flush) for _ in range(10)]
        spin(lambda: waiting(committer) == 10)
        for _ in range(2):
            rounds.let_go.release()
        # The first round began before they came: it is not theirs.
        finish(first, *rest)
    assert rounds.count == 2


def test_a_flush_waits_for_a_round_that_began_after_it() -> None:
    rounds = Rounds()
    committer = Committer(rounds.commit)
    with threads() as pool:
        first = pool.submit(committer.flush)
        assert rounds.begun.acquire(timeout=PATIENCE)
        second = pool.submit(committer.flush)
        rounds.let_go.release()
        finish(first)
        assert rounds.begun.acquire(timeout=PATIENCE)
        assert not second.done()
        rounds.let_go.release()
        finish(second)
    assert rounds.count == 2


def test_a_failed_round_fails_for_all_who_waited_for_it_and_for_nobody_else() -> None:
    rounds = Rounds()
    rounds.errors[2] = OSError(5, "no")
    committer = Committer(rounds.commit)
    with threads(8) as pool:
        first = pool.submit(committer.flush)
        assert rounds.begun.acquire(timeout=PATIENCE)
        rest = [pool.submit(committer.flush) for _ in range(4)]
        spin(lambda: waiting(committer) == 4)
        rounds.let_go.release()
        rounds.let_go.release()
        finish(first)
        for run in rest:
            with pytest.raises(OSError, match="no"):
                run.result(PATIENCE)
        rounds.let_go.release()
        committer.flush()
    assert rounds.count == 3


def test_a_timer_ticks_when_kicked_and_survives_failures() -> None:
    ticked = threading.Semaphore(0)

    def tick() -> None:
        ticked.release()
        raise ValueError("logged, and no more")

    timer = Timer("test", tick, None)
    timer.start()
    for _ in range(3):
        timer.kick()
        assert ticked.acquire(timeout=PATIENCE)
    timer.stop()
    assert not timer.running
    timer.stop()


def test_a_timer_ticks_by_itself() -> None:
    ticked = threading.Semaphore(0)
    timer = Timer("test", ticked.release, 0.001)
    timer.start()
    for _ in range(3):
        assert ticked.acquire(timeout=PATIENCE)
    timer.stop()
