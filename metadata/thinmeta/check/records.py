"""What the store holds beside the blocks in use: records, and blocks that nothing counts.

Thread safety: belongs to the one thread that checks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from thinmeta.check.counts import ReferenceCounts
from thinmeta.check.result import Findings
from thinmeta.check.spacemaps import SpaceMapChecker
from thinmeta.errors import Corrupt, StoreError
from thinmeta.store.protocol import BlockStore


def check_records(store: BlockStore, findings: Findings) -> None:
    """Read every record of every table."""
    with _told(findings):
        for table in store.tables():
            for key in store.record_keys(table):
                with _told(findings):
                    store.record(table, key)


def find_orphans(
    store: BlockStore, found: ReferenceCounts, stored: SpaceMapChecker, findings: Findings
) -> None:
    """Tell of blocks in the store that are neither pointed at nor counted.

    One that is counted is a leak, and told as such.
    """
    with _told(findings):
        for block in store.block_numbers():
            if block < found.nr_blocks and (found[block] or stored.may_be_used(block)):
                continue
            findings.add("orphan", f"block {block}", "is in the store, but not counted")


@contextmanager
def _told(findings: Findings) -> Iterator[None]:
    try:
        yield
    except Corrupt as damage:
        findings.add(damage.kind, damage.where, damage.message)
    except StoreError as error:
        findings.add("io", "store", str(error))
