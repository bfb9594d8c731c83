"""What is done to a pool, whoever does it; and a model that knows what must come of it.

The same steps are done by the model, by thinmeta (`ours`) and by the kernel (`inside.replay`).
Content is made from seeds, so that steps are small.

Invariant: steps are possible, because whoever makes one up asks the model, which has done the ones
before.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

SECTOR = 512


@dataclass(frozen=True, slots=True)
class Create:
    """A new empty device."""

    dev_id: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A new device with the origin's content."""

    dev_id: int
    origin: int


@dataclass(frozen=True, slots=True)
class Delete:
    """A device goes."""

    dev_id: int


@dataclass(frozen=True, slots=True)
class Write:
    """`length` bytes made from `seed` at byte `offset`; multiples of 512."""

    dev_id: int
    offset: int
    length: int
    seed: int

    def content(self) -> bytes:
        return random.Random(self.seed).randbytes(self.length)


@dataclass(frozen=True, slots=True)
class Fill:
    """The used part of each of the `blocks`, in their order, is written anew."""

    dev_id: int
    blocks: list[int]
    seed: int

    def content(self, block: int, used_bytes: int) -> bytes:
        return f"{self.seed:016x}{block:016x}".encode() * (used_bytes // 32)


@dataclass(frozen=True, slots=True)
class Discard:
    """`count` whole blocks from `begin` on are unmapped."""

    dev_id: int
    begin: int
    count: int


Step = Create | Snapshot | Delete | Write | Fill | Discard


@dataclass(frozen=True, slots=True)
class Geometry:
    """Of a pool and its devices, which all have one size, such that the last block is cut short.

    Of each block the first `used_bytes` are written and compared; 0 means all of it.
    """

    block_sectors: int
    volume_blocks: int
    data_blocks: int
    odd_sectors: int = 24
    used_bytes: int = 0

    @property
    def block_size(self) -> int:
        return self.block_sectors * SECTOR

    @property
    def used(self) -> int:
        return self.used_bytes or self.block_size

    @property
    def volume_sectors(self) -> int:
        return self.volume_blocks * self.block_sectors - self.odd_sectors

    @property
    def volume_size(self) -> int:
        return self.volume_sectors * SECTOR

    @property
    def whole_blocks(self) -> int:
        """Blocks that can be discarded: not one that is cut short."""
        return self.volume_sectors // self.block_sectors

    @property
    def kernel_discards(self) -> bool:
        """Whether the kernel passes discards on to dm-thin as they were asked for.

        Its block layer splits them at multiples of the block size, and takes that for a power of
        two; of what is split in the wrong places dm-thin drops the incomplete blocks.
        """
        return self.block_sectors.bit_count() == 1

    def parts(self) -> Iterator[tuple[int, int]]:
        """What is compared of a device: a part of each block, as (byte offset, length)."""
        for offset in range(0, self.volume_size, self.block_size):
            yield offset, min(self.used, self.volume_size - offset)


@dataclass(slots=True)
class Seen:
    """A device as somebody saw it: how many blocks are mapped, and a digest of each part."""

    mapped_blocks: int
    digests: list[bytes]


def digest(data: bytes | memoryview) -> bytes:
    """The digest that `Seen` holds."""
    return hashlib.blake2b(data, digest_size=12).digest()


@dataclass(slots=True)
class Model:
    """The used part of each mapped block of each device; snapshots hold the same objects."""

    geometry: Geometry
    devices: dict[int, dict[int, bytes]] = field(default_factory=dict)
    _digests: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)

    def apply(self, step: Step) -> None:
        match step:
            case Create(dev_id):
                self.devices[dev_id] = {}
            case Snapshot(dev_id, origin):
                self.devices[dev_id] = dict(self.devices[origin])
            case Delete(dev_id):
                del self.devices[dev_id]
            case Discard(dev_id, begin, count):
                content = self.devices[dev_id]
                for block in range(begin, begin + count):
                    content.pop(block, None)
            case Write(dev_id, offset, _, _):
                content = self.devices[dev_id]
                for block, at, piece in pieces(offset, step.content(), self.geometry.block_size):
                    old = content.get(block) or bytes(self.geometry.block_size)
                    content[block] = old[:at] + piece + old[at + len(piece) :]
            case Fill(dev_id, blocks, _):
                content = self.devices[dev_id]
                for block in blocks:
                    content[block] = step.content(block, self.geometry.used)

    def expected(self) -> dict[int, Seen]:
        """What every device must look like."""
        return {dev_id: self._seen(content) for dev_id, content in self.devices.items()}

    def _seen(self, content: dict[int, bytes]) -> Seen:
        nothing = bytes(self.geometry.used)
        digests = []
        for block, (_, length) in enumerate(self.geometry.parts()):
            data = content.get(block, nothing)
            digests.append(self._digest(data) if length == len(data) else digest(data[:length]))
        return Seen(len(content), digests)

    def _digest(self, data: bytes) -> bytes:
        """What devices share is digested once."""
        known = self._digests.get(id(data))
        if known is None or known[0] is not data:
            known = self._digests[id(data)] = data, digest(data)
        return known[1]


def pieces(offset: int, data: bytes, block_size: int) -> Iterator[tuple[int, int, bytes]]:
    """A range of bytes as (block, byte within the block, piece)."""
    done = 0
    while done < len(data):
        block, at = divmod(offset + done, block_size)
        piece = data[done : done + block_size - at]
        yield block, at, piece
        done += len(piece)


def insist_same(when: str, expected: dict[int, Seen], found: dict[int, Seen]) -> None:
    """Raises AssertionError, with all the differences, unless both are the same."""
    lines = differences(expected, found)
    if lines:
        raise AssertionError("\n".join((f"{when}:", *lines)))


def differences(expected: dict[int, Seen], found: dict[int, Seen]) -> list[str]:
    """Where two views of a pool differ; an empty list when they are the same."""
    lines = []
    for dev_id in sorted(expected.keys() | found.keys()):
        want, have = expected.get(dev_id), found.get(dev_id)
        if want is None or have is None:
            lines.append(f"device {dev_id} {'is too many' if want is None else 'is missing'}")
            continue
        if want.mapped_blocks != have.mapped_blocks:
            lines.append(
                f"device {dev_id}: {have.mapped_blocks} blocks mapped, not {want.mapped_blocks}"
            )
        pairs = enumerate(zip(want.digests, have.digests, strict=True))
        wrong = [block for block, pair in pairs if pair[0] != pair[1]]
        if wrong:
            lines.append(f"device {dev_id}: wrong content in {len(wrong)} blocks: {wrong[:50]}")
    return lines


def random_steps(
    model: Model, rng: random.Random, count: int, *, discards: bool = True
) -> Iterator[Step]:
    """`count` steps of all kinds on a few devices. Each is to be applied before the next."""
    for _ in range(count):
        yield _device_step(model, rng, 9) or _content_step(model, rng, discards)


def wide_steps(model: Model, rng: random.Random, count: int) -> Iterator[Step]:
    """`count` steps that fill and empty large parts of devices, likewise."""
    for _ in range(count):
        yield _device_step(model, rng, 6) or _wide_step(model, rng)


def _device_step(model: Model, rng: random.Random, limit: int) -> Step | None:
    present = sorted(model.devices)
    roll = rng.random()
    if present and roll > 0.25:
        return None
    unused = rng.choice([n for n in rng.sample(range(1 << 24), 20) if n not in model.devices])
    if not present or (roll < 0.05 and len(present) < limit):
        return Create(unused)
    if roll < 0.18 and len(present) < limit:
        return Snapshot(unused, rng.choice(present))
    if len(present) > limit // 2:
        return Delete(rng.choice(present))
    return None


def _content_step(model: Model, rng: random.Random, discards: bool) -> Step:
    geometry = model.geometry
    dev_id = rng.choice(sorted(model.devices))
    begin = rng.randrange(geometry.whole_blocks)
    if discards and rng.random() < 0.2:
        count = min(rng.choice((1, 2, 7, 30)), geometry.whole_blocks - begin)
        return Discard(dev_id, begin, count)
    if rng.random() < 0.4:
        first = rng.randrange(geometry.volume_sectors)
        sectors = rng.randint(1, 3 * geometry.block_sectors)
    else:
        first = begin * geometry.block_sectors
        sectors = rng.choice((1, 1, 4, 16)) * geometry.block_sectors
    sectors = min(sectors, geometry.volume_sectors - first)
    return Write(dev_id, first * SECTOR, sectors * SECTOR, rng.randrange(1 << 32))


def _wide_step(model: Model, rng: random.Random) -> Step:
    geometry = model.geometry
    dev_id = rng.choice(sorted(model.devices))
    begin = rng.randrange(geometry.whole_blocks)
    if rng.random() < 0.3:
        count = min(rng.choice((3, 100, 2000, 9000)), geometry.whole_blocks - begin)
        return Discard(dev_id, begin, count)
    blocks = list(range(begin, geometry.whole_blocks, rng.choice((1, 1, 1, 2, 7))))
    blocks = blocks[: rng.choice((1, 50, 1000, 3000))]
    if rng.random() < 0.4:
        rng.shuffle(blocks)
    return Fill(dev_id, blocks, rng.randrange(1 << 32))
