"""Which tests may be skipped here: a skip that nobody expects is a test that nobody runs.

Thread-safety: no state.
"""

import os
import re
from typing import Final

import pytest

ROOT: Final = os.geteuid() == 0

# Reasons for which a test may be skipped, and whether they hold for whoever runs it.
EXPECTED: Final = (
    # What root may do cannot be refused to it; what only root may do others cannot try.
    (re.compile(r"^root may "), ROOT),
    (re.compile(r"\bonly root\b|\bneeds root\b"), not ROOT),
    # Those of machines that lack nothing that a test needs.
    (re.compile(r"^this kernel has nbd"), True),
    (re.compile(r"on no (single disk|block device)"), True),
    (re.compile(r"^a file in memory is in the page cache"), True),
)


def is_expected(reason: str) -> bool:
    """Whether a test may be skipped for this reason."""
    return any(here and pattern.search(reason) for pattern, here in EXPECTED)


def judge(report: pytest.TestReport) -> None:
    """Make the report of a skip one of a failure, unless the skip is expected."""
    assert isinstance(report.longrepr, tuple)
    path, line, said = report.longrepr
    reason = str(said).removeprefix("Skipped: ")
    if not is_expected(reason):
        report.outcome = "failed"
        report.longrepr = f"{path}:{line}: skipped, and that is not expected here: {reason}"
