"""Builds of the C filter for tests, made once."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.fastpath import Hold, build


@pytest.fixture(scope="session")
def filter_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Builds the filter: hooks, ungated, thread or address."""
    directory = tmp_path_factory.mktemp("fastpath")
    return lambda name: build(directory, name)


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Hold]:
    """Holds up requests in a build with hooks."""
    one = Hold(tmp_path / "hold")
    yield one
    one.close()
