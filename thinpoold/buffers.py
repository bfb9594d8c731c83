"""What clients' requests may take of the daemon's memory, and how that is kept.

nbdkit keeps, for each thread of each connection, a buffer as large as the largest request it was
sent there. So the daemon tells clients what is the largest request that it takes, and has a small
library in C (plugins/fastpath/buffers.c) refuse nbdkit larger buffers, with ENOMEM to the client.
Beside it a thread has at most one block for breaking sharing. With `max-clients` that is a sum.

Invariants

1. A request that is no larger than what was told is never refused for its size.
2. With the library no buffer is larger; without it, no larger than nbdkit's own limit.

Thread-safety: any thread.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

# A request's most bytes. What clients that ask for it send by themselves is less: the kernel 1.25
# MiB, from 6.17 on 4 MiB; nbdcopy 256 KiB; QEMU as much as it is told.
LARGEST_REQUEST: Final = 4 << 20
# nbdkit's own limit on a request.
_NBDKITS: Final = 64 << 20

_NAME: Final = "thinpoold-buffers.so"
_PRELOAD: Final = "LD_PRELOAD"
_VARIABLE: Final = "THINPOOLD_LARGEST_REQUEST"
# Bytes of one block that breaking sharing keeps in memory for a thread, at most.
BLOCK_BYTES: Final = 1 << 20


def place(script: Path) -> Path:
    """Return where the library is, once it was built, that goes with nbdkit's script."""
    return script.parent / "fastpath" / "build" / _NAME


def preloaded(library: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that have a program start with the library; none where it is missing.

    What somebody else preloads stands before it.
    """
    # The dynamic linker takes both for the end of a name.
    if not library.exists() or any(one in str(library) for one in " :"):
        return {}
    others = environment.get(_PRELOAD, "").split()
    return {_PRELOAD: " ".join([*others, str(library)]), _VARIABLE: str(LARGEST_REQUEST)}


def forget_preloading() -> None:
    """Have what this process starts go without the library."""
    if os.environ.pop(_VARIABLE, None) is None:
        return
    others = os.environ.pop(_PRELOAD, "").split()[:-1]
    if others:
        os.environ[_PRELOAD] = " ".join(others)


def per_thread(block_size: int) -> int:
    """Return the most bytes that requests may take for one thread of a connection."""
    return (_limit() or _NBDKITS) + min(block_size, BLOCK_BYTES)


def _limit() -> int:
    """The largest buffer that nbdkit gets in this process, 0 for any."""
    try:
        ask = ctypes.CDLL(None).buffers_limit
    except AttributeError:
        return 0
    ask.restype = ctypes.c_size_t
    return int(ask())
