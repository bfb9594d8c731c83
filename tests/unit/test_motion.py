"""Telling threads that wait for a disk from those that are stuck."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from thinpoold.motion import MOST_ROUNDS, Motion, Pulse, switches_of


@contextmanager
def at_work(
    motion: Motion, act: Callable[[], object], release: Callable[[], object]
) -> Iterator[int]:
    """A thread that does something that takes long; its id."""
    begun = threading.Event()
    thread_id = []

    def run() -> None:
        with motion.work():
            thread_id.append(threading.get_native_id())
            begun.set()
            act()

    thread = threading.Thread(target=run)
    thread.start()
    begun.wait()
    yield thread_id[0]
    release()
    thread.join()


def asleep(thread: int) -> None:
    """Waits until a thread waits for something that is not the interpreter."""
    last = (-1, "")
    while True:
        with open(f"/proc/self/task/{thread}/stat") as stat:
            state = stat.read().rsplit(")", 1)[1].split()[0]
        now = (switches_of(thread), state)
        if now == last and state in "SD":
            return
        last = now
        # The interpreter's lock is free meanwhile, for longer than it is waited for at a time.
        threading.Event().wait(0.05)


@pytest.mark.parametrize("kind", ["lock", "condition", "pipe"])
def test_who_waits_for_ever_does_not_move(kind: str) -> None:
    """A lock that is never given back, and a system call that never returns."""
    motion = Motion()
    lock, condition, (pipe, end) = threading.Lock(), threading.Condition(), os.pipe()
    lock.acquire()

    def notify() -> None:
        with condition:
            condition.notify_all()

    def wait() -> None:
        with condition:
            condition.wait()

    ways: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "lock": (lock.acquire, lock.release),
        "condition": (wait, notify),
        "pipe": (lambda: os.read(pipe, 1), lambda: os.write(end, b"x")),
    }
    with at_work(motion, *ways[kind]) as thread:
        asleep(thread)
        before = motion.position()
        for _ in range(3):
            asleep(thread)
        assert motion.position() == before
    assert motion.position() != before
    os.close(pipe)
    os.close(end)


def test_who_is_woken_moves_before_the_work_has_ended() -> None:
    """One call after the other, as in a commit of LMDB: none of it is seen by Python."""
    motion = Motion()
    pipe, end = os.pipe()
    with (
        at_work(motion, lambda: [os.read(pipe, 1) for _ in range(4)], lambda: None) as thread,
        open(end, "wb", buffering=0) as writer,
    ):
        for _ in range(4):
            asleep(thread)
            before = motion.position()
            writer.write(b"x")
            while motion.position() == before:
                pass
    os.close(pipe)


def test_a_thread_may_be_at_work_twice() -> None:
    motion = Motion(lambda thread: 5)
    own = threading.get_native_id()
    with motion.work():
        with motion.work():
            assert motion.position()[1] == ((own, 5),)
        assert motion.position()[1] == ((own, 5),)
    assert motion.position() == (4, ())


def test_nothing_at_work_does_not_move() -> None:
    motion = Motion()
    assert motion.position() == motion.position()


def test_a_thread_that_has_gone_is_none() -> None:
    assert switches_of(1 << 30) == -1
    assert switches_of(threading.get_native_id()) >= 0


def test_a_pulse_stops_when_rounds_pass_by_what_is_counted() -> None:
    moves, rounds = iter(range(1000)), iter([0, 0, *range(100)])
    motion = Motion(lambda thread: next(moves))
    pulse = Pulse(motion, lambda: next(rounds), 0)
    with motion.work():
        assert pulse.beats(1)
        for _ in range(MOST_ROUNDS + 1):
            assert pulse.beats(1)
        assert not pulse.beats(1)
        assert pulse.beats(2)
        assert pulse.beats(2)
