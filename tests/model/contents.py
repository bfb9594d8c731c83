"""What every volume must hold, kept as plain bytes in memory.

Invariants:
1. `data` is exact: a byte of a volume has one right value at any time. Only a trim leaves a choice
   (old or zero); `settle` makes it when the range is next read.
2. Nothing here knows blocks, mappings or sharing: a snapshot is a copy.

Thread-safety: none; one thread.
"""

# An outcome, not always an error.
# ruff: noqa: N818

from dataclasses import dataclass, field

CHUNK = 4096


class Mismatch(AssertionError):
    """A volume holds something else than was written to it."""


@dataclass(slots=True)
class VolumeModel:
    """The bytes of one volume."""

    name: str
    data: bytearray = field(repr=False)

    @property
    def size(self) -> int:
        return len(self.data)

    def write(self, offset: int, data: bytes) -> None:
        assert offset + len(data) <= self.size
        self.data[offset : offset + len(data)] = data

    def zero(self, offset: int, count: int) -> None:
        self.write(offset, bytes(count))

    def resize(self, size: int) -> None:
        """What is cut off is gone for good; what is added is zero."""
        if size <= self.size:
            del self.data[size:]
        else:
            self.data.extend(bytes(size - self.size))

    def compare(self, offset: int, got: bytes) -> None:
        """Raises Mismatch, naming the first differing byte and the run of differing bytes."""
        expected = self.data[offset : offset + len(got)]
        if expected == got:
            return
        assert len(expected) == len(got)
        differing = [at for at in range(len(got)) if expected[at] != got[at]]
        first, last = differing[0], differing[-1]
        raise Mismatch(
            f"{self.name}: {len(differing)} bytes differ in [{offset + first}, {offset + last}]: "
            f"expected {bytes(expected[first : first + 16]).hex()}, "
            f"got {got[first : first + 16].hex()} at {offset + first}"
        )

    def settle(self, offset: int, got: bytes) -> None:
        """Takes what a trimmed range now reads as: each byte old or zero, else Mismatch."""
        old = self.data[offset : offset + len(got)]
        if old == got:
            return
        for at in range(0, len(got), CHUNK):
            piece, before = got[at : at + CHUNK], old[at : at + CHUNK]
            if piece == before or not any(piece):
                continue
            for index, (new, was) in enumerate(zip(piece, before, strict=True)):
                if new not in (was, 0):
                    raise Mismatch(
                        f"{self.name}: byte {offset + at + index} is neither old nor zero "
                        f"after a trim: was {was:#04x}, is {new:#04x}"
                    )
        self.data[offset : offset + len(got)] = got


class PoolModel:
    """All volumes of a pool."""

    def __init__(self) -> None:
        self.volumes: dict[str, VolumeModel] = {}

    def create(self, name: str, size: int) -> VolumeModel:
        assert name not in self.volumes
        volume = self.volumes[name] = VolumeModel(name, bytearray(size))
        return volume

    def snapshot(self, origin: str, name: str) -> VolumeModel:
        assert name not in self.volumes
        copy = VolumeModel(name, bytearray(self.volumes[origin].data))
        self.volumes[name] = copy
        return copy

    def rename(self, old: str, new: str) -> None:
        volume = self.volumes.pop(old)
        volume.name = new
        self.volumes[new] = volume

    def rollback(self, name: str, snap: str) -> None:
        self.volumes[name].data[:] = self.volumes[snap].data
