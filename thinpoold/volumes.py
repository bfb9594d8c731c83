"""Volumes as the pool remembers them: names, sizes, origins, kept beside the metadata's blocks.

What dm-thin's metadata has no room for. A record is JSON in the table `volumes` under the volume's
uuid, and is changed in the same transaction as the device it belongs to.

A record has a version. It goes up when a program that does not know what is new would do wrong with
the volume: let somebody in whom a rule keeps out, say. A record of a newer version is refused, and
the pool with it. What may be ignored is a field more of the same version.

Invariants

1. Names are unique; so are uuids and device ids. No two are given names that look the same; those
   that older programs gave stay.
2. The registry shows the open transaction; after that was abandoned, `load` shows the last commit.
3. What the last commit does not hold yet is `pending`, with the number of the change that made it:
   nobody is shown that, or let in or refused on the strength of it (`Pool.open_volume`,
   `Pool.looking`).
4. What a newer program has put into a record, and this one does not know, stays in it.
5. A record is changed only where `check_begun` has no objection: in a change that has begun.

Thread-safety: the caller holds the metadata lock.
"""

from __future__ import annotations

import dataclasses
import json
import uuid as uuids
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from thinmeta.errors import Corrupt, UnsupportedFormat
from thinpoold.errors import ContentJumped, NoSuchVolume, VolumeExists
from thinpoold.names import check_new_name, natural_key, written_alike
from thinpoold.uri import parse_stable_name, stable_name

TABLE: Final = "volumes"
# On disk; 1 is that of records without one.
VERSION: Final = 1


class Records(Protocol):
    """Where records are kept: `ThinMetadata` is one."""

    def put_record(self, table: str, key: bytes, value: bytes | None) -> None: ...

    def records(self, table: str) -> Iterator[tuple[bytes, bytes]]: ...


@dataclass(frozen=True)
class VolumeRecord:
    """One volume. `size` and `reserve` are in bytes; `origin` is the uuid it was snapshotted from;
    `created` is UTC, ISO 8601. `iops`, `bps`, `allow`: see `volume_settings`. `generation` goes up
    when the content becomes another under whoever may connect again (see `uri`). `unknown` are the
    fields that this program does not know."""

    uuid: bytes
    name: str
    dev_id: int
    size: int
    created: str
    origin: bytes | None = None
    read_only: bool = False
    reserve: int = 0
    labels: dict[str, str] = field(default_factory=dict)
    iops: int = 0
    bps: int = 0
    allow: str = ""
    generation: int = 1
    unknown: dict[str, Any] = field(default_factory=dict)

    @property
    def stable_name(self) -> str:
        """The export name that never is another volume's or content's."""
        return stable_name(self.uuid, self.generation)

    def check_generation(self, generation: int) -> None:
        """Raise `ContentJumped` unless the content is that of this generation; 0 is any."""
        if generation not in (0, self.generation):
            raise ContentJumped(
                f"the content of volume {self.name!r} has become another since generation "
                f"{generation}: it was rolled back, made smaller, or lost something, and is of "
                f"generation {self.generation} now; detach it, and attach it anew"
            )

    def jumped(self, **changes: Any) -> VolumeRecord:
        """Return the record, changed, of a volume whose content is another from now on."""
        return dataclasses.replace(self, generation=self.generation + 1, **changes)

    def pack(self) -> bytes:
        """Return the stored form, without the uuid, which is the key."""
        stored = {**self.unknown, "version": VERSION}
        stored |= {name: getattr(self, name) for name in _FIELDS}
        stored["origin"] = self.origin.hex() if self.origin is not None else None
        return json.dumps(stored, ensure_ascii=False, sort_keys=True).encode()

    @classmethod
    def unpack(cls, key: bytes, value: bytes) -> VolumeRecord:
        """Return the record stored under `key`.

        Raises `UnsupportedFormat` for one of a newer version, `Corrupt` ('record') for nonsense.
        """
        try:
            stored: dict[str, Any] = json.loads(value)
            version = stored.pop("version", 1)
            if version > VERSION:
                raise UnsupportedFormat(
                    f"volume {str(stored.get('name'))[:127]!r} is of version {version}; this "
                    f"program knows up to {VERSION}: use the one that made it"
                )
            given = {name: stored.pop(name) for name in _FIELDS & stored.keys()}
            if given.get("origin") is not None:
                given["origin"] = bytes.fromhex(given["origin"])
            return cls(**{**given, "uuid": key, "unknown": stored})
        except (ValueError, TypeError, AttributeError) as error:
            raise Corrupt("record", f"volume {key.hex()}", f"makes no sense: {error}") from None


# Those that are stored: the uuid is the key.
_FIELDS: Final = frozenset(one.name for one in dataclasses.fields(VolumeRecord)) - {
    "uuid",
    "unknown",
}


def new_record(
    name: str,
    dev_id: int,
    size: int,
    *,
    origin: bytes | None = None,
    read_only: bool = False,
    reserve: int = 0,
) -> VolumeRecord:
    """Return a record for a volume that is made now."""
    created = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return VolumeRecord(
        uuids.uuid4().bytes, name, dev_id, size, created, origin, read_only, reserve
    )


def by_name(records: Iterable[VolumeRecord]) -> list[VolumeRecord]:
    """Return records in the order in which people are shown them. Among many it takes a while."""
    return sorted(records, key=lambda record: natural_key(record.name))


class Registry:
    """All volumes of a pool, by uuid and by name."""

    def __init__(self, records: Records, check_begun: Callable[[], None] = lambda: None) -> None:
        self._records = records
        self._check_begun = check_begun
        self._by_uuid: dict[bytes, VolumeRecord] = {}
        self._by_name: dict[str, VolumeRecord] = {}
        # The names that are `written_alike`.
        self._alike: dict[str, set[str]] = {}
        # The number of the last change, and what no commit holds yet, by the change that made it.
        self.number = 0
        self._pending: dict[bytes, int] = {}
        self.load()

    def load(self) -> None:
        """Read all records again. Raises `Corrupt`, `StoreError`."""
        found = [VolumeRecord.unpack(*item) for item in self._records.records(TABLE)]
        self._by_uuid = {record.uuid: record for record in found}
        self._by_name = {record.name: record for record in found}
        self._alike = {}
        for record in found:
            self._alike.setdefault(written_alike(record.name), set()).add(record.name)
        self._pending.clear()

    def begin_change(self) -> None:
        """What is put and removed from now on is one change."""
        self.number += 1

    def mark_pending(self, key: bytes) -> None:
        """Something of the pool's records is changed."""
        self._pending[key] = self.number

    def committed(self, number: int) -> None:
        """The changes up to this one are durable."""
        self._pending = {key: one for key, one in self._pending.items() if one > number}

    def pending(self, *keys: bytes) -> int:
        """The number of the last change that no commit holds, of these or of anything; or 0."""
        if keys:
            return max(self._pending.get(key, 0) for key in keys)
        return max(self._pending.values(), default=0)

    def __len__(self) -> int:
        return len(self._by_uuid)

    def __iter__(self) -> Iterator[VolumeRecord]:
        """All records, `by_name`."""
        return iter(by_name(self.unordered()))

    def unordered(self) -> list[VolumeRecord]:
        """All records: for those who hold the lock, and sort when they have let go of it."""
        return list(self._by_uuid.values())

    def get(self, name: str) -> VolumeRecord:
        """Return the volume of that name. Raises `NoSuchVolume`."""
        record = self._by_name.get(name)
        if record is None:
            raise NoSuchVolume(f"no volume {name[:127]!r} in this pool")
        return record

    def exported(self, export: str) -> VolumeRecord:
        """Return the volume of a name or stable name. Raises `NoSuchVolume`, `ContentJumped`."""
        if "/" not in export:
            return self.get(export)
        stable = parse_stable_name(export)
        record = self._by_uuid.get(stable.uuid) if stable is not None else None
        if stable is None or record is None:
            raise NoSuchVolume(f"no volume is exported as {export[:127]!r}")
        record.check_generation(stable.generation)
        return record

    def sizes(self, block_size: int) -> dict[int, int]:
        """The virtual blocks of each volume, by its device."""
        return {record.dev_id: -(-record.size // block_size) for record in self.unordered()}

    def by_uuid(self, uuid: bytes) -> VolumeRecord | None:
        return self._by_uuid.get(uuid)

    def check_free(self, name: str, uuid: bytes = b"") -> None:
        """Raise `InvalidName` or `VolumeExists` unless a volume can be given that name.

        The volume with `uuid`, which may be called something that looks the same, or a new one.
        """
        check_new_name(name)
        if name in self._by_name:
            raise VolumeExists(f"volume {name!r} exists: choose another name, or delete it")
        for other in self._alike.get(written_alike(name), ()):
            if self._by_name[other].uuid != uuid:
                raise VolumeExists(
                    f"volume {other!a} exists, and its name looks the same as {name!a}: "
                    "choose another name"
                )

    def put(self, record: VolumeRecord) -> None:
        """Add a record, or replace the one with its uuid."""
        self._check_begun()
        old = self._by_uuid.get(record.uuid)
        if old is not None:
            self._forget_name(old.name)
        self._records.put_record(TABLE, record.uuid, record.pack())
        self._by_uuid[record.uuid] = record
        self._by_name[record.name] = record
        self._alike.setdefault(written_alike(record.name), set()).add(record.name)
        self.mark_pending(record.uuid)

    def remove(self, record: VolumeRecord) -> None:
        """Take a record out."""
        self._check_begun()
        self._records.put_record(TABLE, record.uuid, None)
        del self._by_uuid[record.uuid]
        self._forget_name(record.name)
        self.mark_pending(record.uuid)

    def _forget_name(self, name: str) -> None:
        del self._by_name[name]
        form = written_alike(name)
        self._alike[form].discard(name)
        if not self._alike[form]:
            del self._alike[form]
