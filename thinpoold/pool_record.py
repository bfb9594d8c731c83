"""What a pool remembers of itself: format, name, data device, settings.

One JSON record in the table `pool`, beside the metadata's blocks. A field more that older programs
may ignore leaves the format as it is; each keeps the fields that it does not know.

Pure but for `load` and `store`, whose caller holds the metadata lock.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from thinmeta.errors import Corrupt, UnsupportedFormat
from thinmeta.thin import ThinMetadata
from thinpoold.errors import InvalidSetting
from thinpoold.settings import Settings

TABLE: Final = "pool"
KEY: Final = b"settings"
# On disk; goes up when an older program could no longer read a pool rightly.
FORMAT: Final = 2


@dataclass(frozen=True)
class MarkState:
    """The mark that the data device has (`identity`): its life, and where on a block device it
    lies, in bytes. While that changes (`lives`), the life and the place that it has or will have.
    `unknown` are the fields that this program does not know.
    """

    life: int = 0
    at: int | None = None
    next_life: int | None = None
    next_at: int | None = None
    unknown: dict[str, Any] = field(default_factory=dict)

    @property
    def allowed(self) -> set[int]:
        """The lives that the mark may be of."""
        return {self.life, self.life if self.next_life is None else self.next_life}

    def as_json(self) -> dict[str, Any]:
        return {**self.unknown, **{name: getattr(self, name) for name in _MARK_FIELDS}}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> MarkState:
        stored = dict(stored)
        known = {name: stored.pop(name) for name in _MARK_FIELDS & stored.keys()}
        return cls(**known, unknown=stored)


_MARK_FIELDS: Final = frozenset(one.name for one in dataclasses.fields(MarkState)) - {"unknown"}


@dataclass(frozen=True)
class PoolRecord:
    """`data_path` is relative to the pool's directory if it lies there; `uuid` is 16 bytes;
    `data_known_by` and `data_mark` are what `identity.claim` returned, or `lives` has made of it.
    `unknown` are the fields that this program does not know.
    """

    name: str
    uuid: bytes
    data_path: str
    block_size: int
    settings: Settings = field(default_factory=Settings)
    data_known_by: dict[str, str] = field(default_factory=dict)
    data_mark: MarkState = field(default_factory=MarkState)
    unknown: dict[str, Any] = field(default_factory=dict)

    def data_file(self, directory: Path) -> Path:
        """Return where the data device is, for a pool in `directory`."""
        return directory / self.data_path

    def pack(self) -> bytes:
        stored: dict[str, Any] = {
            **self.unknown,
            "format": FORMAT,
            "name": self.name,
            "uuid": self.uuid.hex(),
            "data_path": self.data_path,
            "block_size": self.block_size,
            "data_known_by": self.data_known_by,
            "data_mark": self.data_mark.as_json(),
            **self.settings.as_json(),
        }
        # ASCII: a path may be no UTF-8, and is kept as Python has it.
        return json.dumps(stored, sort_keys=True).encode()

    @classmethod
    def unpack(cls, value: bytes) -> PoolRecord:
        """Raises `UnsupportedFormat` for a newer pool, `Corrupt` ('record') for nonsense."""
        try:
            stored = json.loads(value)
            found = stored.pop("format")
            if found > FORMAT:
                raise UnsupportedFormat(
                    f"the pool is of format {found}; this program knows up to {FORMAT}"
                )
            names = [one.name for one in dataclasses.fields(Settings)]
            given = {name: stored.pop(name) for name in names if name in stored}
            return cls(
                stored.pop("name"),
                bytes.fromhex(stored.pop("uuid")),
                stored.pop("data_path"),
                stored.pop("block_size"),
                Settings().changed(given),
                dict(stored.pop("data_known_by", {})),
                MarkState.from_json(stored.pop("data_mark", {})),
                stored,
            )
        except (ValueError, TypeError, KeyError, AttributeError, InvalidSetting) as error:
            raise Corrupt("record", "pool", f"makes no sense: {error!r}") from None


def load(metadata: ThinMetadata) -> PoolRecord:
    """Return the pool's record. Raises `Corrupt`, `UnsupportedFormat`, `StoreError`."""
    value = metadata.record(TABLE, KEY)
    if value is None:
        raise Corrupt("record", "pool", "is missing")
    return PoolRecord.unpack(value)


def store(metadata: ThinMetadata, record: PoolRecord) -> None:
    """Put the pool's record into the open transaction."""
    metadata.put_record(TABLE, KEY, record.pack())
