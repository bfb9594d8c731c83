"""The C filter's library, and builds of it, without nbdkit."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.fastpath import FILTER, build, build_program
from thinpoold.fastlib import Library

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def library() -> Library:
    """The library as nbdkit would have it loaded."""
    return Library(FILTER)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where builds for tests go."""
    return tmp_path_factory.mktemp("fastpath")


@pytest.fixture(scope="session")
def program(built: Path) -> Callable[[str, str], Path]:
    """Builds one of the programs here: plain (""), thread, address or racing."""
    return lambda name, variant: build_program(built, HERE / f"{name}.c", variant)


@pytest.fixture(scope="session")
def hooks(built: Path) -> Path:
    """A build that can be held up."""
    return build(built, "hooks")
