"""Medians, spreads and ratios: what a noisy machine's figures can honestly be reduced to.

Nothing here measures. Values are floats in whatever unit their row names; where a round gave none,
there is None.
"""

from __future__ import annotations

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
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        if self.low == self.high:
            return short(self.median)
        return f"{short(self.median)} ({short(self.low)}-{short(self.high)})"


def spread(values: Sequence[float | None]) -> Spread | None:
    """The spread of those rounds that gave a value, None if none did."""
    known = [value for value in values if value is not None]
    return Spread.of(known) if known else None


def paired_ratio(
    ours: Sequence[float | None], theirs: Sequence[float | None], *, less_is_better: bool = False
) -> Spread | None:
    """How many times better ours is than theirs, round by round; None if no round has both.

    The two values of one round were measured seconds apart, so what disturbs the machine for longer
    than that disturbs both, and mostly cancels. Above 1 ours is the better one, also where less is.
    """
    pairs = [
        (b, a) if less_is_better else (a, b)
        for a, b in zip(ours, theirs, strict=True)
        if a is not None and b is not None
    ]
    return Spread.of([a / b for a, b in pairs if b]) if any(b for _, b in pairs) else None


def short(value: float) -> str:
    """Three digits that count."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
