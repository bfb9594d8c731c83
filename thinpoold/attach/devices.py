"""Block devices as /sys/block shows them, and the nbd devices among them.

    /sys/block/nbd3/pid        who connected it; there only while it is connected
    /sys/block/nbd3/size       in sectors of 512 bytes; 0 until the kernel has it all
    /sys/block/nbd3/holders/   what is built on it
    /sys/block/nbd3/nbd3p1/    its partitions

Thread-safety: nothing is kept; any thread.
"""

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from thinpoold.attach.errors import AttachFailed, AttachRefused

SYSFS = Path("/sys/block")
DEV = Path("/dev")
SECTOR = 512

_NBD = re.compile(r"nbd(0|[1-9][0-9]{0,4})")
_LOOK_AGAIN = 0.02


@dataclass(frozen=True)
class BlockDevice:
    """A whole block device, `name` below /dev."""

    name: str
    sysfs: Path = SYSFS

    @property
    def path(self) -> Path:
        return DEV / self.name

    @property
    def directory(self) -> Path:
        return self.sysfs / self.name

    @property
    def exists(self) -> bool:
        return self.directory.is_dir()

    @property
    def size(self) -> int:
        """In bytes; 0 when there is no such device."""
        return int(_read(self.directory / "size") or 0) * SECTOR

    @property
    def read_only(self) -> bool:
        return _read(self.directory / "ro") == "1"

    def partitions(self) -> list[str]:
        """The names of its partitions."""
        try:
            return sorted(one.parent.name for one in self.directory.glob(f"{self.name}*/partition"))
        except OSError:
            return []

    def numbers(self) -> set[str]:
        """Its own device number and its partitions', as MAJOR:MINOR."""
        places = [self.directory, *(self.directory / name for name in self.partitions())]
        return {number for place in places if (number := _read(place / "dev"))}

    def nodes(self) -> set[Path]:
        """Its own path and its partitions'."""
        return {self.path, *(DEV / name for name in self.partitions())}

    def holders(self) -> list[str]:
        """The devices that are built on it or on its partitions."""
        found: set[str] = set()
        for place in (self.directory, *(self.directory / name for name in self.partitions())):
            try:
                found.update(os.listdir(place / "holders"))
            except OSError:
                continue
        return sorted(found)


@dataclass(frozen=True)
class NbdDevice(BlockDevice):
    """An nbd device."""

    @property
    def index(self) -> int:
        return int(self.name.removeprefix("nbd"))

    @property
    def connector(self) -> int | None:
        """The process that connected it, which may be gone; None while it is not connected."""
        text = _read(self.directory / "pid")
        return int(text) if text else None

    def set_request_timeout(self, seconds: float) -> None:
        """Look after requests that have had no answer for so long. Raises OSError."""
        (self.directory / "queue/io_timeout").write_text(str(int(seconds * 1000)))

    def wait_for_size(self, size: int, seconds: float) -> None:
        """Wait until it is connected and `size` bytes large. Raises AttachFailed."""
        deadline = time.monotonic() + seconds
        while self.connector is None or self.size != size:
            if time.monotonic() >= deadline:
                raise AttachFailed(
                    f"{self.path} does not become {size} bytes large: the kernel says {self.size}; "
                    "see dmesg"
                )
            # The kernel tells by uevents too, but some containers do not hear them.
            time.sleep(_LOOK_AGAIN)

    def wait_until_free(self, connector: int, seconds: float) -> bool:
        """Wait until what `connector` connected is gone; whether it is."""
        deadline = time.monotonic() + seconds
        while self.connector == connector:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_LOOK_AGAIN)
        return True


def nbd_devices(sysfs: Path = SYSFS) -> list[NbdDevice]:
    """The nbd devices of this machine, in order."""
    try:
        names = [name for name in os.listdir(sysfs) if _NBD.fullmatch(name)]
    except OSError:
        return []
    return sorted((NbdDevice(name, sysfs) for name in names), key=lambda one: one.index)


def free_devices(sysfs: Path = SYSFS) -> list[NbdDevice]:
    """The devices that could be connected, best first; the last does not exist yet.

    The kernel makes a device that does not exist when it is connected.
    """
    devices = nbd_devices(sysfs)
    after = devices[-1].index + 1 if devices else 0
    return [one for one in devices if one.connector is None] + [NbdDevice(f"nbd{after}", sysfs)]


def parse_nbd_device(text: str, sysfs: Path = SYSFS) -> NbdDevice:
    """Return the nbd device that a user means: /dev/nbdN, or a link to it.

    Raises AttachRefused for anything else.
    """
    path = Path(os.path.realpath(text))
    if path.parent != DEV or not _NBD.fullmatch(path.name):
        raise AttachRefused(f"{text} is no nbd device: name one as /dev/nbd0")
    return NbdDevice(path.name, sysfs)


def _read(path: Path) -> str:
    """The text of an attribute, '' when it is not there."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
