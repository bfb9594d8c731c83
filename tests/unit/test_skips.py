"""A test that is skipped without anybody knowing fails."""

import pytest

from tests.support import skips

pytest_plugins = ["pytester"]

TESTS = """
import pytest

def test_that_is_run(): pass

def test_expected(): pytest.skip("this kernel has nbd")

@pytest.mark.skipif(True, reason="no linux.uml here")
def test_unexpected(): pass

@pytest.fixture
def disk(): pytest.skip("no loop device here")

def test_unexpected_of_a_fixture(disk): pass
"""
CONFTEST = """
from tests.conftest import pytest_runtest_makereport

def pytest_addoption(parser):
    parser.addoption("--skips", default="any")
"""


def test_unexpected_skips_fail(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TESTS)
    pytester.makeconftest(CONFTEST)
    pytester.runpytest_inprocess().assert_outcomes(passed=1, skipped=3)
    done = pytester.runpytest_inprocess("--skips=expected")
    done.assert_outcomes(passed=1, skipped=1, errors=2)
    done.stdout.fnmatch_lines(["*skipped, and that is not expected here: no linux.uml here*"])


@pytest.mark.parametrize(
    ("reason", "by_root", "by_others"),
    [
        ("only root may mount", False, True),
        ("mounting a file system of a given size needs root", False, True),
        ("root may open them whatever their mode is", True, False),
        ("fish is not installed", False, False),
    ],
)
def test_what_is_expected_of_whom(
    monkeypatch: pytest.MonkeyPatch, reason: str, by_root: bool, by_others: bool
) -> None:
    assert skips.is_expected(reason) == (by_root if skips.ROOT else by_others)
