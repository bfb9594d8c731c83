"""Nothing that was answered is lost, or shows elsewhere, however many requests share a block.

The slow test takes ten minutes over all configurations. `python -m tests.oracle.longrun` goes on
for as long as it is told to.
"""

from collections.abc import Iterator

import pytest

from tests.oracle.rounds import CONFIGURATIONS, Configuration, run_round, until
from tests.support.pools import PoolRig

SECONDS = 600 / len(CONFIGURATIONS)
QUICK = 5


@pytest.fixture
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PoolRig]:
    """A pool yet to be made."""
    # On a disk: in memory nothing is slow enough to be under way for long.
    rig = PoolRig(tmp_path_factory.mktemp("o") / "p")
    yield rig
    complaints = rig.dispose()
    assert not complaints, "\n".join(complaints)


def test_own_pieces(fresh: PoolRig, seed: int) -> None:
    configuration = Configuration(threads=4, fastpath=True, cache="page", block="64K")
    run_round(fresh, configuration, seed, lambda generations: generations < QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
def test_own_pieces_for_long(fresh: PoolRig, seed: int, configuration: Configuration) -> None:
    run_round(fresh, configuration, seed, until(SECONDS))
