"""kill -9 at random moments under load: what was answered is there, the rest is old or new.

After each death the pool must open at once, every sector of every volume is judged, and the
checkers must be silent: also about blocks that nobody has.
"""

import pytest

from tests.conftest import PoolMaker
from tests.crash.rounds import Rounds
from tests.support.agreement import disagreements
from thinpoold.settings import CACHE

DEFAULT_ROUNDS = 6
SLOW_ROUNDS = 200

# Little more than the volumes can hold, so that blocks are soon used again.
SMALL = "26M"


@pytest.mark.parametrize("cache", CACHE)
def test_some_rounds(
    new_pool: PoolMaker, seed: int, request: pytest.FixtureRequest, cache: str
) -> None:
    pool = new_pool(SMALL, cache=cache)
    with Rounds(pool, seed, remembers=True) as rounds:
        rounds.run(request.config.getoption("--crash-rounds") or DEFAULT_ROUNDS, inspect_each=3)
        assert disagreements(pool) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "options",
    [{}, {"discard": "nopassdown"}, {"cache": "bufio"}],
    ids=lambda options: "-".join(options.values()) or "default",
)
def test_many_rounds(
    new_pool: PoolMaker, seed: int, options: dict[str, str], request: pytest.FixtureRequest
) -> None:
    pool = new_pool(SMALL, **options)
    with Rounds(pool, seed, remembers=True) as rounds:
        rounds.run(request.config.getoption("--crash-rounds") or SLOW_ROUNDS)
        assert disagreements(pool) == []
