"""A pool that goes to and fro between thinmeta and the kernel, judged at every border.

Invariants, each a failed test when broken:
1. Whoever hands the pool over, neither thin_check nor thinmeta's check has a word against it.
2. Whoever takes it over reads every byte of every device as the model has it, finds as many mapped
   blocks, and counts as many data blocks in use as the other did.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tests.support.thin import thin_check
from tests.uml import flat
from tests.uml.inside.replay import Replayed, replay
from tests.uml.machine import DM_THIN, Machine
from tests.uml.ours import OurPool
from tests.uml.steps import Geometry, Model, Step, insist_same
from thinmeta.check import check
from thinmeta.export import export_metadata
from thinmeta.store.flat import FlatStore
from thinmeta.store.lmdb import LmdbStore
from thinmeta.store.protocol import BlockStore
from thinmeta.thin import ThinMetadata

NEW_METADATA_SIZE = 16 << 20


class Shuttle:
    """One pool in two image files, and the model of what is in it."""

    def __init__(self, directory: Path, geometry: Geometry) -> None:
        self.geometry = geometry
        self.model = Model(geometry)
        self.metadata_image = directory / "metadata"
        self.data_image = directory / "data"
        self.data_used = 0
        self.machine = Machine(
            directory, disks=(self.metadata_image, self.data_image), modules=DM_THIN
        )
        with self.data_image.open("wb") as data:
            data.truncate(geometry.data_blocks * geometry.block_size)

    def start_here(self) -> None:
        """The pool is made by thinmeta."""
        store = self._new_store()
        self._hand_over(OurPool.create(self.geometry, store, self.data_image), store)

    def start_there(self, metadata_size: int = NEW_METADATA_SIZE) -> None:
        """The pool will be made by the kernel, which takes a zeroed device for a new pool."""
        with self.metadata_image.open("wb") as image:
            image.truncate(metadata_size)

    def our_turn(
        self, steps: Iterable[Step], also: Callable[[ThinMetadata], object] = lambda _: None
    ) -> None:
        """thinmeta takes the pool over, does the steps, then what is `also` wanted; hands over."""
        store = self._new_store()
        flat.load(self.metadata_image, store)
        judge(store)
        pool = OurPool.open(self.geometry, store, self.data_image)
        if pool.metadata.data_used != self.data_used:
            raise AssertionError(f"{pool.metadata.data_used} data blocks used: {self.data_used}")
        insist_same("thinmeta, before", self.model.expected(), pool.see())
        pool.do(self._apply(steps))
        insist_same("thinmeta, after", self.model.expected(), pool.see())
        also(pool.metadata)
        self._hand_over(pool, store)

    def kernel_turn(self, steps: Iterable[Step], messages: Sequence[str] = ()) -> Replayed:
        """The kernel takes the pool over, does the steps, heeds the messages, and hands it over."""
        before = self.model.expected()
        done = self.machine.call(
            replay, self.geometry, sorted(before), self._apply(steps), messages
        )
        insist_same("the kernel, before", before, done.before)
        insist_same("the kernel, after", self.model.expected(), done.after)
        first, last = done.status_before, done.status_after
        if (first.mode, first.data_used, last.mode) != ("rw", self.data_used, "rw"):
            raise AssertionError(f"{first}, then {last}; {self.data_used} data blocks were used")
        self.data_used = last.data_used
        judge_image(self.metadata_image)
        return done

    def _apply(self, steps: Iterable[Step]) -> list[Step]:
        """Does to the model what is to be done to the pool, step by step as they are made up."""
        done = []
        for step in steps:
            self.model.apply(step)
            done.append(step)
        return done

    def _new_store(self) -> LmdbStore:
        path = self.metadata_image.with_suffix(".lmdb")
        path.unlink(missing_ok=True)
        return LmdbStore(path, create=True)

    def _hand_over(self, pool: OurPool, store: BlockStore) -> None:
        pool.close()
        self.data_used = pool.metadata.data_used
        judge(store)
        export_metadata(store, self.metadata_image)
        store.close()
        judge_image(self.metadata_image)


def judge(store: BlockStore, *, foreign: bool = False) -> None:
    """Raises AssertionError if thinmeta's check has anything against it."""
    result = check(store, foreign=foreign)
    if not result.ok or result.leaked_blocks or result.leaked_metadata_blocks:
        raise AssertionError(f"check: {result}")


def judge_image(image: Path) -> None:
    """Raises AssertionError if thin_check, or thinmeta's check, has anything against it."""
    complaints = thin_check(image)
    if complaints:
        raise AssertionError("\n".join(("thin_check:", *complaints)))
    store = FlatStore(image)
    try:
        judge(store, foreign=True)
    finally:
        store.close()
