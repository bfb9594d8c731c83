"""Pools move both ways: what thinmeta made the kernel's dm-thin uses, and the other way.

Steps are done in turns by thinmeta and by the kernel. Whoever comes next reads everything, and
thin_check, the kernel's log and thinmeta's check must be silent. Random steps: `--seed` repeats
them.
"""

import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.uml.shuttle import Shuttle
from tests.uml.steps import (
    Create,
    Delete,
    Discard,
    Fill,
    Geometry,
    Snapshot,
    Step,
    random_steps,
    wide_steps,
)

pytestmark = pytest.mark.slow

GEOMETRIES = [
    pytest.param(Geometry(block_sectors=128, volume_blocks=120, data_blocks=2400), id="64K"),
    pytest.param(Geometry(block_sectors=384, volume_blocks=50, data_blocks=1000), id="192K"),
]
# Of each block the first sector only is used. The data space map has several bitmaps.
WIDE = Geometry(128, volume_blocks=20_000, data_blocks=40_000, odd_sectors=0, used_bytes=512)
DEEP = Geometry(128, volume_blocks=70_000, data_blocks=90_000, odd_sectors=0, used_bytes=512)

BOTH = pytest.mark.parametrize("kernel_first", [False, True], ids=["ours", "theirs"])


def take_turns(pool: Shuttle, turns: Iterable[Iterable[Step]], *, kernel_first: bool) -> None:
    """The first turn makes the pool; all of them are done by the two in turns."""
    if kernel_first:
        pool.start_there()
    else:
        pool.start_here()
    kernels = kernel_first
    for turn in turns:
        if kernels:
            pool.kernel_turn(turn)
        else:
            pool.our_turn(turn)
        kernels = not kernels


@BOTH
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_all_kinds_of_steps(
    tmp_path: Path, seed: int, geometry: Geometry, kernel_first: bool
) -> None:
    rng = random.Random(seed)
    pool = Shuttle(tmp_path, geometry)
    discards = geometry.kernel_discards
    turns = (random_steps(pool.model, rng, count, discards=discards) for count in (150, 120, 80, 0))
    take_turns(pool, turns, kernel_first=kernel_first)


@BOTH
def test_large_stretches(tmp_path: Path, seed: int, kernel_first: bool) -> None:
    rng = random.Random(seed)
    pool = Shuttle(tmp_path, WIDE)
    turns = (wide_steps(pool.model, rng, count) for count in (40, 15, 20, 0))
    take_turns(pool, turns, kernel_first=kernel_first)


@BOTH
def test_trees_of_three_levels(tmp_path: Path, seed: int, kernel_first: bool) -> None:
    rng = random.Random(seed)
    blocks = list(range(DEEP.volume_blocks))
    scattered = rng.sample(blocks, 40_000)
    turns: list[list[Step]] = [
        [
            Create(1),
            Fill(1, scattered, 1),
            Fill(1, sorted(set(blocks) - set(scattered)), 2),
            Snapshot(2, 1),
        ],
        [
            Fill(1, rng.sample(blocks, 500), 3),
            Snapshot(3, 2),
            Discard(1, 300, 45_000),
            *(Discard(1, begin, 5) for begin in range(46_000, 60_000, 100)),
            Fill(2, rng.sample(blocks, 300), 4),
        ],
        [
            Discard(3, 10_000, 55_000),
            Fill(3, rng.sample(blocks, 1000), 5),
            Delete(2),
            Snapshot(4, 3),
            Fill(1, blocks[5000:9000], 6),
        ],
        [Discard(4, 0, 69_000), Delete(3), Fill(4, blocks[:1000], 7)],
    ]
    take_turns(Shuttle(tmp_path, DEEP), turns, kernel_first=kernel_first)
