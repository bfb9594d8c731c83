"""A kernel for the guests: Debian's for clouds, unpacked, not installed.

Installing a kernel package would put a boot entry on the machine that runs the tests. So the
package is fetched with apt, which checks its signature, and unpacked into pytest's cache, once a
checkout; every test and every worker uses that copy.
"""

import fcntl
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from subprocess import CalledProcessError

import pytest

from tests.support.tools import run

METAPACKAGE = "linux-image-cloud-amd64"

# What a virtio disk on PCI needs, in the order of loading. ext4 is built in.
MODULES = (
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "drivers/block/virtio_blk.ko",
)


@dataclass(frozen=True)
class Kernel:
    """An image for `qemu -kernel`, and its modules in the order of loading."""

    image: Path
    modules: tuple[Path, ...]


def cached_kernel(cache: Path) -> Kernel:
    """The kernel in `cache`, fetched when it is not there; fails the test when it cannot be."""
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        unpacked = cache / "kernel"
        if not unpacked.exists():
            shutil.rmtree(cache / "new", ignore_errors=True)
            _fetch(cache / "new")
            (cache / "new").rename(unpacked)
    (image,) = (unpacked / "boot").glob("vmlinuz-*")
    release = image.name.removeprefix("vmlinuz-")
    folder = unpacked / "lib" / "modules" / release / "kernel"
    return Kernel(image, tuple(folder / name for name in MODULES))


def _fetch(folder: Path) -> None:
    folder.mkdir()
    depends = run("apt-cache", "depends", METAPACKAGE).stdout
    found = re.search(r"Depends: (linux-image-\S+-cloud-amd64)", depends)
    if found is None:
        pytest.fail(f"apt knows no {METAPACKAGE}: apt-get update, as root, may help")
    try:
        # env -C: apt writes to the current folder. Fetched as who runs this, who can write there.
        run(
            *("env", "-C", str(folder), "apt-get", "-o", "APT::Sandbox::User=root"),
            *("download", "-qq", found[1]),
        )
    except CalledProcessError as error:
        pytest.fail(f"{found[1]} cannot be fetched (apt-get update may help): {error.stderr}")
    (package,) = folder.glob("*.deb")
    run("dpkg-deb", "-x", str(package), str(folder))
    package.unlink()
