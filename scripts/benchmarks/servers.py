"""The servers that are compared: each on a Unix socket of its own, each ended by its process id.

A peer keeps one volume that is fully mapped for the whole run, and hands out empty ones.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

START_TIMEOUT = 30.0  # seconds


class Server:
    """A child process that listens on a Unix socket."""

    def __init__(self, command: list[str], path: Path) -> None:
        path.unlink(missing_ok=True)
        self.uri = f"nbd+unix:///?socket={path}"
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        try:
            self._await(path)
        except BaseException:
            self.stop()
            raise

    def _await(self, path: Path) -> None:
        # A whole handshake: to a client that only connects and goes the servers would object.
        probe = ["nbdinfo", "--size", self.uri]
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline and self._process.poll() is None:
            if path.exists():
                answer = subprocess.run(probe, check=False, capture_output=True)
                if answer.returncode == 0:
                    return
            time.sleep(0.01)
        raise RuntimeError(f"{self._process.args!r} did not start")

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(START_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Peer(ABC):
    """One kind of server. `name` heads its column."""

    name: str

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        self._numbers = itertools.count()

    @abstractmethod
    def mapped(self, size: int) -> str:
        """The URI of the volume that stays; the caller fills it."""

    @abstractmethod
    def empty(self, size: int) -> contextlib.AbstractContextManager[str]:
        """The URI of a volume that has never been written, gone when the context ends."""

    @abstractmethod
    def memory(self) -> int:
        """Bytes of memory that the server of the mapped volume holds itself."""

    @abstractmethod
    def close(self) -> None:
        """Ends every process this peer started."""


class ImagePeer(Peer):
    """A peer that serves one image file a process."""

    _server: Server | None = None

    @abstractmethod
    def _make(self, image: Path, size: int) -> None: ...

    @abstractmethod
    def _command(self, image: Path, path: Path) -> list[str]: ...

    def _serve(self, size: int) -> tuple[Server, Path]:
        number = next(self._numbers)
        image = self.directory / f"image{number}"
        self._make(image, size)
        path = self.directory / f"socket{number}"
        return Server(self._command(image, path), path), image

    def mapped(self, size: int) -> str:
        self._server, _ = self._serve(size)
        return self._server.uri

    @contextlib.contextmanager
    def empty(self, size: int) -> Iterator[str]:
        server, image = self._serve(size)
        try:
            yield server.uri
        finally:
            server.stop()
            image.unlink()

    def memory(self) -> int:
        assert self._server is not None
        return private_memory(self._server.pid)

    def close(self) -> None:
        if self._server is not None:
            self._server.stop()


class FilePlugin(ImagePeer):
    """nbdkit's file plugin on a sparse file: C, no thin provisioning. The ceiling."""

    name = "nbdkit file"

    def _make(self, image: Path, size: int) -> None:
        image.touch()
        os.truncate(image, size)

    def _command(self, image: Path, path: Path) -> list[str]:
        return ["nbdkit", "--foreground", "--unix", str(path), "file", str(image)]


class QemuNbd(ImagePeer):
    """qemu-nbd on qcow2, no preallocation, 64 KiB clusters: what a user would take instead."""

    name = "qemu-nbd qcow2"

    def _make(self, image: Path, size: int) -> None:
        create = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=off"]
        subprocess.run([*create, str(image), str(size)], check=True)

    def _command(self, image: Path, path: Path) -> list[str]:
        options = ["--persistent", "--shared=16", "--cache=writeback", "--discard=unmap"]
        return ["qemu-nbd", *options, "--format=qcow2", f"--socket={path}", str(image)]


class Thinpoold(Peer):
    """Ours: one pool, with the default 64 KiB blocks, and a volume for each thing asked."""

    name = "thinpoold"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._pool = directory / "pool"
        self._thinpool("init", str(self._pool), "--size", "1T")
        self._thinpool("start", str(self._pool))

    def _thinpool(self, *words: str) -> str:
        done = subprocess.run(
            ["thinpool", *words],
            env=os.environ | {"THINPOOL_POOL": str(self._pool)},
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        return done.stdout

    def _create(self, size: int) -> tuple[str, str]:
        name = f"volume{next(self._numbers)}"
        self._thinpool("create", name, str(size))
        return name, self._thinpool("uri", name).strip()

    def status(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(self._thinpool("status", "--json"))
        return facts

    def mapped(self, size: int) -> str:
        return self._create(size)[1]

    @contextlib.contextmanager
    def empty(self, size: int) -> Iterator[str]:
        name, uri = self._create(size)
        try:
            yield uri
        finally:
            self._thinpool("delete", name)

    def memory(self) -> int:
        return private_memory(int(self.status()["pid"]))

    def close(self) -> None:
        self._thinpool("stop")


def private_memory(pid: int) -> int:
    """Bytes that would be free without this process: not what it shares, nor the page cache."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    fields = dict(line.split(":", 1) for line in text.splitlines()[1:])
    return sum(int(fields[key].split()[0]) << 10 for key in ("Private_Clean", "Private_Dirty"))
