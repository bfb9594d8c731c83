"""A disk that fails for a while, whoever meets it, and daemons that die over it."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faildisk.places import PLACES, placed
from tests.faildisk.scenario import BLOCKS, Scenario, play

pytestmark = pytest.mark.slow


@pytest.fixture(params=PLACES)
def scenario(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scenario]:
    with placed(tmp_path, request.param) as scenario:
        yield scenario
        scenario.judge()


def written(scenario: Scenario) -> None:
    """Each guest writes in place, and into new blocks."""
    for guest in scenario.guests:
        guest.write(0, 4)
        guest.write(BLOCKS - 4, 4)


@pytest.mark.parametrize("end", ["kill", "stop"])
@pytest.mark.parametrize("look", [(), ("list",), ("check",), ("info", "v1")], ids=" ".join)
def test_an_error_that_the_kernel_meets_is_told(
    scenario: Scenario, end: str, look: tuple[str, ...]
) -> None:
    written(scenario)
    scenario.fail("pwrite", "flush")
    scenario.met_by_the_kernel()
    scenario.heal()
    scenario.kill() if end == "kill" else scenario.stop()
    if look:
        scenario.look(*look)


@pytest.mark.parametrize("end", [Scenario.kill, Scenario.stop], ids=["kill", "stop"])
def test_an_error_that_one_clients_flush_meets_is_told_to_the_other(
    scenario: Scenario, end: Callable[[Scenario], None]
) -> None:
    written(scenario)
    scenario.fail("pwrite")
    scenario.guests[0].flush()
    scenario.heal()
    end(scenario)
    scenario.start()
    scenario.guests[0].write(8)


def test_a_daemon_that_dies_in_a_flush_that_fails(scenario: Scenario) -> None:
    """The disk hangs; whoever loses patience kills the daemon; then the disk fails."""
    written(scenario)
    scenario.disk.hang()
    flushing = threading.Thread(target=scenario.guests[0].flush)
    flushing.start()
    scenario.fail("pwrite", "flush")
    pid = scenario.rig.pid
    os.kill(pid, 9)
    scenario.heal()
    flushing.join()
    scenario.kill()


def test_a_disk_that_is_ill_while_the_daemon_starts(scenario: Scenario) -> None:
    written(scenario)
    scenario.kill()
    scenario.fail("pwrite", "flush")
    scenario.start()
    scenario.kill()
    scenario.look("list")


@pytest.mark.parametrize("place", PLACES)
def test_whatever_happens(tmp_path: Path, place: str, seed: int) -> None:
    rng = random.Random(seed)
    with placed(tmp_path, place) as scenario:
        for _ in range(6):
            play(scenario, rng, 40)
        # Not all of it was failure; two flushes were before it.
        assert sum(guest.vouched for guest in scenario.guests) > 2
