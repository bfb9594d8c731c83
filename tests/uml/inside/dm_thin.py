"""The kernel's dm-thin, inside the machine: the counterpart that nobody here wrote.

A pool of the kernel's has a metadata device, a data device, and thin devices that are activated one
by one. Sizes are in 512-byte sectors where the name says so.
"""

import os
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
        self._active: set[int] = set()

    def status(self) -> PoolStatus:
        return PoolStatus.parse(run("dmsetup", "status", POOL))

    def message(self, *words: object) -> None:
        """Raises AssertionError if the pool refuses it."""
        run("dmsetup", "message", POOL, "0", *map(str, words))

    def activate(self, sectors: int, *dev_ids: int) -> None:
        """The devices get their nodes, and stay until `deactivate`."""
        missing = [dev_id for dev_id in dev_ids if dev_id not in self._active]
        if missing:
            # name,uuid,minor,flags,table; all in one go, for the sake of time.
            table = f"0 {sectors} thin {path_of(POOL)}"
            concise = ";".join(f"{_name(n)},,,rw,{table} {n}" for n in missing)
            run("dmsetup", "create", "--concise", concise)
            self._active.update(missing)

    def deactivate(self, *dev_ids: int) -> None:
        present = [dev_id for dev_id in dev_ids if dev_id in self._active]
        if present:
            run("dmsetup", "remove", *map(_name, present))
            self._active.difference_update(present)

    def deactivate_all(self) -> None:
        self.deactivate(*sorted(self._active))

    def mapped_blocks(self) -> dict[int, int]:
        """Mapped blocks of each active device."""
        mapped = {}
        for line in run("dmsetup", "status", "--target", "thin").splitlines():
            # NAME: START LENGTH thin MAPPED_SECTORS HIGHEST
            fields = line.split()
            dev_id = int(fields[0].removeprefix("thin").removesuffix(":"))
            mapped[dev_id] = int(fields[4]) // self.block_sectors
        return mapped

    def create_snapshot(self, dev_id: int, origin: int) -> None:
        """A snapshot as dmsetup's users make it: of an origin at rest."""
        origin_is_active = origin in self._active
        if origin_is_active:
            run("dmsetup", "suspend", _name(origin))
        self.message("create_snap", dev_id, origin)
        if origin_is_active:
            run("dmsetup", "resume", _name(origin))


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
    # Nobody else makes device nodes in here.
    os.environ["DM_DISABLE_UDEV"] = "1"
    run("dmsetup", "create", POOL, "--table", f"0 {size} {table}")
    pool = DmThin(block_sectors)
    try:
        yield pool
        pool.deactivate_all()
    finally:
        # After a failure too: the images show then how far it got.
        run("dmsetup", "remove_all")


def path_of(name: str) -> Path:
    """The node of a device."""
    return Path("/dev/mapper", name)


def thin_path(dev_id: int) -> Path:
    """The node of an active thin device."""
    return path_of(_name(dev_id))


def _name(dev_id: int) -> str:
    return f"thin{dev_id}"
