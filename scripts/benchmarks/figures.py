"""Medians, spreads and ratios: what a noisy machine's figures can honestly be reduced to.

Nothing here measures. Values are floats in whatever unit their workload names.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """The median of some values, with the least and the greatest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{_short(self.median)} ({_short(self.low)}-{_short(self.high)})"


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Ours over theirs, round by round.

    The two values of one round were measured seconds apart, so what disturbs the machine for longer
    than that disturbs both, and mostly cancels.
    """
    return Spread.of([a / b for a, b in zip(ours, theirs, strict=True)])


def _short(value: float) -> str:
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
