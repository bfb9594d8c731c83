"""The memory of a daemon with a large volume in use: its metadata made directly, no data written.

The data file stays sparse, so the file system's own work is small beside the daemon's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from thinpoold.pool import DEFAULT_CACHE_BYTES, Pool

from . import fio, metadata
from .ours import Thinpoold

VOLUME = "large"
STRIDE = 8 << 20  # bytes: reads so far apart still meet every leaf of the mapping tree


@dataclass(frozen=True)
class Residency:
    """Private memory of the daemon in bytes: just started, and after reads met every leaf and
    random reads and writes went on for some seconds. `cache` is the metadata cache's bound."""

    server: str
    mappings: int
    idle: int
    used: int
    cache: int = DEFAULT_CACHE_BYTES

    @property
    def bytes_a_mapping(self) -> float:
        """What use added beyond the cache's bound, shared out over the mapped blocks."""
        return max(0, self.used - self.idle - self.cache) / self.mappings


class Large(Thinpoold):
    """A pool whose daemon is started again with other options."""

    pool_size = "1100G"

    def __init__(self, directory: Path, mappings: int) -> None:
        super().__init__(directory)
        self.mappings = mappings
        self.size = mappings * metadata.BLOCK_SECTORS * 512
        self.thinpool("create", VOLUME, str(self.size))
        self.thinpool("stop")
        metadata.alone(fill, self.pool, mappings)

    def measure(self, kind: type[Thinpoold], seconds: float) -> Residency:
        """Starts the daemon as `kind` does, works on the volume, and stops it."""
        self.options = kind.options
        self.start()
        try:
            idle, uri = self.memory(), self.uri(VOLUME)
            far = f"read:{STRIDE - 4096}"
            sweep = fio.Job(uri, far, 4096, 16, self.size, amount=self.size // STRIDE * 4096)
            fio.run([sweep], seconds=60, seed=1, scratch=self.directory)
            for pattern in ("randread", "randwrite"):
                job = fio.Job(uri, pattern, 4096, 16, self.size)
                fio.run([job], seconds=seconds, seed=1, scratch=self.directory)
            return Residency(kind.name, self.mappings, idle, self.memory())
        finally:
            self.close()


def fill(directory: Path, mappings: int) -> None:
    """Maps the whole of the volume of a stopped pool."""
    pool = Pool.open(directory)
    try:
        device = pool.registry.get(VOLUME).dev_id
        metadata.fill(pool.metadata, device, mappings, 16)
    finally:
        pool.close()
