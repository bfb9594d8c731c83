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

SHAPES = {
    "64K": Shape(block_sectors=128, hot_blocks=24),
    "1M": Shape(block_sectors=2048, hot_blocks=6, requests_each=80),
    # Larger than what one stay in the gate moves.
    "4160K": Shape(block_sectors=8320, hot_blocks=2, requests_each=120),
}
# Of a small pool and of a roomy one.
SIZES = {"64K": ("64M", "1G"), "1M": ("256M", "16G"), "4160K": ("650M", "16G")}


@dataclass(frozen=True)
class Configuration:
    """How a daemon serves."""

    threads: int
    fastpath: bool
    cache: str
    block: str

    def __str__(self) -> str:
        filtered = "on" if self.fastpath else "off"
        return f"threads={self.threads} fastpath={filtered} cache={self.cache} block={self.block}"

    @property
    def shape(self) -> Shape:
        return SHAPES[self.block]

    def make(self, pool: PoolRig, *, roomy: bool) -> None:
        """Make the pool, and serve it.

        In a small one data blocks are soon used again; in a roomy one volumes allocate ahead, and
        virtual blocks lie in runs.
        """
        pool.init(SIZES[self.block][roomy], block_size=self.block, cache=self.cache)
        way = "on" if self.fastpath else "off"
        pool.start("--threads", str(self.threads), "--fastpath", way)


# The filter serves nothing with cache=bufio, so it is left out there.
CONFIGURATIONS = [
    Configuration(threads, fastpath, cache, block)
    for block, cache, fastpath, threads in product(SHAPES, ("page", "bufio"), (True, False), (1, 4))
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
