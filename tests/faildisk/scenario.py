"""Clients of a pool on a disk that fails, and what they may be told.

The promise: a client that lost something it was answered is not told by a flush that all is well
before it was told of the loss. Told is a client when a request or a flush of its failed, or when it
was not let in.

Thread-safety: one thread.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

from tests.faildisk.disk import Disk
from tests.support.client import NbdClient, NbdError
from tests.support.pools import PoolRig, Refused

BLOCK = 65536
BLOCKS = 64


class Broken(AssertionError):  # noqa: N818 - a promise, not a mistake
    """The promise was not kept."""


class Guest:
    """A client with a volume: what it was answered, and whether it was told of a loss since."""

    def __init__(self, rig: PoolRig, number: int) -> None:
        self.rig, self.number = rig, number
        self.name = f"v{number}"
        self.client: NbdClient | None = None
        # What each block was answered to hold last; None: it was told, and cannot know.
        self.blocks: list[int | None] = [0] * BLOCKS
        self._written = 0
        self.told = self.vouched = 0

    def write(self, first: int, count: int = 1) -> None:
        """Write blocks; what fails, it was told of."""
        self._written += 1
        data = b"".join(self._stamp(self._written) for _ in range(count))
        client = self._connected()
        if client is None:
            return
        try:
            client.write(first * BLOCK, data)
        except NbdError:
            self._is_told()
        else:
            self.blocks[first : first + count] = [self._written] * count

    def flush(self) -> bool:
        """Flush; whether it was told that all is well."""
        client = self._connected()
        if client is None:
            return False
        try:
            client.flush()
        except NbdError:
            self._is_told()
            return False
        self.vouched += 1
        return True

    def hang_up(self) -> None:
        """Lose the connection, as a client does whose daemon dies: it is told nothing by that."""
        if self.client is not None:
            self.client.close()
        self.client = None

    def verify(self) -> None:
        """Compare all that it knows, after a flush said that all is well. Raises `Broken`."""
        client = self._connected()
        if client is None:
            return
        for block, expected in enumerate(self.blocks):
            try:
                octets = client.read(block * BLOCK, BLOCK)
            except NbdError:
                self._is_told()
                return
            found = self._number(octets, block)
            if expected is not None and found != expected:
                raise Broken(
                    f"{self.name}, block {block}: holds {found}, was answered {expected}, and a "
                    "flush said that all is well"
                )
            self.blocks[block] = found

    def _connected(self) -> NbdClient | None:
        """The connection; None when it is not let in, of which it is told thereby."""
        if self.client is None and self.rig.running:
            try:
                self.client = self.rig.connect(self.name)
            except NbdError:
                self._is_told()
                self._accept()
        return self.client

    def _accept(self) -> None:
        """The administrator accepts what is lost, having told whoever uses the volume."""
        try:
            self.rig.cli("accept-loss", self.name)
            self.client = self.rig.connect(self.name)
        except (Refused, NbdError):
            self.client = None

    def _is_told(self) -> None:
        self.told += 1
        self.blocks = [None] * BLOCKS

    def _stamp(self, number: int) -> bytes:
        return (self.number.to_bytes(2, "big") + number.to_bytes(6, "big")) * (BLOCK // 8)

    def _number(self, octets: bytes, block: int) -> int:
        """Which write of its own a block holds, the last where it holds several; 0 for none."""
        pieces = {octets[at : at + 8] for at in range(0, BLOCK, 8)}
        numbers = []
        for piece in pieces:
            if piece == bytes(8):
                numbers.append(0)
                continue
            if int.from_bytes(piece[:2], "big") != self.number:
                raise Broken(f"{self.name}, block {block}: shows another's bytes, {piece.hex()}")
            numbers.append(int.from_bytes(piece[2:], "big"))
        return numbers[0] if len(numbers) == 1 else -1


class Scenario:
    """A pool with guests, on a disk; `forget` drops the page cache of what is on it."""

    def __init__(
        self, rig: PoolRig, disk: Disk, forget: Callable[[], None], guests: int = 2
    ) -> None:
        self.rig, self.disk, self._forget = rig, disk, forget
        self.guests = [Guest(rig, number + 1) for number in range(guests)]

    def prepare(self, size: str, data: str, *, cache: str) -> None:
        """Make the pool and its volumes, all flushed."""
        self.rig.init(size, data=data, force=True, cache=cache)
        self.rig.start()
        for guest in self.guests:
            self.rig.create(guest.name, BLOCKS * BLOCK)
            guest.write(0, BLOCKS // 2)
            assert guest.flush()

    # --- what happens ---------------------------------------------------------------------------

    def fail(self, *kinds: str) -> None:
        self.disk.fail(*kinds)

    def heal(self) -> None:
        self.disk.heal()

    def met_by_the_kernel(self) -> None:
        """The kernel's flusher writes out: each file system, and what they lie on."""
        os.sync()

    def kill(self) -> None:
        if self.rig.running:
            self.rig.kill()
        for guest in self.guests:
            guest.hang_up()

    def stop(self) -> None:
        if self.rig.running:
            try:
                self.rig.stop()
            except Refused:
                # Its last commit failed; it ends all the same.
                self.rig.kill()
        for guest in self.guests:
            guest.hang_up()

    def look(self, *words: str) -> None:
        """Somebody looks at the stopped pool."""
        self.rig.run(*words)

    def start(self) -> bool:
        if not self.rig.running:
            try:
                self.rig.start()
            except Refused:
                return False
        return True

    def judge(self) -> None:
        """The disk is well, the pool started: what flushes vouch for is there. Raises `Broken`."""
        self.heal()
        for _ in range(2):
            if not self.start():
                # What failed to be made good may be by now.
                self.rig.run("status")
        vouched = [guest for guest in self.guests if self.rig.running and guest.flush()]
        self._forget()
        for guest in vouched:
            guest.verify()


def play(scenario: Scenario, rng: random.Random, steps: int) -> list[str]:
    """Let things happen at random, and be judged at the end; what happened."""
    story: list[str] = []

    def some(guest: Guest) -> None:
        first = rng.randrange(BLOCKS)
        guest.write(first, rng.randint(1, min(8, BLOCKS - first)))

    def any_guest() -> Guest:
        return rng.choice(scenario.guests)

    acts: list[tuple[str, int, Callable[[], object]]] = [
        ("write", 30, lambda: some(any_guest())),
        ("flush", 8, lambda: any_guest().flush()),
        ("fail writes", 4, lambda: scenario.fail("pwrite")),
        ("fail syncs", 2, lambda: scenario.fail("flush")),
        ("fail reads", 1, lambda: scenario.fail("pread")),
        ("heal", 5, scenario.heal),
        ("kernel", 4, scenario.met_by_the_kernel),
        ("kill", 3, scenario.kill),
        ("stop", 2, scenario.stop),
        ("start", 8, scenario.start),
        ("list", 2, lambda: scenario.look("list")),
        ("check", 1, lambda: scenario.look("check")),
    ]
    names, weights, calls = zip(*acts, strict=True)
    for step in rng.choices(range(len(acts)), weights, k=steps):
        story.append(names[step])
        if names[step] in ("list", "check") and scenario.rig.running:
            continue
        calls[step]()
    scenario.judge()
    return story


def drop_cache(path: Path) -> None:
    """Drop what the page cache has of a file and is on disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
