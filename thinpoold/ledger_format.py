"""What is in a pool's ledger (`ledger`): a slot for the pool, and one for each volume it knows of.

    0      the pool     magic, state, generation, boot id, uptime in ns         zeroes, CRC-32
    128    a volume     uuid, marks, seconds since 1970, digest of a name, client text, CRC-32
    256    ...

A slot is 128 bytes, so none is in two sectors. Its CRC goes on from that of the pool's uuid: one
that a power cut has torn, or that is another pool's, counts as unused.

Thread-safety: pure functions, but for `read`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntFlag
from pathlib import Path
from typing import Final
from zlib import crc32

from thinpoold import poolfiles
from thinpoold.boot import NO_BOOT, Boot
from thinpoold.errors import DeviceError

SLOT_BYTES: Final = 128
_MAGIC: Final = b"tpledgr1"
_CRC: Final = struct.Struct("<I")
_POOL: Final = struct.Struct("<8sIQ16sQ80x")
_VOLUME: Final = struct.Struct("<16sIQ16s80s")
_CLIENT_BYTES: Final = 80
assert _POOL.size == _VOLUME.size == SLOT_BYTES - _CRC.size


class State(IntFlag):
    """Of the pool. On disk; do not change."""

    CLEAN = 1
    """The last process ended in order: all is committed, and on disk."""
    UNNOTED = 2
    """A change that was answered is in no commit and in no note."""
    SYNCING = 4
    """A call is under way that is told of write errors, once."""
    FAILED = 8
    """The data device has failed to write something."""
    CONTAINED = 16
    """The boot's id is a container's (`boot`)."""


class Mark(IntFlag):
    """Of a volume. On disk; do not change."""

    OPEN = 1
    """Somebody has it open."""
    NETWORK = 2
    """One of them is not on this machine."""
    WRITTEN = 4
    """What was written may not be on disk."""
    LOST = 8
    """Something that was answered is lost."""


NO_MARK: Final = Mark(0)
NO_STATE: Final = State(0)


@dataclass(frozen=True, slots=True)
class Guest:
    """A client that opens a volume: `client` in words, whether it is on another machine, and the
    digest of the export name that it says, zeroes for one that no other volume can ever have."""

    client: str
    network: bool = False
    name: bytes = bytes(16)


@dataclass(frozen=True, slots=True)
class Entry:
    """A volume's slot. `name` is a digest of the export name by which it was opened, zeroes if that
    was none that can become another volume's; `since` is when it was opened or lost, in seconds
    since 1970; `client` says who has it open, in words."""

    uuid: bytes
    marks: Mark = NO_MARK
    since: int = 0
    name: bytes = bytes(16)
    client: str = ""

    def pack(self) -> bytes:
        client = self.client.encode()[:_CLIENT_BYTES].decode(errors="ignore").encode()
        return _VOLUME.pack(self.uuid, self.marks, self.since, self.name, client)

    @classmethod
    def unpack(cls, body: bytes) -> Entry:
        uuid, marks, since, name, client = _VOLUME.unpack(body)
        return cls(uuid, Mark(marks), since, name, client.rstrip(b"\0").decode(errors="replace"))


@dataclass(frozen=True, slots=True)
class Found:
    """What was found when the file was opened; `state` is None where there was no file."""

    state: State | None = None
    generation: int = 0
    boot: Boot = NO_BOOT
    # By slot.
    entries: Mapping[int, Entry] = field(default_factory=dict)

    @property
    def died(self) -> bool:
        """Whether the last process ended without a word."""
        return self.state is not None and State.CLEAN not in self.state


def name_digest(name: str) -> bytes:
    """Return what stands for an export name in a slot."""
    return hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=16).digest()


def read(path: Path, uuid: bytes) -> Found:
    """Read the file, if there is one. Raises `DeviceError` where it cannot be read."""
    try:
        octets = poolfiles.read(path)
    except FileNotFoundError:
        return Found()
    except OSError as error:
        raise DeviceError(f"{path}: {error.strerror}", error.errno or 0) from None
    found = Found(NO_STATE)
    entries: dict[int, Entry] = {}
    for slot in range(len(octets) // SLOT_BYTES):
        at = slot * SLOT_BYTES
        body = octets[at : at + _POOL.size]
        if _CRC.pack(crc32(body, crc32(uuid))) != octets[at + _POOL.size : at + SLOT_BYTES]:
            continue
        if slot:
            entries[slot] = Entry.unpack(body)
            continue
        magic, state, generation, boot, uptime_ns = _POOL.unpack(body)
        if magic == _MAGIC:
            state = State(state)
            boot_id = boot if any(boot) else b""
            own = State.CONTAINED not in state
            found = Found(state, generation, Boot(boot_id, own, uptime_ns))
    return replace(found, entries={slot: one for slot, one in entries.items() if one.marks})


def pack_pool(state: State, generation: int, boot: Boot) -> bytes:
    """Return the body of the pool's slot."""
    return _POOL.pack(_MAGIC, state, generation, boot.id or bytes(16), boot.uptime_ns)


def packed(body: bytes, uuid: bytes) -> bytes:
    """Return a slot, from its body, of the pool with that uuid."""
    return body + _CRC.pack(crc32(body, crc32(uuid)))
