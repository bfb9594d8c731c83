"""A pool of thinmeta's: the metadata library over a data file, with the least of a data path.

It does the steps one after the other, with one commit where it is told to. It is not the daemon:
what is tested with it is that thinmeta and the kernel mean the same by the same blocks.
"""

import os
from pathlib import Path

from tests.uml.steps import (
    Create,
    Delete,
    Discard,
    Fill,
    Geometry,
    Seen,
    Snapshot,
    Step,
    Write,
    digest,
    pieces,
)
from thinmeta.errors import NoDataSpace
from thinmeta.store.protocol import BlockStore
from thinmeta.thin import ThinMetadata


class OurPool:
    """`metadata` over the data file at `data`."""

    def __init__(self, geometry: Geometry, metadata: ThinMetadata, data: Path) -> None:
        self.geometry = geometry
        self.metadata = metadata
        self._data = os.open(data, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.truncate(self._data, max(os.fstat(self._data).st_size, self._data_size))

    @classmethod
    def create(cls, geometry: Geometry, store: BlockStore, data: Path) -> "OurPool":
        metadata = ThinMetadata.create(
            store,
            data_block_sectors=geometry.block_sectors,
            data_blocks=geometry.data_blocks,
        )
        return cls(geometry, metadata, data)

    @classmethod
    def open(cls, geometry: Geometry, store: BlockStore, data: Path) -> "OurPool":
        return cls(geometry, ThinMetadata.open(store), data)

    @property
    def _data_size(self) -> int:
        return self.metadata.data_blocks * self.geometry.block_size

    def close(self) -> None:
        """Commits."""
        self.metadata.commit()
        self.metadata.close()
        os.close(self._data)

    def do(self, steps: list[Step], *, commit_every: int = 7) -> None:
        """Carries out the steps, several to a transaction."""
        for number, step in enumerate(steps, 1):
            self._do(step)
            if number % commit_every == 0:
                self.metadata.commit()
        self.metadata.commit()

    def _do(self, step: Step) -> None:
        match step:
            case Create(dev_id):
                self.metadata.create_thin(dev_id)
            case Snapshot(dev_id, origin):
                self.metadata.create_snapshot(dev_id, origin)
            case Delete(dev_id):
                self.metadata.delete_device(dev_id)
            case Discard(dev_id, begin, count):
                self.metadata.remove(dev_id, begin, begin + count)
            case Write(dev_id, offset, _, _):
                for block, at, piece in pieces(offset, step.content(), self.geometry.block_size):
                    self._write(dev_id, block, at, piece)
            case Fill(dev_id):
                self._fill(dev_id, step)

    def _write(self, dev_id: int, block: int, at: int, piece: bytes) -> None:
        size = self.geometry.block_size
        mapping = self.metadata.lookup(dev_id, block)
        if mapping is not None and not mapping.shared:
            os.pwrite(self._data, piece, mapping.data_block * size + at)
            return
        old = bytes(size)
        if mapping is not None:
            old = os.pread(self._data, size, mapping.data_block * size)
        new, _ = self._reserve(1)
        os.pwrite(self._data, old[:at] + piece + old[at + len(piece) :], new * size)
        self.metadata.insert(dev_id, block, new)

    def _fill(self, dev_id: int, step: Fill) -> None:
        """Whole blocks anew, in runs where they are in sequence: nothing of the old is kept."""
        waiting = list(step.blocks)
        while waiting:
            block = waiting[0]
            wanted = next(
                (n for n, other in enumerate(waiting) if other != block + n), len(waiting)
            )
            new, count = self._reserve(wanted)
            for n in range(count):
                content = step.content(block + n, self.geometry.used)
                os.pwrite(self._data, content, (new + n) * self.geometry.block_size)
            self.metadata.insert(dev_id, block, new, count)
            del waiting[:count]

    def _reserve(self, count: int) -> tuple[int, int]:
        try:
            return self.metadata.reserve(count)
        except NoDataSpace:
            if not self.metadata.data_freed:
                raise
            self.metadata.commit()
            return self.metadata.reserve(count)

    def see(self) -> dict[int, Seen]:
        """Every device, read whole through its mappings."""
        return {dev_id: self._see(dev_id) for dev_id in self.metadata.device_ids()}

    def _see(self, dev_id: int) -> Seen:
        size = self.geometry.block_size
        places = [-1] * self.geometry.volume_blocks
        for run in self.metadata.runs(dev_id, 0, 1 << 64):
            for step in range(run.length):
                places[run.begin + step] = (run.data_begin + step) * size
        found = []
        for place, (_, length) in zip(places, self.geometry.parts(), strict=True):
            data = bytes(length) if place < 0 else os.pread(self._data, length, place)
            found.append(digest(data))
        return Seen(self.metadata.details(dev_id).mapped_blocks, found)
