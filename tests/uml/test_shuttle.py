"""The shuttle is loud when a pool is not what it should be."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.uml.machine import JobFailed
from tests.uml.shuttle import Shuttle
from tests.uml.steps import Create, Geometry, Write

pytestmark = pytest.mark.slow

SMALL = Geometry(block_sectors=128, volume_blocks=4, data_blocks=16)


def spoil_data(pool: Shuttle) -> None:
    """One bit of the first data block, which is the only one in use."""
    with pool.data_image.open("r+b") as data:
        byte = data.read(1)[0]
        data.seek(0)
        data.write(bytes([byte ^ 1]))


def spoil_metadata(pool: Shuttle) -> None:
    """The superblock's time, which its checksum covers."""
    with pool.metadata_image.open("r+b") as image:
        image.seek(44)
        image.write(b"\x07")


def forget_a_write(pool: Shuttle) -> None:
    """The model knows of one block more."""
    pool.model.apply(Write(1, 2 * 65536, 512, 9))


@pytest.mark.parametrize(
    ("spoil", "failure", "words"),
    [
        (spoil_data, AssertionError, r"device 1: wrong content in 1 blocks: \[0\]"),
        (spoil_metadata, JobFailed, r"kernel: device-mapper: .*sb_check failed"),
        (forget_a_write, AssertionError, "device 1: 1 blocks mapped, not 2"),
    ],
)
def test_the_kernel_notices(
    tmp_path: Path, spoil: Callable[[Shuttle], None], failure: type[Exception], words: str
) -> None:
    pool = Shuttle(tmp_path, SMALL)
    pool.start_here()
    pool.our_turn([Create(1), Write(1, 0, 65536, 8)])
    spoil(pool)
    with pytest.raises(failure, match=words):
        pool.kernel_turn([])
