"""Programs in C over the filter's sources, under sanitizers too: threads, and nbdkit's calls."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.tools import PATIENCE

# As a sanitizer ends a program that it has complained of.
COMPLAINT = 66


def run(program: Path, *words: int) -> "subprocess.CompletedProcess[str]":
    options = f"exitcode={COMPLAINT}:detect_leaks=1"
    return subprocess.run(
        [str(program), *map(str, words)],
        env={"TSAN_OPTIONS": f"exitcode={COMPLAINT}", "ASAN_OPTIONS": options},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.mark.parametrize(("variant", "turns"), [("", 20000), ("thread", 3000), ("address", 10000)])
def test_nobody_meets_a_block_that_is_not_his(
    program: Callable[[str, str], Path], variant: str, turns: int
) -> None:
    done = run(program("harness", variant), turns)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert int(done.stdout.split()[0]) >= turns


def test_and_would_without_the_gate(program: Callable[[str, str], Path]) -> None:
    """The sanitizer sees the races of a build without the gate: so it would see the gate's."""
    done = run(program("harness", "racing"), 3000)
    assert done.returncode in (1, COMPLAINT)
    assert "data race" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "turns"), [("", 200000), ("thread", 30000)])
def test_nobody_does_in_a_long_run(
    program: Callable[[str, str], Path], variant: str, turns: int
) -> None:
    done = run(program("harness", variant), turns)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


@pytest.mark.parametrize("variant", ["", "address"])
def test_what_nbdkit_asks_of_it(program: Callable[[str, str], Path], variant: str) -> None:
    done = run(program("calls", variant))
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
