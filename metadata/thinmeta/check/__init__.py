"""Whether metadata is sound, and if not, what is wrong where.

    from thinmeta.check import check, check_file
    result = check(store)

`checker` says what is looked at. It only reads, so it may run on a pool in use: it sees the last
commit.
"""

from thinmeta.check.checker import check
from thinmeta.check.files import check_file
from thinmeta.check.result import CheckResult, Problem

__all__ = ["CheckResult", "Problem", "check", "check_file"]
