"""A pool in one process, its requests made as nbdkit makes them: the filter's first, then Python's.

    python -P inside.py DIRECTORY FILTER TURNS

For sanitizers that nbdkit and Python do not start together with. Writers and readers have a region
each, and check it, while snapshots, discards, rollbacks, resizes and commits go on. Ends with 1,
and says why, when anything was not as it should be.
"""

import ctypes
import os
import random
import sys
import threading
from pathlib import Path

from thinpoold import admin
from thinpoold.errors import ThinPoolError
from thinpoold.fastlib import Library
from thinpoold.make import create_pool
from thinpoold.pool import Pool
from thinpoold.volume import Volume

BLOCK = 65536
REGION = 4
WRITERS = 3
READERS = 2
PIECE = 4096
# So many requests have met what the administrator does.
ENOUGH = 100


class Client:
    """A connection to a volume. Not of nbdkit's, but of the same two halves."""

    def __init__(self, library: Library, volume: Volume) -> None:
        assert volume.fast is not None
        self.library = library
        self.volume = volume
        self.pointer = volume.fast.pointer
        self.served = 0

    def read(self, offset: int, count: int) -> bytes:
        buffer = ctypes.create_string_buffer(count)
        if self.library.read(self.pointer, buffer, count, offset):
            self.served += 1
        else:
            self.volume.pread(memoryview(buffer).cast("B"), offset)
        return buffer.raw

    def write(self, offset: int, data: bytes) -> None:
        if self.library.write(self.pointer, data, len(data), offset):
            self.served += 1
        else:
            self.volume.pwrite(data, offset)


class Load:
    """Threads over one volume. Each writer keeps what its region holds."""

    def __init__(self, pool: Pool, library: Library, seed: int) -> None:
        self.pool = pool
        self.library = library
        self.seed = seed
        self.ending = threading.Event()
        self.troubles: list[BaseException] = []
        self.volume = pool.open_volume("v")
        self.clients = [Client(library, self.volume) for _ in range(WRITERS + READERS)]
        self.threads = [
            threading.Thread(target=self._run, args=(number,))
            for number in range(len(self.clients))
        ]

    @property
    def served(self) -> int:
        """How many requests the filter has served."""
        return sum(client.served for client in self.clients)

    def _run(self, number: int) -> None:
        try:
            work = self._write if number < WRITERS else self._read
            work(self.clients[number], number, random.Random(self.seed + number))
        except BaseException as trouble:
            self.troubles.append(trouble)

    def _write(self, client: Client, number: int, dice: random.Random) -> None:
        first = number * REGION * BLOCK
        region = bytearray(client.read(first, REGION * BLOCK))
        while not self.ending.is_set():
            at = dice.randrange(REGION * BLOCK // PIECE) * PIECE
            count = min(dice.choice((1, 2, 20)) * PIECE, REGION * BLOCK - at)
            if dice.random() < 0.5:
                data = dice.randbytes(16) * (count // 16)
                client.write(first + at, data)
                region[at : at + count] = data
            elif client.read(first + at, count) != region[at : at + count]:
                raise AssertionError(f"writer {number} does not read what it wrote at {at}")
        if client.read(first, REGION * BLOCK) != region:
            raise AssertionError(f"writer {number} has lost something")

    def _read(self, client: Client, number: int, dice: random.Random) -> None:
        while not self.ending.is_set():
            client.read(dice.randrange(WRITERS * REGION) * BLOCK, dice.choice((512, BLOCK)))

    def finish(self) -> int:
        """End; how many requests the filter has served. Raises what a thread has."""
        self.ending.set()
        for thread in self.threads:
            thread.join()
        if self.troubles:
            raise self.troubles[0]
        self.pool.close_volume(self.volume)
        return self.served


def administrate(pool: Pool, library: Library, turn: int) -> None:
    """What closes gates and moves blocks, once each."""
    admin.snapshot(pool, [("v", "s"), ("w", "t")])
    volume = pool.open_volume("w")
    client = Client(library, volume)
    try:
        stamp = bytes([turn % 255 + 1]) * (4 * BLOCK)
        client.write(0, stamp)
        assert client.read(0, len(stamp)) == stamp
        # From the snapshot's device, whatever became of the blocks.
        frozen = pool.open_volume("t")
        try:
            old = Client(library, frozen).read(0, len(stamp))
        finally:
            pool.close_volume(frozen)
        assert old == bytes([(turn - 1) % 255 + 1 if turn else 0]) * len(old)
        admin.resize(pool, "w", (64 + turn) * BLOCK)
        assert client.read(0, len(stamp)) == stamp
    finally:
        pool.close_volume(volume)
    # Another table, while requests want to look at it.
    admin.resize(pool, "v", (WRITERS * REGION + turn + 1) * BLOCK)
    admin.rollback(pool, "r", "t", discard_current=True)
    admin.delete(pool, ["s", "t"])
    pool.commit()


def main(directory: Path, filter_: Path, turns: int) -> None:
    library = Library(filter_)
    create_pool(directory, size=64 << 20)
    pool = Pool.open(directory)
    pool.core.fastpath = library
    pool.start()
    admin.create(pool, "v", WRITERS * REGION * BLOCK)
    for name in ("w", "r"):
        admin.create(pool, name, 64 * BLOCK)
    load = Load(pool, library, seed=int.from_bytes(os.urandom(4)))
    for thread in load.threads:
        thread.start()
    turn = 0
    try:
        # More turns where the threads of the load have hardly come to run.
        while turn < turns or (load.served <= ENOUGH and not load.troubles):
            administrate(pool, library, turn)
            turn += 1
    finally:
        served = load.finish()
    pool.close()
    del load, pool
    assert library.count() == 0, "volumes are left"
    sys.stdout.write(f"{served} requests served\n")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    except (AssertionError, ThinPoolError) as error:
        sys.exit(str(error))
