"""The own-pieces load for as long as it is told to: python -m tests.oracle.longrun --seconds 7200

Goes round the configurations, a new pool for each round, one line a round; at the end the totals.
At the first loss it says the seed and what is wrong, and ends with status 1. The seed of each round
is in its line: with `--configuration` and `--seed` that round comes again, as far as concurrency
lets it.
"""

# ruff: noqa: T201

import argparse
import os
import random
import sys
import tempfile
import time
from itertools import cycle
from pathlib import Path

from tests.oracle.load import Counts
from tests.oracle.pieces import Wrong
from tests.oracle.rounds import CONFIGURATIONS, Configuration, run_round, until
from tests.support.pools import PoolRig


def one_round(configuration: Configuration, seed: int, seconds: float) -> Counts:
    """One round on a pool that is gone afterwards. Raises `Wrong`, and what else is amiss."""
    with tempfile.TemporaryDirectory(prefix="oracle-") as directory:
        pool = PoolRig(Path(directory) / "p")
        try:
            counts = run_round(pool, configuration, seed, until(seconds))
        except BaseException:
            if pool.running:
                pool.kill()
            raise
        complaints = pool.dispose()
        assert not complaints, complaints
        return counts


def main() -> int:
    """Run; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long in all")
    parser.add_argument("--round", type=float, default=30.0, help="seconds of one round")
    parser.add_argument("--seed", type=int, default=None, help="of the first round")
    parser.add_argument(
        "--configuration",
        type=int,
        action="append",
        choices=range(len(CONFIGURATIONS)),
        metavar="N",
        help="only this one; may be repeated. They are: "
        + "; ".join(f"{number}: {one}" for number, one in enumerate(CONFIGURATIONS)),
    )
    given = parser.parse_args()
    # As the tests' daemons: without the filter where it is asked for, they are to fail.
    os.environ.pop("THINPOOL_FASTPATH", None)
    seed = random.SystemRandom().randrange(1 << 32) if given.seed is None else given.seed
    begin, end = time.monotonic(), time.monotonic() + given.seconds
    rounds = generations = writes = reads = 0
    print(f"--seed {seed}", flush=True)
    for number in cycle(given.configuration or range(len(CONFIGURATIONS))):
        if time.monotonic() >= end:
            break
        configuration = CONFIGURATIONS[number]
        rounds += 1
        where = f"round {rounds}: {number}: {configuration} --seed {seed}"
        try:
            counts = one_round(configuration, seed, min(given.round, end - time.monotonic()))
        except Exception as error:
            lost, crossed = (
                (error.count("lost"), error.count("crossed"))
                if isinstance(error, Wrong)
                else (0, 0)
            )
            print(f"{where}: lost {lost}, crossed {crossed}")
            print(f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ()), sep="\n")
            print(
                f"FAILED after {time.monotonic() - begin:.0f} s: {rounds} rounds, "
                f"{generations} whole generations before this round, {writes} answered writes"
            )
            return 1
        generations += counts.generations
        writes += counts.writes
        reads += counts.reads
        print(
            f"{where}: {counts.generations} generations, {counts.writes} answered writes, "
            f"{counts.reads} reads, {sum(counts.verbs.values())} verbs, lost 0, crossed 0",
            flush=True,
        )
        seed = (seed * 6364136223846793005 + 1442695040888963407) % (1 << 32)
    print(
        f"{time.monotonic() - begin:.0f} s: {rounds} rounds, {generations} generations, "
        f"{writes} answered writes, {reads} reads, lost 0, crossed 0"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
