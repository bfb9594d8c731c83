"""A virtual machine whose root file system is on a thin volume, spoken to over its serial console.

The kernel and an initramfs are given to QEMU; the initramfs loads the disk's driver, mounts
/dev/vda and goes over to it. From there on all is read from the volume: busybox, and an init that
runs each line of the console as a command.

Invariants:
1. Nothing waits for a time: every wait is for a mark on the console, or for QEMU's end.
2. The emulator is gone when the `with` block ends.

Thread-safety: one thread per guest. Guests are independent of each other.
"""

import itertools
import os
import re
import select
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.qemu.kernel import Kernel
from tests.support.tools import PATIENCE, program, run

EARLY_INIT = """#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev
for module in /modules/*; do $b insmod "$module"; done
$b mount -t ext4 /dev/vda /root && exec $b switch_root /root /sbin/init
echo "no root file system on /dev/vda"
$b poweroff -f
"""

# -echo: an echoed command would look like an answer. A failed command must not end init.
INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty -echo
echo "init is ready"
while read -r line; do eval "$line"; done
"""


def _busybox() -> bytes:
    """Debian's busybox-static, which needs nothing else in the guest."""
    return Path(program("busybox")).read_bytes()


def make_initramfs(path: Path, kernel: Kernel) -> Path:
    """Writes the initramfs of all guests."""
    files = {"init": EARLY_INIT.encode(), "bin/busybox": _busybox()}
    for order, module in enumerate(kernel.modules):
        files[f"modules/{order:02}-{module.name}"] = module.read_bytes()
    with path.open("wb") as out:
        for folder in ("bin", "dev", "modules", "root"):
            out.write(_cpio(folder, b"", 0o040755))
        for name, content in files.items():
            out.write(_cpio(name, content, 0o100755))
        out.write(_cpio("TRAILER!!!", b"", 0))
    return path


_inodes = itertools.count(1)


def _cpio(name: str, content: bytes, mode: int) -> bytes:
    """One member of an archive in cpio's "newc" format, the kernel's for an initramfs."""
    numbers = (next(_inodes), mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    header = b"070701" + b"".join(b"%08x" % number for number in numbers)
    named = header + name.encode() + b"\0"
    return named + bytes(-len(named) % 4) + content + bytes(-len(content) % 4)


def make_root(folder: Path, size: int, files: dict[str, str]) -> Path:
    """An ext4 image of `size` bytes with busybox, our init and `files` (path: content)."""
    tree = folder / "root"
    for name in ("bin", "sbin", "dev", "proc", "sys"):
        (tree / name).mkdir(parents=True)
    (tree / "bin" / "busybox").write_bytes(_busybox())
    (tree / "bin" / "busybox").chmod(0o755)
    for name, content in {"sbin/init": INIT, **files}.items():
        (tree / name).write_text(content)
        (tree / name).chmod(0o755)
    image = folder / "root.img"
    with image.open("wb") as out:
        out.truncate(size)
    # Not lazy: the guest's kernel would write the rest of the tables whenever it likes.
    extended = "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0"
    run("mkfs.ext4", "-q", "-E", extended, "-d", str(tree), str(image))
    return image


class Guest:
    """One running virtual machine."""

    def __init__(
        self,
        kernel: Kernel,
        initramfs: Path,
        socket: str,
        export: str,
        *options: str,
        device: str = "",
    ) -> None:
        """Starts it; `options` are further ones of the NBD block device: `reconnect-delay=60`.

        `device` has further ones of the guest's device: `discard_granularity=65536`.
        """
        disk = ",".join(
            (
                "driver=nbd,node-name=disk,discard=unmap,detect-zeroes=unmap",
                f"server.type=unix,server.path={socket},export={export}",
                *options,
            )
        )
        command: Sequence[str] = (
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-accel", "tcg", "-cpu", "max", "-m", "256"),
            *("-kernel", str(kernel.image), "-initrd", str(initramfs)),
            *("-append", "console=ttyS0 quiet panic=-1"),
            *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
            *("-blockdev", disk),
            *("-device", ",".join(["virtio-blk-pci,drive=disk", *filter(None, [device])])),
        )
        self._log = b""
        self._seen = 0
        self._marks = itertools.count(1)
        self._process = subprocess.Popen(
            [program("qemu-system-x86_64"), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()

    @property
    def console(self) -> str:
        """All that came over the console so far."""
        return self._log.decode(errors="replace").replace("\r", "")

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Reads the console, from where the last wait ended, until `pattern` is on it.

        Raises AssertionError, with the console, when QEMU ends or patience does.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            found = re.search(pattern.encode(), self._log[self._seen :])
            if found is not None:
                self._seen += found.end()
                text = re.search(pattern, found[0].decode(errors="replace"))
                assert text is not None
                return text
            self._read(deadline, pattern)

    def _read(self, deadline: float, awaited: str) -> None:
        assert self._process.stdout is not None
        stream = self._process.stdout.fileno()
        left = max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select([stream], [], [], left)
        assert ready, f"no {awaited!r} in {PATIENCE:.0f} s:\n{self.console}"
        data = os.read(stream, 65536)
        assert data, f"QEMU ended before {awaited!r}:\n{self.console}"
        self._log += data

    def boot(self) -> Self:
        """Waits until init, read from the volume, takes commands."""
        self.wait_for("init is ready")
        return self

    def send(self, command: str) -> str:
        """Has the guest begin a command; returns the pattern of its end, for `wait_for`."""
        mark = f"end-{next(self._marks)}"
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}; echo {mark}:$?:\n".encode())
        return rf"{mark}:(\d+):"

    def run(self, command: str) -> str:
        """Runs a command, which must succeed; what it printed, stripped."""
        begin = self._seen
        ended = self.wait_for(self.send(command))
        text = self._log[begin : self._seen].decode(errors="replace").replace("\r", "")
        assert ended[1] == "0", f"{command}: exit status {ended[1]}: {text}"
        return text.removesuffix(ended[0]).strip()

    def power_off(self) -> None:
        """Leaves the root file system clean, switches off, and waits until QEMU has ended."""
        self.run("sync && mount -o remount,ro /")
        assert self._process.stdin is not None
        self._process.stdin.write(b"poweroff -f\n")
        self._process.wait(PATIENCE)
