"""What a pool remembers of itself: format, name, data device, settings.

One JSON record in the table `pool`, beside the metadata's blocks. Pure but for `load` and `store`,
whose caller holds the metadata lock.
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
    """

    life: int = 0
    at: int | None = None
    next_life: int | None = None
    next_at: int | None = None

    @property
    def allowed(self) -> set[int]:
        """The lives that the mark may be of."""
        return {self.life, self.life if self.next_life is None else self.next_life}


@dataclass(frozen=True)
class PoolRecord:
    """`data_path` is relative to the pool's directory if it lies there; `uuid` is 16 bytes;
    `data_known_by` and `data_mark` are what `identity.claim` returned, or `lives` has made of it.
    """

    name: str
    uuid: bytes
    data_path: str
    block_size: int
    settings: Settings = field(default_factory=Settings)
    data_known_by: dict[str, str] = field(default_factory=dict)
    data_mark: MarkState = field(default_factory=MarkState)

    def data_file(self, directory: Path) -> Path:
        """Return where the data device is, for a pool in `directory`."""
        return directory / self.data_path

    def pack(self) -> bytes:
        stored: dict[str, Any] = {
            "format": FORMAT,
            "name": self.name,
            "uuid": self.uuid.hex(),
            "data_path": self.data_path,
            "block_size": self.block_size,
            "data_known_by": self.data_known_by,
            "data_mark": dataclasses.asdict(self.data_mark),
            **self.settings.as_json(),
        }
        # ASCII: a path may be no UTF-8, and is kept as Python has it.
        return json.dumps(stored, sort_keys=True).encode()

    @classmethod
    def unpack(cls, value: bytes) -> PoolRecord:
        """Raises `UnsupportedFormat` for a newer pool, `Corrupt` ('record') for nonsense."""
        try:
            stored = json.loads(value)
            if stored["format"] > FORMAT:
                raise UnsupportedFormat(
                    f"the pool is of format {stored['format']}; this program knows up to {FORMAT}"
                )
            names = [one.name for one in dataclasses.fields(Settings)]
            given = {name: stored[name] for name in names if name in stored}
            return cls(
                stored["name"],
                bytes.fromhex(stored["uuid"]),
                stored["data_path"],
                stored["block_size"],
                Settings().changed(given),
                dict(stored.get("data_known_by", {})),
                MarkState(**stored.get("data_mark", {})),
            )
        except (ValueError, TypeError, KeyError, InvalidSetting) as error:
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
