"""The servers that are compared, as far as they serve one image a process.

A peer keeps one volume that is fully mapped for the whole run, and hands out others in the states
that the work asks for. What a kind of server has no such state for raises `NotOfferedError`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from . import fio
from .fairness import Fairness
from .process import Server, private_memory

LEVEL_WRITES = 64  # blocks of 4 KiB written between one level of snapshots and the next

Volume = contextlib.AbstractContextManager[str]


class NotOfferedError(Exception):
    """This kind of server does not do that."""


class Peer(ABC):
    """One kind of server. `name` heads its column."""

    name: str

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        self._numbers = itertools.count()

    @abstractmethod
    def mapped(self, size: int) -> str:
        """The URI of the volume that stays, filled when it is first asked for."""

    @abstractmethod
    def empty(self, size: int) -> Volume:
        """The URI of a volume that has never been written, gone when the context ends."""

    def shared(self, size: int) -> Volume:
        """The URI of a filled volume of which a snapshot has just been made."""
        raise NotOfferedError

    def levels(self, size: int, levels: int) -> Volume:
        """The URI of what lies over so many snapshots, each with a few writes of its own."""
        raise NotOfferedError

    def fairness(self) -> Fairness:
        """Where requests to two volumes of one server are measured beside each other."""
        raise NotOfferedError

    @abstractmethod
    def processes(self) -> list[int]:
        """The servers' process ids."""

    @abstractmethod
    def memory(self) -> int:
        """Bytes of memory that the server of the mapped volume holds itself."""

    @abstractmethod
    def close(self) -> None:
        """Ends every process this peer started."""


class ImagePeer(Peer):
    """A peer that serves one image file a process."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._server: Server | None = None
        self._others: list[Server] = []

    @abstractmethod
    def make(self, image: Path, size: int) -> None: ...

    @abstractmethod
    def command(self, image: Path, socket: Path) -> list[str]: ...

    def path(self, what: str) -> Path:
        return self.directory / f"{what}{next(self._numbers)}"

    def serve(self, image: Path) -> Server:
        socket = self.path("socket")
        return Server(self.command(image, socket), socket)

    @contextlib.contextmanager
    def served(self, image: Path) -> Iterator[str]:
        server = self.serve(image)
        self._others.append(server)
        try:
            yield server.uri
        finally:
            self._others.remove(server)
            server.stop()

    def filled(self, size: int) -> Path:
        """A new image, every byte of it written."""
        image = self.path("image")
        self.make(image, size)
        with self.served(image) as uri:
            fio.fill(uri, size, self.directory)
        return image

    def mapped(self, size: int) -> str:
        if self._server is None:
            image = self.path("image")
            self.make(image, size)
            self._server = self.serve(image)
            fio.fill(self._server.uri, size, self.directory)
        return self._server.uri

    @contextlib.contextmanager
    def empty(self, size: int) -> Iterator[str]:
        image = self.path("image")
        self.make(image, size)
        try:
            with self.served(image) as uri:
                yield uri
        finally:
            image.unlink()

    def processes(self) -> list[int]:
        mapped = [self._server] if self._server is not None else []
        return [server.pid for server in mapped + self._others]

    def memory(self) -> int:
        if self._server is None:
            raise NotOfferedError
        return private_memory(self._server.pid)

    def close(self) -> None:
        if self._server is not None:
            self._server.stop()


class FilePlugin(ImagePeer):
    """nbdkit's file plugin on a sparse file: C, no thin provisioning. The ceiling."""

    name = "nbdkit file"
    threads: tuple[str, ...] = ()  # nbdkit's own choice: 16 a connection

    def make(self, image: Path, size: int) -> None:
        image.touch()
        os.truncate(image, size)

    def command(self, image: Path, socket: Path) -> list[str]:
        listen = ["--foreground", *self.threads, "--unix", str(socket)]
        return ["nbdkit", *listen, "file", str(image)]


class FileOneThread(FilePlugin):
    """The same with one thread a connection, as thinpoold has with this nbdkit."""

    name = "nbdkit file, 1 thread"
    threads = ("--threads", "1")


class PythonNoop(ImagePeer):
    """nbdkit's Python plugin with nothing behind it: the ceiling of all that is Python.

    One thread a connection, as thinpoold has with this nbdkit.
    """

    name = "nbdkit Python no-op"

    def make(self, image: Path, size: int) -> None:
        image.touch()
        os.truncate(image, size)

    def command(self, image: Path, socket: Path) -> list[str]:
        plugin = Path(__file__).with_name("noop.py")
        size = f"size={image.stat().st_size}"
        listen = ["--foreground", "--threads", "1", "--unix", str(socket)]
        return ["nbdkit", *listen, "python", str(plugin), size]


class QemuNbd(ImagePeer):
    """qemu-nbd on qcow2, no preallocation, 64 KiB clusters: what a user would take instead."""

    name = "qemu-nbd qcow2"

    def make(self, image: Path, size: int) -> None:
        qemu_img("create", "-q", "-f", "qcow2", "-o", "preallocation=off", image, size)

    def command(self, image: Path, socket: Path) -> list[str]:
        options = ["--persistent", "--shared=16", "--cache=writeback", "--discard=unmap"]
        return ["qemu-nbd", *options, "--format=qcow2", f"--socket={socket}", str(image)]


def qemu_img(*words: object) -> None:
    subprocess.run(["qemu-img", *map(str, words)], check=True, stdout=subprocess.DEVNULL)
