"""Jobs on a pool of the kernel's: see what it holds, change it, see again."""

from collections.abc import Sequence
from dataclasses import dataclass

from tests.uml.inside import blockdev
from tests.uml.inside.dm_thin import DmThin, PoolStatus, dm_thin, thin_path
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
)


@dataclass(frozen=True, slots=True)
class Replayed:
    """A pool before the steps and after them."""

    status_before: PoolStatus
    before: dict[int, Seen]
    after: dict[int, Seen]
    status_after: PoolStatus


def replay(
    geometry: Geometry,
    devices: list[int],
    steps: list[Step],
    messages: Sequence[str] = (),
) -> Replayed:
    """Activates `devices` and reads them whole; does `steps`; reads again what is there then.

    Last of all it sends `messages` to the pool.
    """
    with dm_thin(geometry.block_sectors, *_features(geometry)) as pool:
        status_before = pool.status()
        before = _see(pool, geometry, devices)
        present = set(devices)
        for step in steps:
            _do(pool, geometry, step)
            if isinstance(step, Create | Snapshot):
                present.add(step.dev_id)
            elif isinstance(step, Delete):
                present.discard(step.dev_id)
        # Inactive devices have nothing cached, and a pool without them has committed.
        pool.deactivate_all()
        after = _see(pool, geometry, sorted(present))
        for message in messages:
            pool.message(*message.split())
        return Replayed(status_before, before, after, pool.status())


def fill_up(geometry: Geometry, step: Fill) -> tuple[PoolStatus, Seen]:
    """Does the step as far as the pool lets it; returns how pool and device look then."""
    with dm_thin(geometry.block_sectors, *_features(geometry)) as pool:
        try:
            _do(pool, geometry, step)
        except OSError:
            pass
        pool.deactivate_all()
        seen = _see(pool, geometry, [step.dev_id])
        return pool.status(), seen[step.dev_id]


def _features(geometry: Geometry) -> list[str]:
    # A pool that is full fails the step, rather than wait for somebody to make room.
    features = ["error_if_no_space"]
    # Where only a part of a block is looked at, the rest may be anything.
    return [*features, "skip_block_zeroing"] if geometry.used_bytes else features


def _see(pool: DmThin, geometry: Geometry, devices: list[int]) -> dict[int, Seen]:
    pool.activate(geometry.volume_sectors, *devices)
    mapped = pool.mapped_blocks()
    seen = {}
    for dev_id in devices:
        with blockdev.opened(thin_path(dev_id)) as fd:
            found = [digest(part) for part in blockdev.parts(fd, geometry.parts())]
        seen[dev_id] = Seen(mapped[dev_id], found)
    return seen


def _do(pool: DmThin, geometry: Geometry, step: Step) -> None:
    match step:
        case Create(dev_id):
            pool.message("create_thin", dev_id)
        case Snapshot(dev_id, origin):
            pool.create_snapshot(dev_id, origin)
        case Delete(dev_id):
            pool.deactivate(dev_id)
            pool.message("delete", dev_id)
        case _:
            pool.activate(geometry.volume_sectors, step.dev_id)
            with blockdev.opened(thin_path(step.dev_id)) as fd:
                _do_content(fd, geometry, step)


def _do_content(fd: int, geometry: Geometry, step: Write | Fill | Discard) -> None:
    size = geometry.block_size
    match step:
        case Write(_, offset):
            blockdev.write(fd, offset, step.content())
        case Fill(_, blocks):
            for block in blocks:
                blockdev.write(fd, block * size, step.content(block, geometry.used))
        case Discard(_, begin, count):
            blockdev.discard(fd, begin * size, count * size)
