"""What memory a pool's process takes, for what, and where that ends.

Bounds are bytes. What is resident beside the parts told is the interpreter and nbdkit, some 40 MB,
and what requests under way hold.

Thread-safety: any thread.
"""

from __future__ import annotations

import mmap

from thinpoold.admin.facts import Fact
from thinpoold.direct import DirectDevice
from thinpoold.pool import Pool

_STATM = "/proc/self/statm"


def memory(pool: Pool) -> Fact:
    """Say what this process has in memory for the pool."""
    device = pool.device
    data_cache = device.cache if isinstance(device, DirectDevice) else None
    with pool.core.lock:
        tables = [volume.table for volume in pool.core.volumes.values()]
        metadata_cache = pool.metadata.memory_bytes()
    return {
        "resident": _resident(),
        "metadata_cache": metadata_cache,
        "data_cache": data_cache.resident_bytes if data_cache is not None else 0,
        # Without the lock: of a large table it takes a while. One that is closed meanwhile is none.
        "mapping_tables": sum(table.resident_bytes() for table in tables),
        "unwritten": 0 if device.direct else device.writeout.unwritten,
        "bounds": {
            "metadata_cache": pool.metadata.memory_limit,
            "data_cache": data_cache.limit_bytes if data_cache is not None else 0,
            "mapping_tables": sum(table.limit_bytes for table in tables),
            "unwritten": 0 if device.direct else device.writeout.limit_bytes,
        },
    }


def _resident() -> int:
    with open(_STATM, "rb") as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE
