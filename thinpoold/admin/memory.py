"""What memory a pool's process takes, for what, and where that ends.

Bounds are bytes. Their total is what the process may take itself: all parts but `unwritten`, which
is the kernel's, and `BASE_BYTES` for the interpreter and nbdkit. Mapping tables are those of the
volumes that are in use, so the total grows with these.

Thread-safety: any thread.
"""

from __future__ import annotations

import mmap
from typing import Final

from thinpoold import buffers
from thinpoold.admin.facts import Fact
from thinpoold.direct import DirectDevice
from thinpoold.pool import Pool

_STATM = "/proc/self/statm"
# The interpreter, nbdkit, their code, and what their threads need.
BASE_BYTES: Final = 64 << 20


def memory(pool: Pool, threads: int) -> Fact:
    """Say what this process has in memory for the pool.

    `threads` serve each connection, 0 where there are no connections.
    """
    device = pool.device
    data_cache = device.cache if isinstance(device, DirectDevice) else None
    with pool.core.lock:
        tables = [volume.table for volume in pool.core.volumes.values()]
        metadata_cache = pool.metadata.memory_bytes()
    bounds = {
        "metadata_cache": pool.metadata.memory_limit,
        "data_cache": data_cache.limit_bytes if data_cache is not None else 0,
        "mapping_tables": sum(table.limit_bytes for table in tables),
    }
    requests = _requests(pool, threads)
    return {
        "resident": _resident(),
        "metadata_cache": metadata_cache,
        "data_cache": data_cache.resident_bytes if data_cache is not None else 0,
        # Without the lock: of a large table it takes a while. One that is closed meanwhile is none.
        "mapping_tables": sum(table.resident_bytes() for table in tables),
        "unwritten": 0 if device.direct else device.writeout.unwritten,
        "bounds": {
            **bounds,
            "unwritten": 0 if device.direct else device.writeout.limit_bytes,
            "requests": requests,
            "total": None if requests is None else sum(bounds.values()) + requests + BASE_BYTES,
        },
    }


def _requests(pool: Pool, threads: int) -> int | None:
    """The most that clients' requests may take, None without a limit on the clients."""
    most = pool.core.settings.max_clients
    if threads and not most:
        return None
    return most * threads * buffers.per_thread(pool.core.block_size)


def _resident() -> int:
    with open(_STATM, "rb") as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE
