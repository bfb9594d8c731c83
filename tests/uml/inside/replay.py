"""Jobs on a pool of the kernel's: see what it holds, change it, see again."""

from dataclasses import dataclass

from tests.uml.inside import blockdev
from tests.uml.inside.dm_thin import DmThin, PoolStatus, dm_thin
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


def replay(geometry: Geometry, devices: list[int], steps: list[Step]) -> Replayed:
    """Activates `devices` and reads them whole; does `steps`; reads again what is there then."""
    # Where only a part of a block is looked at, the rest may be anything.
    features = ("skip_block_zeroing",) if geometry.used_bytes else ()
    with dm_thin(geometry.block_sectors, *features) as pool:
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
        return Replayed(status_before, before, after, pool.status())


def _see(pool: DmThin, geometry: Geometry, devices: list[int]) -> dict[int, Seen]:
    seen = {}
    for dev_id in devices:
        path = pool.activate(dev_id, geometry.volume_sectors)
        with blockdev.opened(path) as fd:
            found = [digest(part) for part in blockdev.parts(fd, geometry.parts())]
        seen[dev_id] = Seen(pool.mapped_blocks(dev_id), found)
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
        case Write(dev_id, offset, _, _):
            with blockdev.opened(pool.activate(dev_id, geometry.volume_sectors)) as fd:
                blockdev.write(fd, offset, step.content())
        case Fill(dev_id, blocks, _):
            with blockdev.opened(pool.activate(dev_id, geometry.volume_sectors)) as fd:
                for block in blocks:
                    content = step.content(block, geometry.used)
                    blockdev.write(fd, block * geometry.block_size, content)
        case Discard(dev_id, begin, count):
            with blockdev.opened(pool.activate(dev_id, geometry.volume_sectors)) as fd:
                size = geometry.block_size
                blockdev.discard(fd, begin * size, count * size)
