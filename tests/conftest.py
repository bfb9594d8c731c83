"""Fixtures of all tests: pools that are checked when a test lets them go, seeds, long runs.

Pools lie in memory where that will do, for most of what a test waits for is fsync; those of tests
marked `disk` or `slow` lie where pytest puts its files. kill -9 loses neither.

Daemons run with the C filter, and `--fastpath=off` runs them without; a test marked `both_ways` is
run with and without.

With `--skips=expected`, as `scripts/test` has it, a test that is skipped fails unless it is known
that a machine like this lacks what it needs (`tests.support.skips`).

`--seed N` repeats a random run, `--model-ops N` and `--crash-rounds N` make the long ones longer.
"""

import os
import random
import shutil
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support import skips
from tests.support.pools import PoolRig
from tests.support.scratch import Scratch, memory

# No deadlines: a shared machine is slow at times, and the daemon is another process.
settings.register_profile(
    "thinpoold",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    print_blob=True,
)
settings.load_profile("thinpoold")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("thinpoold")
    group.addoption("--seed", type=int, default=None, help="seed of the random runs")
    group.addoption("--model-ops", type=int, default=None, help="steps of the model run")
    group.addoption("--fastpath", choices=("on", "off"), default="on", help="the C filter")
    group.addoption(
        "--skips", choices=("any", "expected"), default="any", help="whether others fail"
    )
    group.addoption("--crash-rounds", type=int, default=None, help="rounds of the crash run")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "disk: its pools are to lie on a disk, not in memory")
    config.addinivalue_line("markers", "both_ways: run with the C filter and without")
    # For every daemon that a test starts. `on`, not `auto`: without the filter, tests are to fail.
    os.environ["THINPOOL_FASTPATH"] = config.getoption("--fastpath")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.get_closest_marker("both_ways"):
        metafunc.fixturenames.insert(0, "fastpath")
        metafunc.parametrize("fastpath", ["on", "off"], indirect=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and item.config.getoption("--skips") == "expected":
        skips.judge(report)
    return report


@pytest.fixture
def fastpath(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What daemons of a test that is run both ways get."""
    monkeypatch.setenv("THINPOOL_FASTPATH", request.param)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of this run, printed when a test fails."""
    given: int | None = request.config.getoption("--seed")
    chosen = random.SystemRandom().randrange(1 << 32) if given is None else given
    sys.stdout.write(f"--seed {chosen}\n")
    return chosen


PoolMaker = Callable[..., PoolRig]


@pytest.fixture(scope="session")
def in_memory(request: pytest.FixtureRequest) -> Iterator[Scratch | None]:
    """Where pools lie that need no disk, if there is such a place."""
    directory = memory(request.config)
    if directory is None:
        yield None
        return
    yield Scratch(directory)
    shutil.rmtree(directory)


@pytest.fixture
def new_pool(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    in_memory: Scratch | None,
) -> Iterator[PoolMaker]:
    """Makes pools, and fails the test when a checker has a word against one of them at its end.

    `new_pool(size=..., block_size=..., start=True)`; the directory's name is short because a Unix
    socket's path must fit 108 bytes.
    """
    on_disk = any(request.node.get_closest_marker(mark) for mark in ("disk", "slow"))
    base = (tmp_path_factory if on_disk or in_memory is None else in_memory).mktemp("t")
    rigs: list[PoolRig] = []

    def make(
        size: str = "256M",
        *,
        start: bool = True,
        directory: Path | None = None,
        **options: str | bool,
    ) -> PoolRig:
        rig = PoolRig(directory or base / f"p{len(rigs)}")
        rigs.append(rig)
        rig.init(size, **options)
        if start:
            rig.start()
        return rig

    yield make
    complaints = [line for rig in rigs for line in rig.dispose()]
    if not on_disk and in_memory is not None:
        shutil.rmtree(base, ignore_errors=True)
    if complaints:
        pytest.fail("\n".join(complaints))


@pytest.fixture
def pool(new_pool: PoolMaker) -> PoolRig:
    """A running pool of 256 MiB with blocks of 64 KiB."""
    return new_pool()
