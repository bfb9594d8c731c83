"""The kernel's dm-thin, inside the machine: the counterpart that nobody here wrote.

A pool of the kernel's has a metadata device, a data device, and thin devices that are activated one
by one. Sizes are in 512-byte sectors where the name says so.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.uml.inside.commands import run

SECTOR = 512
POOL = "pool"


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """What the kernel says of a pool, in its own words: counts in blocks."""

    transaction_id: int
    metadata_used: int
    metadata_blocks: int
    data_used: int
    data_blocks: int
    held_root: str
    mode: str
    needs_check: bool

    @classmethod
    def parse(cls, line: str) -> "PoolStatus":
        """Reads a line of `dmsetup status`."""
        fields = line.split()
        if fields[2:4] == ["thin-pool", "Fail"]:
            raise AssertionError("the pool has failed")
        (metadata_used, metadata_blocks), (data_used, data_blocks) = (
            map(int, field.split("/")) for field in fields[4:6]
        )
        return cls(
            transaction_id=int(fields[3]),
            metadata_used=metadata_used,
            metadata_blocks=metadata_blocks,
            data_used=data_used,
            data_blocks=data_blocks,
            held_root=fields[6],
            mode=fields[7],
            needs_check="needs_check" in fields,
        )


class DmThin:
    """An active pool. Use `dm_thin`, which takes it down again."""

    def __init__(self, block_sectors: int) -> None:
        self.block_sectors = block_sectors
        self._active: dict[int, Path] = {}

    def status(self) -> PoolStatus:
        return PoolStatus.parse(run("dmsetup", "status", POOL))

    def message(self, *words: object) -> None:
        """Raises AssertionError if the pool refuses it."""
        run("dmsetup", "message", POOL, "0", *map(str, words))

    def activate(self, dev_id: int, sectors: int) -> Path:
        """The device's node; the device stays until `deactivate`."""
        if dev_id not in self._active:
            name = f"thin{dev_id}"
            _create(name, sectors, f"thin /dev/mapper/{POOL} {dev_id}")
            self._active[dev_id] = Path("/dev/mapper", name)
        return self._active[dev_id]

    def deactivate(self, dev_id: int) -> None:
        if self._active.pop(dev_id, None):
            run("dmsetup", "remove", f"thin{dev_id}")

    def deactivate_all(self) -> None:
        for dev_id in list(self._active):
            self.deactivate(dev_id)

    def mapped_blocks(self, dev_id: int) -> int:
        """Mapped blocks of an active device."""
        mapped = run("dmsetup", "status", f"thin{dev_id}").split()[3]
        return int(mapped) // self.block_sectors

    def create_snapshot(self, dev_id: int, origin: int) -> None:
        """A snapshot as dmsetup's users make it: of an origin at rest."""
        origin_is_active = origin in self._active
        if origin_is_active:
            run("dmsetup", "suspend", f"thin{origin}")
        self.message("create_snap", dev_id, origin)
        if origin_is_active:
            run("dmsetup", "resume", f"thin{origin}")


@contextmanager
def dm_thin(
    block_sectors: int, *features: str, data_sectors: int | None = None
) -> Iterator[DmThin]:
    """The pool of the metadata on the first disk and the data on the second.

    A metadata device whose first block is zero becomes a new pool. On the way out all devices and
    the pool are taken down, which commits.
    """
    size = int(Path("/sys/block/ubdb/size").read_text()) if data_sectors is None else data_sectors
    size -= size % block_sectors
    # The machine's disks take discards of less than a block: without this word dm warns of it.
    features = ("no_discard_passdown", *features)
    table = f"thin-pool /dev/ubda /dev/ubdb {block_sectors} 1 {len(features)} {' '.join(features)}"
    _create(POOL, size, table)
    pool = DmThin(block_sectors)
    try:
        yield pool
        pool.deactivate_all()
    finally:
        # After a failure too: the images show then how far it got.
        run("dmsetup", "remove_all")


def _create(name: str, sectors: int, table: str) -> None:
    run("dmsetup", "create", name, "--table", f"0 {sectors} {table}")
    run("dmsetup", "mknodes", name)
