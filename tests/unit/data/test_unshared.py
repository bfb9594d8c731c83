"""Blocks that count as shared until the next commit."""

from hypothesis import given
from hypothesis import strategies as st

from thinpoold.unshared import Ranges, Unshared

RANGE = st.tuples(st.integers(0, 60), st.integers(1, 8))


@given(st.lists(RANGE), st.lists(RANGE))
def test_ranges_are_a_set(added: list[tuple[int, int]], asked: list[tuple[int, int]]) -> None:
    ranges, model = Ranges(), set[int]()
    for begin, count in added:
        ranges.add(begin, begin + count)
        model.update(range(begin, begin + count))
    assert bool(ranges) == bool(model)
    for begin, count in asked:
        expected = not model.isdisjoint(range(begin, begin + count))
        assert ranges.overlaps(begin, begin + count) == expected
    # Joined wherever that can be done.
    assert len(ranges) == sum(block - 1 not in model for block in model)


def test_blocks_stay_through_the_commit_that_is_under_way() -> None:
    unshared = Unshared()
    unshared.add(10, 5)
    unshared.freeze()
    unshared.add(20, 1)
    assert unshared.holds(14, 1)
    assert unshared.holds(20, 1)
    assert not unshared.holds(15, 5)
    unshared.committed()
    assert unshared.holds(14, 1)
    unshared.release(unshared.durable)
    assert not unshared.holds(14, 1)
    assert unshared.holds(20, 1)
    unshared.freeze()
    unshared.committed()
    unshared.release(unshared.durable)
    assert not unshared.holds(20, 1)


def test_a_grace_period_ends_the_time_of_those_who_were_there_when_it_began() -> None:
    unshared = Unshared()
    unshared.add(1, 1)
    unshared.freeze()
    unshared.committed()
    before = unshared.durable
    unshared.add(2, 1)
    unshared.freeze()
    unshared.committed()
    unshared.release(before)
    # Of two who wait for a grace period, the second may be done later.
    unshared.release(before)
    assert not unshared.holds(1, 1)
    assert unshared.holds(2, 1)


def test_an_abandoned_transaction_takes_its_blocks_along() -> None:
    unshared = Unshared()
    unshared.add(1, 1)
    unshared.freeze()
    unshared.add(2, 1)
    unshared.abandon()
    assert not unshared.holds(1, 2)
