"""What is in a file of noted changes (`recent`).

    0    header    magic, generation of the commit before, boot id, pool's uuid, CRC-32
    512  records   kind and device, virtual block, data block, count, CRC-32; 32 bytes each

    INSERT, REMOVE   a change, in the order of the changes
    MARK             the data behind the first so many changes is durable
    END              nothing counts but the first so many changes

A record's CRC is over the header's, too: so what an earlier use of a file has left is no record.

Thread-safety: pure functions.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from zlib import crc32

from thinpoold import poolfiles

_MAGIC: Final = b"tprecnt2"
HEADER: Final = struct.Struct("<8sQ16s16sI")
RECORDS_AT: Final = 512
BODY: Final = struct.Struct("<IQQQ")
CRC_BYTES: Final = 4
RECORD_BYTES: Final = BODY.size + CRC_BYTES
# Above the 24 bits of a device's number.
KIND_SHIFT: Final = 24
INSERT: Final = 1
REMOVE: Final = 2
MARK: Final = 3
END: Final = 4


@dataclass(frozen=True, slots=True)
class Change:
    """`count` virtual blocks of a device from `block` on were mapped to data blocks from
    `data_block` on, or unmapped if that is None."""

    dev_id: int
    block: int
    count: int
    data_block: int | None


@dataclass(frozen=True, slots=True)
class Leftover:
    """Changes of one transaction that came on top of the commit `generation`.

    The first `flushed` of them were flushed; the mark that says so ends at `flushed_end`. `dropped`
    are those that came after, and do not count because the boot has another id now.
    """

    generation: int
    changes: Sequence[Change]
    flushed: int = 0
    flushed_end: int = field(default=RECORDS_AT, compare=False)
    # What the CRC of each record goes on from.
    seed: int = field(default=0, compare=False)
    dropped: Sequence[Change] = field(default=(), compare=False)


def header(generation: int, boot: bytes, uuid: bytes) -> bytes:
    """Return the header of a file."""
    body = HEADER.pack(_MAGIC, generation, boot, uuid, 0)[:-CRC_BYTES]
    return body + crc32(body).to_bytes(CRC_BYTES, "little")


def seed_of(head: bytes) -> int:
    """Return what the CRC of each record goes on from."""
    # Without the header's own: with it, every header has the same.
    return crc32(head[:-CRC_BYTES])


def record(seed: int, what: int, block: int, count: int = 0) -> bytes:
    """Return a record that is no insertion."""
    body = BODY.pack(what, block, 0, count)
    return body + crc32(body, seed).to_bytes(CRC_BYTES, "little")


def read(path: Path, boot: bytes, uuid: bytes) -> Leftover | None:
    """What the file says, None if it says nothing. Raises `OSError`, but not for one missing."""
    try:
        octets = poolfiles.read(path)
    except FileNotFoundError:
        return None
    head = octets[: HEADER.size]
    if len(head) < HEADER.size:
        return None
    magic, generation, its_boot, its_uuid, _ = HEADER.unpack(head)
    if magic != _MAGIC or its_uuid != uuid or head != header(generation, its_boot, its_uuid):
        return None
    changes: list[Change] = []
    flushed, flushed_end = 0, RECORDS_AT
    seed = seed_of(head)
    for at in range(RECORDS_AT, len(octets) - RECORD_BYTES + 1, RECORD_BYTES):
        body = octets[at : at + BODY.size]
        sum_at = at + BODY.size
        if crc32(body, seed) != int.from_bytes(octets[sum_at : sum_at + CRC_BYTES], "little"):
            break
        what, block, data_block, count = BODY.unpack(body)
        kind, dev_id = what >> KIND_SHIFT, what & (1 << KIND_SHIFT) - 1
        if kind == INSERT:
            changes.append(Change(dev_id, block, count, data_block))
        elif kind == REMOVE:
            changes.append(Change(dev_id, block, count, None))
        elif kind == MARK:
            flushed, flushed_end = block, at + RECORD_BYTES
        else:
            if kind == END:
                del changes[block:]
            # Else zeroes whose CRC happens to be right.
            break
    flushed = min(flushed, len(changes))
    dropped: list[Change] = []
    if not boot or its_boot != boot:
        dropped = changes[flushed:]
        del changes[flushed:]
        if not flushed and not dropped:
            return None
    return Leftover(generation, changes, flushed, flushed_end, seed, dropped)
