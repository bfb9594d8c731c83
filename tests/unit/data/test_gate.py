"""The gate: who is inside when it closes, who waits, and what a grace period waits for."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.unit.data.rigs import PATIENCE, finish, spin, threads
from thinpoold.gate import Gate


@contextmanager
def inside(gate: Gate) -> Iterator[None]:
    gate.enter()
    try:
        yield
    finally:
        gate.leave()


class Visitor:
    """A request in a thread of its own, which stays inside until told to leave."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.entered = threading.Event()
        self.go = threading.Event()
        self.left = threading.Event()

    def run(self) -> None:
        with inside(self.gate):
            self.entered.set()
            assert self.go.wait(PATIENCE)
        self.left.set()


def test_requests_pass_an_open_gate_together() -> None:
    gate = Gate()
    one, other = Visitor(gate), Visitor(gate)
    with threads() as pool:
        runs = [pool.submit(one.run), pool.submit(other.run)]
        assert one.entered.wait(PATIENCE)
        assert other.entered.wait(PATIENCE)
        one.go.set()
        other.go.set()
        finish(*runs)


def test_closing_waits_for_those_inside_and_holds_up_new_ones() -> None:
    gate = Gate()
    early, late = Visitor(gate), Visitor(gate)
    is_closed, reopen = threading.Event(), threading.Event()

    def close() -> None:
        with gate.closed():
            assert early.left.is_set()
            assert not late.entered.is_set()
            is_closed.set()
            assert reopen.wait(PATIENCE)
            assert not late.entered.is_set()

    with threads() as pool:
        runs = [pool.submit(early.run)]
        assert early.entered.wait(PATIENCE)
        runs.append(pool.submit(close))
        # The closer watches from the moment it waits.
        spin(lambda: gate._watchers > 0)
        assert not is_closed.is_set()
        runs.append(pool.submit(late.run))
        early.go.set()
        assert is_closed.wait(PATIENCE)
        reopen.set()
        assert late.entered.wait(PATIENCE)
        late.go.set()
        finish(*runs)


def test_closers_take_turns() -> None:
    gate = Gate()
    busy = 0

    def close() -> None:
        nonlocal busy
        for _ in range(200):
            with gate.closed():
                busy += 1
                assert busy == 1
                busy -= 1

    with threads() as pool:
        finish(*[pool.submit(close) for _ in range(4)])


def test_synchronize_waits_for_those_inside_and_lets_new_ones_pass() -> None:
    gate = Gate()
    early, late = Visitor(gate), Visitor(gate)
    done = threading.Event()

    def synchronize() -> None:
        gate.synchronize()
        assert early.left.is_set()
        done.set()

    with threads() as pool:
        runs = [pool.submit(early.run)]
        assert early.entered.wait(PATIENCE)
        runs.append(pool.submit(synchronize))
        spin(lambda: gate._watchers > 0)
        runs.append(pool.submit(late.run))
        assert late.entered.wait(PATIENCE)
        assert not done.is_set()
        early.go.set()
        # Though the late one is inside still.
        assert done.wait(PATIENCE)
        late.go.set()
        finish(*runs)


def test_nothing_is_waited_for_at_an_empty_gate() -> None:
    gate = Gate()
    gate.synchronize()
    with gate.closed():
        gate.synchronize()
    with inside(gate):
        pass


def test_the_gate_reopens_after_a_failure() -> None:
    gate = Gate()
    try:
        with gate.closed():
            raise ValueError
    except ValueError:
        pass
    with inside(gate):
        pass


def test_many_threads_never_meet_a_closer_inside() -> None:
    gate = Gate()
    present = 0
    lock = threading.Lock()

    def visit() -> None:
        nonlocal present
        for _ in range(2000):
            with inside(gate):
                with lock:
                    present += 1
                with lock:
                    present -= 1

    def close() -> None:
        for _ in range(200):
            with gate.closed():
                assert present == 0
            gate.synchronize()

    with threads() as pool:
        finish(*[pool.submit(visit) for _ in range(4)], *[pool.submit(close) for _ in range(2)])
    assert not gate._inside
