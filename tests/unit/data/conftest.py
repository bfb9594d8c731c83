"""A pool in memory for each test that asks, checked when the test lets it go.

All locks have a clock (`tests.support.lockclock`).
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.lockclock import Clock, watching
from tests.unit.data.rigs import Rig


@pytest.fixture(autouse=True)
def lock_clock() -> Iterator[Clock]:
    """Fails the test when somebody waits for long, or for ever, with a lock in hand."""
    with watching() as clock:
        yield clock
    assert clock.complaints == []


@pytest.fixture
def new_rig(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    """Makes rigs with the given options."""
    rigs: list[Rig] = []

    def make(**options: Any) -> Rig:
        directory = tmp_path / f"rig{len(rigs)}"
        directory.mkdir()
        rigs.append(Rig(directory, **options))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()


@pytest.fixture
def rig(new_rig: Callable[..., Rig]) -> Rig:
    """A pool of 64 blocks of 64 KiB."""
    return new_rig()
