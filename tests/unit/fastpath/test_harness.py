"""Threads of C over the filter's own gate and volumes, under sanitizers too."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.tools import PATIENCE

# As a sanitizer ends a program that it has complained of.
COMPLAINT = 66


def run(program: Path, turns: int) -> "subprocess.CompletedProcess[str]":
    options = f"exitcode={COMPLAINT}:detect_leaks=1"
    return subprocess.run(
        [str(program), str(turns)],
        env={"TSAN_OPTIONS": f"exitcode={COMPLAINT}", "ASAN_OPTIONS": options},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.mark.parametrize(("variant", "turns"), [("", 20000), ("thread", 3000), ("address", 10000)])
def test_nobody_meets_a_block_that_is_not_his(
    harness: Callable[[str], Path], variant: str, turns: int
) -> None:
    done = run(harness(variant), turns)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert int(done.stdout.split()[0]) >= turns


def test_and_would_without_the_gate(harness: Callable[[str], Path]) -> None:
    """The sanitizer sees the races of a build without the gate: so it would see the gate's."""
    done = run(harness("racing"), 3000)
    assert done.returncode in (1, COMPLAINT)
    assert "data race" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "turns"), [("", 1000000), ("thread", 200000)])
def test_nobody_does_in_a_long_run(
    harness: Callable[[str], Path], variant: str, turns: int
) -> None:
    done = run(harness(variant), turns)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
