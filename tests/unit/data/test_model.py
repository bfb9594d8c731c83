"""Volumes against plain byte arrays: random operations, crashes among them, by Hypothesis."""

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
)

from tests.unit.data.rigs import BLOCK, Rig, read
from thinmeta.check import check
from thinpoold import admin, discard
from thinpoold.extents import extents
from thinpoold.settings import CACHE, Settings

BLOCKS = 6
SECTORS = BLOCKS * BLOCK // 512
NAMES = st.integers(0, 5).map(lambda number: f"v{number}")


def spans() -> Any:
    """(offset, count) in bytes: sectors, whole blocks, and odd pieces."""
    sectors = st.tuples(st.integers(0, SECTORS - 1), st.integers(1, SECTORS)).map(
        lambda pair: (pair[0] * 512, pair[1] * 512)
    )
    blocks = st.tuples(st.integers(0, BLOCKS - 1), st.integers(1, BLOCKS)).map(
        lambda pair: (pair[0] * BLOCK, pair[1] * BLOCK)
    )
    odd = st.tuples(st.integers(0, BLOCKS * BLOCK - 1), st.integers(1, 3 * BLOCK))
    return st.one_of(sectors, blocks, odd)


class Pools(RuleBasedStateMachine):
    """A pool, its volumes' bytes, and their bytes at the last commit."""

    names = Bundle("names")

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.now: dict[str, bytearray] = {}
        self.durable: dict[str, bytes] = {}
        # What each sector, by its offset, held since the last commit.
        self.seen: dict[str, dict[int, set[bytes]]] = {}

    @initialize(passdown=st.booleans(), cache=st.sampled_from(CACHE))
    def make(self, passdown: bool, cache: str) -> None:
        choice = Settings(
            discard="passdown" if passdown else "nopassdown", on_full="error", cache=cache
        )
        self.rig = Rig(Path(self.directory.name), blocks=80, settings=choice)

    def committed(self) -> None:
        self.durable = {name: bytes(data) for name, data in self.now.items()}
        self.seen = {}

    def put(self, name: str, offset: int, data: bytes) -> None:
        self.now[name][offset : offset + len(data)] = data
        seen = self.seen.setdefault(name, {})
        for at in range(offset // 512 * 512, offset + len(data), 512):
            seen.setdefault(at, set()).add(bytes(self.now[name][at : at + 512]))

    def span(self, name: str, span: tuple[int, int]) -> tuple[int, int]:
        """The span, cut to the volume."""
        size = len(self.now[name])
        offset = span[0] % size
        return offset, min(span[1], size - offset)

    @rule(target=names, name=NAMES, size=st.integers(1, SECTORS))
    def create(self, name: str, size: int) -> str:
        if name not in self.now:
            admin.create(self.rig.pool, name, size * 512)
            self.now[name] = bytearray(size * 512)
            self.committed()
        return name

    @rule(target=names, origin=names, name=NAMES)
    def snapshot(self, origin: str, name: str) -> str:
        if origin in self.now and name not in self.now:
            admin.snapshot(self.rig.pool, [[origin, name]])
            self.now[name] = bytearray(self.now[origin])
            self.committed()
        return name

    @rule(name=consumes(names))
    def delete(self, name: str) -> None:
        if name in self.now:
            admin.delete(self.rig.pool, [name])
            del self.now[name]
            self.committed()

    @rule(name=names, source=names)
    def rollback(self, name: str, source: str) -> None:
        if name in self.now and source in self.now and name != source:
            admin.rollback(self.rig.pool, name, source, discard_current=True)
            self.now[name] = bytearray(self.now[source])
            self.committed()

    @rule(name=names, size=st.integers(1, SECTORS))
    def resize(self, name: str, size: int) -> None:
        if name in self.now:
            admin.resize(self.rig.pool, name, size * 512, shrink=True)
            data = self.now[name][: size * 512]
            self.now[name] = data + bytes(size * 512 - len(data))
            self.committed()

    @rule(name=names, span=spans(), fill=st.integers(1, 255))
    def write(self, name: str, span: tuple[int, int], fill: int) -> None:
        if name not in self.now:
            return
        offset, count = self.span(name, span)
        volume = self.rig.pool.open_volume(name)
        volume.pwrite(bytes([fill]) * count, offset)
        self.rig.pool.close_volume(volume)
        self.put(name, offset, bytes([fill]) * count)

    @rule(name=names, other=names, span=spans(), fill=st.integers(1, 254), crash=st.booleans())
    def write_both(
        self, name: str, other: str, span: tuple[int, int], fill: int, crash: bool
    ) -> None:
        """The same place in two volumes, which may share it: first one breaks that, then both."""
        self.write(name, span, fill)
        self.write(other, span, fill + 1)
        if crash:
            self.crash()

    @rule(name=names, span=spans(), may_trim=st.booleans())
    def zero(self, name: str, span: tuple[int, int], may_trim: bool) -> None:
        if name not in self.now:
            return
        offset, count = self.span(name, span)
        volume = self.rig.pool.open_volume(name)
        discard.zero(volume, offset, count, may_trim=may_trim, fast=False)
        status = extents(volume, offset, count)
        self.rig.pool.close_volume(volume)
        self.put(name, offset, bytes(count))
        if not may_trim:
            assert all(extent.mapped for extent in status)

    @rule(name=names, span=spans())
    def trim(self, name: str, span: tuple[int, int]) -> None:
        """Whole blocks read as zero afterwards, and the rest as before."""
        if name not in self.now:
            return
        offset, count = self.span(name, span)
        volume = self.rig.pool.open_volume(name)
        discard.trim(volume, offset, count)
        self.rig.pool.close_volume(volume)
        data = self.now[name]
        for block in range(-(-len(data) // BLOCK)):
            begin, end = block * BLOCK, min((block + 1) * BLOCK, len(data))
            if offset <= begin and end <= offset + count:
                self.put(name, begin, bytes(end - begin))

    @rule()
    def flush(self) -> None:
        self.rig.pool.core.flush()
        self.committed()

    @rule()
    def reclaim(self) -> None:
        self.rig.pool.core.reclaimer.drain()

    @rule()
    def crash(self) -> None:
        """Only this process dies: what was written after the last commit may be seen, or not."""
        self.rig.crash()
        assert check(self.rig.store).ok
        found = {}
        for name, old in self.durable.items():
            volume = self.rig.pool.open_volume(name)
            found[name] = bytearray(read(volume))
            self.rig.pool.close_volume(volume)
            seen = self.seen.get(name, {})
            for at in range(0, len(old), 512):
                sector = bytes(found[name][at : at + 512])
                assert sector == old[at : at + 512] or sector in seen.get(at, ())
        assert set(found) == {entry["name"] for entry in self.listed()}
        self.now = found
        self.committed()

    def listed(self) -> list[dict[str, Any]]:
        volumes: list[dict[str, Any]] = admin.list_volumes(self.rig.pool)["volumes"]
        return volumes

    @invariant()
    def the_volumes_hold_what_they_should(self) -> None:
        for name, data in self.now.items():
            volume = self.rig.pool.open_volume(name)
            assert volume.size == len(data)
            assert read(volume) == data
            for extent in extents(volume, 0, volume.size):
                if not extent.mapped:
                    assert not any(data[extent.offset : extent.offset + extent.length])
            self.rig.pool.close_volume(volume)

    def teardown(self) -> None:
        if hasattr(self, "rig"):
            self.rig.close()
        self.directory.cleanup()


Pools.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestPools = Pools.TestCase
