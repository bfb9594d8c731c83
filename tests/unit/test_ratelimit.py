"""Token buckets, with a clock that only moves when somebody waits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinpoold.ratelimit import BURST, Limiter, renewed


class Clock:
    """Time in seconds; `wait` is how it passes."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.over = False
        self.waits = 0

    def read(self) -> float:
        return self.now

    def wait(self, timeout: float) -> bool:
        assert timeout > 0
        self.waits += 1
        self.now += timeout
        return self.over


def limiter(clock: Clock, iops: int = 0, bps: int = 0) -> Limiter:
    return Limiter(iops, bps, clock=clock.read, wait=clock.wait)


def test_a_full_bucket_lets_a_burst_through_and_then_the_rate() -> None:
    clock = Clock()
    limit = limiter(clock, iops=100)
    for _ in range(101):
        limit.pace(4096)
    assert clock.now == 1000.0
    for _ in range(100):
        limit.pace(4096)
    assert clock.now == pytest.approx(1001.0)


def test_bytes() -> None:
    clock = Clock()
    limit = limiter(clock, bps=1 << 20)
    for _ in range(64):
        limit.pace(64 << 10)
    # The first MiB was there, and the last request left its own behind.
    assert clock.now == pytest.approx(1000.0 + 3 - 1 / 16)
    limit.pace(0)


def test_a_request_larger_than_the_bucket_goes_and_is_paid_for() -> None:
    clock = Clock()
    limit = limiter(clock, bps=1 << 20)
    limit.pace(32 << 20)
    assert clock.now == 1000.0
    limit.pace(1)
    assert clock.now == pytest.approx(1031.0)


def test_the_stricter_of_two_counts() -> None:
    clock = Clock()
    limit = limiter(clock, iops=10, bps=1 << 30)
    for _ in range(21):
        limit.pace(1)
    assert clock.now == pytest.approx(1001.0)


@given(
    st.integers(1, 1000),
    st.lists(st.tuples(st.floats(0, 3), st.integers(1, 50)), min_size=1, max_size=30),
)
def test_over_any_time_no_more_than_the_rate_and_one_burst(
    iops: int, bursts: list[tuple[float, int]]
) -> None:
    clock = Clock()
    limit = limiter(clock, iops=iops)
    done: list[float] = []
    for pause, count in bursts:
        clock.now += pause
        for _ in range(count):
            limit.pace(0)
            done.append(clock.now)
    for first in range(len(done)):
        for last in range(first, len(done)):
            most = iops * (done[last] - done[first] + BURST) + 1
            assert last - first + 1 <= most + 1e-3


def test_nobody_waits_for_a_limit_that_is_gone() -> None:
    clock = Clock()
    limit = limiter(clock, iops=1)
    limit.retire()
    for _ in range(100):
        limit.pace(0)
    assert clock.waits == 0


def test_nor_when_the_process_ends() -> None:
    clock = Clock()
    clock.over = True
    limit = limiter(clock, bps=64 << 10)
    limit.pace(1 << 30)
    limit.pace(1)
    assert clock.waits == 1


def test_the_same_rates_keep_the_bucket() -> None:
    first = renewed(None, 10, 0)
    assert first is not None
    assert renewed(first, 10, 0) is first
    second = renewed(first, 10, 1 << 20)
    assert second is not first
    assert renewed(second, 0, 0) is None
    assert renewed(None, 0, 0) is None
