"""Units installed below a directory that anybody may read: systemd tries them out as nobody."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.systemd.units import Machine


@pytest.fixture
def machine() -> Iterator[Machine]:
    root = Path(tempfile.mkdtemp(prefix="units-"))
    machine = Machine(root)
    machine.install()
    yield machine
    shutil.rmtree(root)
