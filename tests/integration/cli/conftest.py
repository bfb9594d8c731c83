"""Pools shared by the tests of one verb: names must differ, the checkers look at the end.

They lie in memory where that will do: see tests/support/scratch.py.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.pools import PoolRig
from tests.support.scratch import Scratch, memory


@pytest.fixture(scope="session")
def tmp_path_factory(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[pytest.TempPathFactory | Scratch]:
    """Pytest's own, or one in memory, whose files go at the end whatever happened."""
    directory = memory(request.config)
    if directory is None:
        yield tmp_path_factory
        return
    yield Scratch(directory)
    shutil.rmtree(directory)


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory | Scratch) -> Path:
    return tmp_path_factory.mktemp("t")


@pytest.fixture(scope="module")
def module_pools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], PoolRig]]:
    base = tmp_path_factory.mktemp("c")
    rigs: dict[str, PoolRig] = {}

    def pool(state: str) -> PoolRig:
        if state not in rigs:
            rig = rigs[state] = PoolRig(base / state)
            rig.init("256M")
            if state == "running":
                rig.start()
        return rigs[state]

    yield pool
    complaints = [line for rig in rigs.values() for line in rig.dispose()]
    if complaints:
        pytest.fail("\n".join(complaints))


@pytest.fixture(scope="module", params=["running", "stopped"])
def rig(request: pytest.FixtureRequest, module_pools: Callable[[str], PoolRig]) -> PoolRig:
    """A pool of 256 MiB for all tests of a module; once running, once stopped."""
    return module_pools(request.param)


@pytest.fixture(scope="module")
def running(module_pools: Callable[[str], PoolRig]) -> PoolRig:
    """The running pool of a module."""
    return module_pools("running")
