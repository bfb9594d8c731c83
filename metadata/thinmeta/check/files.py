"""The check of a pool's metadata file, from LMDB's own pages up.

Thread safety: any thread; not in a process that has the file open already.
"""

from __future__ import annotations

from pathlib import Path

from thinmeta.check.checker import Progress, check
from thinmeta.check.result import CheckResult, Findings
from thinmeta.errors import Corrupt
from thinmeta.store.lmdb import LmdbStore
from thinmeta.store.lmdb_file import verify_pages


def check_file(path: Path, *, progress: Progress | None = None) -> CheckResult:
    """As `check`, of the store in the file `path`, which may be in use by another process.

    Where pages of LMDB's are damaged, that is all that is told: LMDB may not survive reading them.

    Raises `StoreError` if the file cannot be read, `UnsupportedFormat` if it is of a newer layout.
    """
    findings = Findings()
    for problem in verify_pages(path):
        findings.add("store", str(path), problem)
    if not findings.problems():
        try:
            store = LmdbStore(path, read_only=True)
        except Corrupt as damage:
            findings.add(damage.kind, damage.where, damage.message)
        else:
            try:
                return check(store, progress=progress)
            finally:
                store.close()
    return CheckResult(findings.problems())
