"""Fixtures of the tests that boot a real kernel.

All of them are slow. Without User Mode Linux they are skipped, and only then: scripts/setup
installs it.
"""

from pathlib import Path

import pytest

from tests.uml.machine import Machine, installed


@pytest.fixture(autouse=True)
def _user_mode_linux() -> None:
    if not installed():
        pytest.skip("no linux.uml here (Debian's package user-mode-linux)")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine without disks and modules; its attributes can be set."""
    return Machine(tmp_path)
