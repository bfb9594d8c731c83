"""Whether the metadata's mappings and NBD's block status say the same of every volume."""

from tests.support.client import Extent
from tests.support.pools import PoolRig
from tests.support.thin import Dumped


def blocks_of(extents: list[Extent], block: int) -> set[int]:
    """The virtual blocks that block status calls allocated, in blocks of `block` bytes."""
    found: set[int] = set()
    for extent in extents:
        if not extent.hole:
            found |= set(range(extent.offset // block, -(-extent.end // block)))
    return found


def disagreements(rig: PoolRig) -> list[str]:
    """Flushes every volume, then compares thin_dump's mappings with block status; [] if equal.

    What is not mapped is a hole that reads as zero; what is mapped is not a hole.
    """
    if not rig.running:
        return ["the pool is not running"]
    complaints = []
    listed = rig.volumes()
    extents: dict[str, list[Extent]] = {}
    for name in listed:
        with rig.connect(name) as client:
            if not client.raw.is_read_only():
                client.flush()
            extents[name] = client.extents()
    dumped: Dumped = rig.dump()
    block = dumped.data_block_sectors * 512
    for name, entry in listed.items():
        complaints += [
            f"{name}: {extent} is a hole or zero, but not both"
            for extent in extents[name]
            if extent.hole != extent.zero
        ]
        mapped = set(dumped.devices[int(entry["id"])].mappings)
        seen = blocks_of(extents[name], block)
        if mapped != seen:
            complaints.append(
                f"{name}: mapped and called holes: {sorted(mapped - seen)[:10]}, "
                f"not mapped and called data: {sorted(seen - mapped)[:10]}"
            )
    return complaints
