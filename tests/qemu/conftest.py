"""Fixtures of the tests that boot virtual machines."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.qemu.guest import Guest, make_initramfs, make_root
from tests.qemu.kernel import Kernel, cached_kernel
from tests.support.pools import PoolRig
from tests.support.tools import run

GuestMaker = Callable[..., Guest]
MIB = 1 << 20
VOLUME_SIZE = 192 * MIB

# Counts on the disk and says each number once it is durable; a bit of data goes with each.
COUNTING = """#!/bin/sh
n=0
while true; do
    n=$((n + 1))
    dd if=/dev/urandom of=/noise bs=64k count=8 2>/dev/null
    echo $n >/count.new && mv /count.new /count && sync && echo "counted $n."
done
"""


@pytest.fixture(scope="session")
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """The kernel all guests boot."""
    return cached_kernel(request.config.cache.mkdir("qemu-kernel"))


@pytest.fixture(scope="session")
def initramfs(kernel: Kernel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The initramfs all guests boot."""
    return make_initramfs(tmp_path_factory.mktemp("boot") / "initramfs", kernel)


@pytest.fixture
def system(pool: PoolRig, tmp_path: Path) -> str:
    """The name of a volume with a root file system on it."""
    image = make_root(tmp_path, VOLUME_SIZE, {"who": "the volume\n", "counting": COUNTING})
    pool.create("system", VOLUME_SIZE)
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", str(image), pool.uri("system"))
    return "system"


@pytest.fixture
def boot(pool: PoolRig, kernel: Kernel, initramfs: Path) -> Iterator[GuestMaker]:
    """`boot(volume, *options, device="")`: a guest that has booted from the volume."""
    with ExitStack() as guests:

        def start(volume: str, *options: str, device: str = "") -> Guest:
            guest = Guest(kernel, initramfs, pool.socket, volume, *options, device=device)
            return guests.enter_context(guest).boot()

        # The guests go before the pool does, even after a failure.
        yield start
