"""qcow2's two ways to keep an older state: snapshots inside the image, images laid over it."""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path

from .peers import LEVEL_WRITES, QemuNbd, qemu_img


class Snapshotting(QemuNbd):
    """qemu-nbd on images that have older states; each is served only while it is worked on."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._base: Path | None = None
        self._levels: dict[int, Path] = {}

    def base(self, size: int) -> Path:
        """A filled image, made when it is first asked for."""
        if self._base is None:
            self._base = self.filled(size)
        return self._base

    @contextlib.contextmanager
    def levels(self, size: int, levels: int) -> Iterator[str]:
        if levels not in self._levels:
            image = self.path("levels")
            # Both ways of keeping states write to the image itself: a copy for each depth.
            shutil.copyfile(self.base(size), image)
            for level in range(levels):
                image = self.next_level(image, level)
                scatter(image, size, level)
            self._levels[levels] = image
        with self.served(self._levels[levels]) as uri:
            yield uri

    @abstractmethod
    def next_level(self, image: Path, level: int) -> Path:
        """Keeps the state of `image`, and returns the image that goes on from it."""


class InternalSnapshots(Snapshotting):
    name = "qcow2, internal snapshot"

    @contextlib.contextmanager
    def shared(self, size: int) -> Iterator[str]:
        base = self.base(size)
        qemu_img("snapshot", "-c", "before", base)
        try:
            with self.served(base) as uri:
                yield uri
        finally:
            qemu_img("snapshot", "-d", "before", base)

    def next_level(self, image: Path, level: int) -> Path:
        qemu_img("snapshot", "-c", f"level{level}", image)
        return image


class Overlays(Snapshotting):
    name = "qcow2, overlay"

    @contextlib.contextmanager
    def shared(self, size: int) -> Iterator[str]:
        overlay = self.next_level(self.base(size), 0)
        try:
            with self.served(overlay) as uri:
                yield uri
        finally:
            overlay.unlink()

    def next_level(self, image: Path, level: int) -> Path:
        overlay = self.path("overlay")
        qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", image, overlay)
        return overlay


def scatter(image: Path, size: int, seed: int) -> None:
    """Writes LEVEL_WRITES blocks of 4 KiB at random places of an image that nobody serves."""
    chance = random.Random(seed)
    words: list[str] = []
    for _ in range(LEVEL_WRITES):
        words += ["-c", f"write -q {chance.randrange(size // 4096) * 4096} 4096"]
    subprocess.run(["qemu-io", "-f", "qcow2", *words, str(image)], check=True)
