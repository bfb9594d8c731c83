"""Rounds of the own-pieces load over the configurations of a daemon.

A round is a pool of its own, made, served in one configuration, loaded for some generations, and
inspected by all checkers while it runs.

Thread-safety: none; one thread.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

from tests.oracle.load import Counts, Load, Shape
from tests.oracle.pieces import Wrong
from tests.support.pools import PoolRig

SMALL = Shape(block_sectors=128, hot_blocks=24)
LARGE = Shape(block_sectors=2048, hot_blocks=6, requests_each=80)


@dataclass(frozen=True)
class Configuration:
    """How a daemon serves."""

    threads: int
    fastpath: bool
    cache: str
    large: bool

    def __str__(self) -> str:
        block, filtered = ("1M" if self.large else "64K"), ("on" if self.fastpath else "off")
        return f"threads={self.threads} fastpath={filtered} cache={self.cache} block={block}"

    @property
    def shape(self) -> Shape:
        return LARGE if self.large else SMALL

    def make(self, pool: PoolRig, *, roomy: bool) -> None:
        """Make the pool, and serve it.

        In a small one data blocks are soon used again; in a roomy one volumes allocate ahead, and
        virtual blocks lie in runs.
        """
        block = "1M" if self.large else "64K"
        sizes = ("256M", "16G") if self.large else ("64M", "1G")
        pool.init(sizes[roomy], block_size=block, cache=self.cache)
        way = "on" if self.fastpath else "off"
        pool.start("--threads", str(self.threads), "--fastpath", way)


# The filter serves nothing with cache=bufio, so it is left out there.
CONFIGURATIONS = [
    Configuration(threads, fastpath, cache, large)
    for large, cache, fastpath, threads in product(
        (False, True), ("page", "bufio"), (True, False), (1, 4)
    )
    if not (fastpath and cache == "bufio")
]


@contextlib.contextmanager
def noted(*facts: object) -> Iterator[None]:
    """Add facts to what passes through the context."""
    try:
        yield
    except Exception as error:
        for fact in facts:
            error.add_note(str(fact() if callable(fact) else fact))
        raise


def run_round(
    pool: PoolRig, configuration: Configuration, seed: int, more: Callable[[int], bool]
) -> Counts:
    """Load a new pool while `more`, asked after each generation, is true. Raises `Wrong`.

    The pool is the caller's to dispose of.
    """
    configuration.make(pool, roomy=random.Random(seed).random() < 0.5)
    load = Load(pool, seed, configuration.shape)

    def facts() -> str:
        return f"{configuration}, --seed {seed}, generation {load.counts.generations + 1}"

    try:
        with noted(facts, pool.log_tail):
            while True:
                load.generation()
                if not more(load.counts.generations):
                    break
            load.compare_all()
    finally:
        load.close()
    complaints = pool.inspect()
    assert not complaints, f"{facts()}: {complaints}"
    return load.counts


def until(seconds: float) -> Callable[[int], bool]:
    """For so many seconds, from now on."""
    end = time.monotonic() + seconds
    return lambda _: time.monotonic() < end


__all__ = ["CONFIGURATIONS", "Configuration", "Wrong", "run_round", "until"]
