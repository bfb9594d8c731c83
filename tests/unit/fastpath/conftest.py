"""The C filter's library, and builds of it, without nbdkit."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.fastpath import FILTER, build, build_harness
from thinpoold.fastlib import Library

HARNESS = Path(__file__).with_name("harness.c")


@pytest.fixture(scope="session")
def library() -> Library:
    """The library as nbdkit would have it loaded."""
    return Library(FILTER)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where builds for tests go."""
    return tmp_path_factory.mktemp("fastpath")


@pytest.fixture(scope="session")
def harness(built: Path) -> Callable[[str], Path]:
    """Builds the program over volume.c and gate.c: plain (""), thread, address or racing."""
    return lambda variant: build_harness(built, HARNESS, variant)


@pytest.fixture(scope="session")
def hooks(built: Path) -> Path:
    """A build that can be held up."""
    return build(built, "hooks")
