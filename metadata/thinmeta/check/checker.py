"""The check of a pool's metadata, from the superblock down.

What must hold:

1. Every block that is pointed at is there, is what it is pointed at for, and carries its own number
   and a good checksum.
2. Trees are trees: keys ascend and lie within what the parent says, all leaves are equally deep,
   and nodes but for roots are at least a third full.
3. Every device has details and mappings, as many as it says, of data blocks that there are.
4. Every block is counted as often as it is pointed at, and the sums of counts are right.
5. The store holds no block that is not counted, and every record of its tables is sound.

Everything that can still be reached is looked at, whatever was found before.

Thread safety: any thread; the check sees one commit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from thinmeta.check.counts import ReferenceCounts
from thinmeta.check.devices import DeviceChecker
from thinmeta.check.records import check_records, find_orphans
from thinmeta.check.result import CheckResult, Findings
from thinmeta.check.spacemaps import SpaceMapChecker
from thinmeta.check.trees import TreeWalker
from thinmeta.errors import Corrupt, StoreError, UnsupportedFormat
from thinmeta.format.block import Kind, verify
from thinmeta.format.index import MAX_METADATA_BLOCKS
from thinmeta.format.superblock import SUPERBLOCK_BLOCK, Superblock
from thinmeta.store.protocol import BlockStore

Progress = Callable[[int, int], None]

#: Of a byte each for counting them; 256 TiB of the smallest blocks. The format allows for more, but
#: a superblock that says so is more likely to be wrong.
_MAX_DATA_BLOCKS: Final = 1 << 32


def check(
    store: BlockStore, *, progress: Progress | None = None, foreign: bool = False
) -> CheckResult:
    """Look at everything in the store's last commit.

    `progress(done, total)` is called now and then, with numbers of metadata blocks.

    `foreign` metadata was written by the kernel or its tools. They leave old blocks behind, and
    their space maps may take blocks for used that are free: neither is a problem then.

    Damage is in the result, never raised. Raises `Closed`.
    """
    with store.snapshot() as view:
        findings = Findings()
        result = _Checker(view, findings, progress or _ignored, foreign).run()
        return replace(result, errors=findings.problems())


def _ignored(done: int, total: int) -> None:
    pass


class _Checker:
    def __init__(
        self, store: BlockStore, findings: Findings, progress: Progress, foreign: bool
    ) -> None:
        self._store = store
        self._findings = findings
        self._progress = progress
        self._foreign = foreign

    def run(self) -> CheckResult:
        """The result, but for the problems in `findings`."""
        check_records(self._store, self._findings)
        superblock = self._superblock(SUPERBLOCK_BLOCK)
        return CheckResult([]) if superblock is None else self._walk(superblock)

    def _walk(self, superblock: Superblock) -> CheckResult:
        store, findings = self._store, self._findings
        root = superblock.metadata_space_map
        metadata = ReferenceCounts(min(root.nr_blocks, MAX_METADATA_BLOCKS))
        metadata_map = SpaceMapChecker(
            "metadata", root, store, metadata, findings, MAX_METADATA_BLOCKS
        )
        metadata.add_all([SUPERBLOCK_BLOCK])
        complete = metadata_map.read_index_block()
        metadata_map.read_bitmaps()
        total = root.nr_allocated
        walker = TreeWalker(
            store,
            metadata,
            findings,
            metadata_map.may_be_shared,
            lambda done: self._progress(done, max(done, total)),
        )
        complete &= metadata_map.read_overflow(walker)

        data_map = SpaceMapChecker(
            "data", superblock.data_space_map, store, metadata, findings, _MAX_DATA_BLOCKS
        )
        complete &= data_map.read_index_tree(walker)
        complete &= data_map.read_overflow(walker)
        data = ReferenceCounts(data_map.nr_blocks)

        devices = DeviceChecker(walker, findings, data, superblock.time)
        found = devices.check(superblock.mapping_root, superblock.details_root)
        held_complete = self._held(superblock.held_root, metadata, devices)
        walker.report()

        data_complete = found.complete and held_complete
        leaked = data_map.compare(data, complete=data_complete, foreign=self._foreign)
        complete &= data_complete
        leaked_metadata = metadata_map.compare(metadata, complete=complete, foreign=self._foreign)
        if complete and not self._foreign:
            find_orphans(store, metadata, metadata_map, findings)
        self._progress(total, total)
        return CheckResult(
            [],
            complete=complete,
            needs_check=superblock.needs_check,
            transaction_id=superblock.transaction_id,
            devices=found.devices,
            mappings=found.mappings,
            data_blocks=superblock.data_space_map.nr_blocks,
            data_used=superblock.data_space_map.nr_allocated,
            metadata_blocks=superblock.metadata_space_map.nr_blocks,
            metadata_used=superblock.metadata_space_map.nr_allocated,
            leaked_blocks=leaked,
            leaked_metadata_blocks=leaked_metadata,
        )

    def _superblock(self, block: int) -> Superblock | None:
        try:
            data = self._store.read(block)
            verify(data, Kind.SUPERBLOCK, block)
            return Superblock.unpack(data)
        except Corrupt as damage:
            kind, message = damage.kind, damage.message
        except StoreError as error:
            kind, message = "io", str(error)
        except UnsupportedFormat as error:
            kind, message = "superblock", str(error)
        name = "the superblock" if block == SUPERBLOCK_BLOCK else "the metadata snapshot"
        self._findings.add(kind, f"block {block}", f"{message}; lost: {name} and all below it")
        return None

    def _held(self, block: int, metadata: ReferenceCounts, devices: DeviceChecker) -> bool:
        """The metadata snapshot, if there is one: a superblock that points at trees alone."""
        if not block:
            return True
        if block >= metadata.nr_blocks:
            self._findings.add("superblock", "superblock", f"metadata snapshot is at block {block}")
            return False
        metadata.add(block)
        held = self._superblock(block)
        return held is not None and devices.check_held(held.mapping_root, held.details_root)
