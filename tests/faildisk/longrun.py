"""Failing disks for long: `python -m tests.faildisk.longrun --seconds N --seed S`."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.faildisk.places import PLACES, placed
from tests.faildisk.scenario import Broken, play


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    options = parser.parse_args()
    end, number, vouched, told = time.monotonic() + options.seconds, 0, 0, 0
    while time.monotonic() < end:
        seed, place = options.seed + number, PLACES[number % len(PLACES)]
        with tempfile.TemporaryDirectory(prefix="faildisk-") as base:
            story: list[str] = []
            try:
                with placed(Path(base), place) as scenario:
                    story = play(scenario, random.Random(seed), 80)
                    vouched += sum(guest.vouched for guest in scenario.guests)
                    told += sum(guest.told for guest in scenario.guests)
            except Broken as broken:
                say(f"--seed {seed} {place}: {broken}; {', '.join(story)}")
                return 1
        number += 1
        say(f"{number} {place} seed {seed}: {vouched} flushes vouched, {told} times told")
    return 0


if __name__ == "__main__":
    sys.exit(main())
