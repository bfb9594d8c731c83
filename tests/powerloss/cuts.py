"""Recording a pool's life, cutting its power again and again, and judging what is left.

Thread-safety: none; one thread.
"""

import os
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from tests.powerloss.client import Client
from tests.powerloss.history import SECTOR, History, Lost, judge, stamps
from tests.powerloss.images import Disk
from tests.powerloss.recording import Event, Recorder, What
from tests.support.pools import PoolRig
from thinmeta.check import check_file
from thinmeta.store.lmdb import LmdbStore
from thinpoold import admin, boot, pool_record
from thinpoold.audit import audit
from thinpoold.pool import Pool

# How much of what was not durable is there, and in pieces of how many bytes (0: whole calls).
FILES = ("data", "metadata.lmdb", "recent-0", "recent-1")
CUTS = [(0.0, 0), (0.5, 0), (0.9, 0), (0.1, 4096), (0.5, 4096), (0.5, SECTOR), (0.9, SECTOR)]


@dataclass(frozen=True)
class Recording:
    """What a client did, and what the daemon did to the files, from what they were before.

    The files are the data, the metadata and the two of recent changes.
    """

    history: History
    events: Sequence[Event]
    files: Sequence[bytes]
    attributes: dict[str, bytes]


def record(rig: PoolRig, directory: Path, seed: int, act: Callable[[Client], None]) -> Recording:
    """Let a client loose on the pool of a rig whose daemon does not run; stop it at the end."""
    paths = [rig.directory / name for name in FILES]
    for path in paths:
        # Those of recent changes are not there; empty, they say as much.
        path.touch()
    files = [path.read_bytes() for path in paths]
    data = paths[0]
    attributes = {name: os.getxattr(data, name) for name in os.listxattr(data)}
    recorder = Recorder(directory, paths)
    outside = rig.env
    rig.env = {**outside, **recorder.environment}
    try:
        rig.start()
    finally:
        rig.env = outside
    client = Client(rig, recorder, random.Random(seed))
    act(client)
    rig.stop()
    return Recording(client.history, recorder.events(), files, attributes)


def moments(events: Sequence[Event]) -> list[int]:
    """The numbers of the events after which something new is durable, or about to become so."""
    syncs = {
        event.id for event in events if event.what in (What.SYNC, What.WRITE_DURABLY, What.ZERO)
    }
    return [number for number, event in enumerate(events) if event.id in syncs]


class Cutter:
    """Cuts the power during a recording, in a directory of its own."""

    def __init__(self, recording: Recording, directory: Path, seed: int) -> None:
        self._recording = recording
        self._directory = directory
        self._rng = random.Random(seed)
        directory.mkdir()
        # After a power cut it is another boot.
        self._boot = directory.with_name(directory.name + "-boot")
        self._boot.write_text("01234567-89ab-cdef-0123-456789abcdef\n")

    def cut(self, at: Iterable[int], times: int) -> int:
        """Cut after each of these events, so many times; how many cuts could lose something.

        Raises `Lost`, with a note that says when the cut was.
        """
        recording, wanted, loose = self._recording, set(at), 0
        disk = Disk(recording.files)
        for number, event in enumerate(recording.events):
            disk.take(event)
            if number not in wanted:
                continue
            possible = recording.history.possible(event.position)
            for kept, unit in self._rng.sample(CUTS, times):
                loose += disk.loose > 0
                try:
                    judge(possible, self._restart(disk.after_cut(kept, unit, self._rng)))
                except Exception as error:
                    error.add_note(f"after event {number} of {len(recording.events)}, {event.what}")
                    error.add_note(f"{kept} of {disk.loose} calls kept, by {unit or 'whole calls'}")
                    raise
        return loose

    def _restart(self, images: Sequence[bytearray]) -> dict[str, list[int]]:
        """What the volumes hold after the next start."""
        for path in self._directory.iterdir():
            path.unlink()
        for name, image in zip(FILES, images, strict=True):
            (self._directory / name).write_bytes(image)
        data, metadata = self._directory / "data", self._directory / "metadata.lmdb"
        for name, value in self._recording.attributes.items():
            os.setxattr(data, name, value)
        self._check(metadata)
        # The recorder sees no attributes. The life is synced before the record has it alone.
        with closing(LmdbStore(metadata, read_only=True)) as store:
            stored = store.record(pool_record.TABLE, pool_record.KEY)
        assert stored is not None
        lives = sorted(pool_record.PoolRecord.unpack(stored).data_mark.allowed)
        os.setxattr(data, "user.thinpoold.life", str(self._rng.choice(lives)).encode())
        with (
            patch.object(boot, "BOOT_ID", self._boot),
            closing(Pool.open(self._directory)) as pool,
        ):
            found = {}
            for record in pool.registry:
                volume = pool.open_volume(record.name)
                octets = bytearray(volume.size)
                volume.pread(octets, 0)
                pool.close_volume(volume)
                found[record.name] = stamps(bytes(octets))
            if admin.status(pool)["deleting"]:
                pool.deletion.go_on()
        self._check(metadata)
        return found

    @staticmethod
    def _check(metadata: Path) -> None:
        result = check_file(metadata)
        problems = list(result.errors)
        if result.ok:
            with closing(LmdbStore(metadata, read_only=True)) as store:
                problems += audit(store)
        if problems or result.leaked_blocks or result.leaked_metadata_blocks:
            raise Lost(f"the metadata is not sound: {[str(problem) for problem in problems]}")
