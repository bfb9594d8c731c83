"""Sets of bitmap entries as runs: the way for few runs and the way for many say the same."""

import random

import pytest

from thinmeta.format.bitmap import ENTRIES_PER_BITMAP
from thinmeta.spacemap import pairs


@pytest.mark.parametrize("count", [0, 1, 8, 9, 100, ENTRIES_PER_BITMAP // 2])
def test_runs(count: int) -> None:
    ends = sorted(random.Random(count).sample(range(ENTRIES_PER_BITMAP + 1), 2 * count))
    wanted = list(zip(ends[::2], ends[1::2], strict=True))
    entries = 0
    for begin, end in wanted:
        entries |= pairs.entry_set(begin, end)
    assert list(pairs.runs(entries)) == wanted


@pytest.mark.parametrize("step", [2, 3, 1000, 2000])
def test_runs_to_the_last_entry(step: int) -> None:
    wanted = [(at, at + 1) for at in range(ENTRIES_PER_BITMAP - 1, -1, -step)][::-1]
    entries = sum(pairs.entry_set(begin, end) for begin, end in wanted)
    assert list(pairs.runs(entries)) == wanted
    assert list(pairs.runs(pairs.EVERY)) == [(0, ENTRIES_PER_BITMAP)]
