"""Clients of one volume leave others' theirs, whatever kind of requests either sends.

What is measured is one client beside four of another volume, against the same client beside four
that run no Python: so the machine's own noise is on both sides. Before Python's time was shared out
the worst pairs came to a hundredth and less. The best of some tries counts, so that a machine which
is busy with other tests does not come near a thirty-second.
"""

import pytest

from scripts.benchmarks.fairness import KINDS, QUIET, Fairness
from tests.conftest import PoolMaker
from tests.support.pools import PoolRig

SECONDS = 0.5
LEAST = 1 / 32
TRIES = 8


class Volumes:
    """A rig's pool, as the benchmarks want one."""

    def __init__(self, rig: PoolRig) -> None:
        self._rig = rig
        self._number = 0

    def create(self, size: int) -> str:
        self._number += 1
        name = f"v{self._number}"
        self._rig.create(name, str(size))
        return name

    def delete(self, name: str) -> None:
        self._rig.cli("delete", name)

    def uri(self, name: str) -> str:
        return self._rig.uri(name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_request_beside_each(new_pool: PoolMaker, kind: str) -> None:
    fairness = Fairness(Volumes(new_pool("64G")))
    left = dict.fromkeys(KINDS, 0.0)
    for _ in range(TRIES):
        quiet = fairness.beside(kind, QUIET, SECONDS).own
        for other, best in left.items():
            if best < LEAST:
                left[other] = max(best, fairness.beside(kind, other, SECONDS).own / quiet)
    assert {other: rate for other, rate in left.items() if rate < LEAST} == {}
