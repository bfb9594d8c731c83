"""The life of a data device: what a death at each step leaves, and which copy is refused."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from thinmeta.errors import StoreError
from thinmeta.store.memory import MemoryStore
from thinmeta.thin import ThinMetadata
from thinpoold import admin, device_mark, identity, lives, pool_record
from thinpoold.audit import data_mark
from thinpoold.device import DataDevice
from thinpoold.device_mark import MARK_BYTES, DeviceMark
from thinpoold.errors import DeviceError, InvalidSize, UserError
from thinpoold.paths import pool_paths
from thinpoold.pool import Pool, create_pool
from thinpoold.pool_record import MarkState, PoolRecord

BLOCK = 64 << 10
BLOCKS = 16
SIZE = (BLOCKS + 1) * BLOCK
END = SIZE - MARK_BYTES
UUID = bytes(range(16))
OTHER = bytes(range(1, 17))


class Death(Exception):  # noqa: N818 - an event
    """The machine dies here."""


class BlockDevice(DataDevice):
    """A file that is taken for a block device."""

    def __init__(self, path: Path, fd: int, **more: Any) -> None:
        super().__init__(path, fd, **more)
        self.regular = False


class Rig:
    """A pool's metadata, and a data device of one block more than it needs."""

    def __init__(self, path: Path, kind: type[DataDevice], **more: Any) -> None:
        path.touch()
        os.truncate(path, SIZE)
        self.device = kind.open(path)
        known, mark = identity.claim(self.device, UUID)
        self.store = MemoryStore()
        self.metadata = ThinMetadata.create(
            self.store, data_block_sectors=BLOCK // 512, data_blocks=BLOCKS, uuid=UUID
        )
        self.put(PoolRecord("p", UUID, str(path), BLOCK, data_known_by=known, data_mark=mark))

    def put(self, record: PoolRecord) -> None:
        pool_record.store(self.metadata, record)
        self.metadata.commit()

    def state(self, mark: MarkState) -> None:
        self.put(replace(self.record, data_mark=mark))

    @property
    def record(self) -> PoolRecord:
        return pool_record.load(self.metadata)

    @property
    def why(self) -> str:
        """What is said against the device, '' for nothing."""
        try:
            identity.check_ours(self.device, self.record, BLOCKS * BLOCK)
        except DeviceError as error:
            return str(error)
        return ""

    @property
    def lives(self) -> set[int]:
        return identity.found_lives(self.device, self.record, BLOCKS * BLOCK)

    def advance(self, **more: bool) -> PoolRecord:
        record = lives.advance(self.metadata, self.device, self.record, **more)
        assert record == self.record
        return record

    @contextmanager
    def death(self, step: int, *, after: bool) -> Iterator[None]:
        """Die at, or right after, the `step`-th write of record or mark."""
        count = 0

        def dying(call: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*arguments: Any) -> Any:
                nonlocal count
                count += 1
                if count == step and not after:
                    raise Death
                result = call(*arguments)
                if count == step:
                    raise Death
                return result

            return wrapped

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(identity, "put", dying(identity.put))
            patch.setattr(self.metadata, "commit", dying(self.metadata.commit))
            with pytest.raises(Death):
                yield
        self.metadata.abandon()


Maker = Callable[[type[DataDevice]], Rig]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Maker]:
    with ExitStack() as stack:

        def made(kind: type[DataDevice]) -> Rig:
            rig = Rig(tmp_path / "disk", kind)
            stack.callback(rig.device.close)
            return rig

        yield made


KINDS: tuple[type[DataDevice], ...] = (DataDevice, BlockDevice)


@pytest.fixture(params=KINDS)
def rig(request: pytest.FixtureRequest, make: Maker) -> Rig:
    """On a file, and on a block device."""
    return make(request.param)


@pytest.fixture
def disk(make: Maker) -> Rig:
    """On a block device."""
    return make(BlockDevice)


def at(rig: Rig) -> int | None:
    return None if rig.device.regular else END


def test_each_start_is_a_life(rig: Rig) -> None:
    assert (rig.record.data_mark, rig.lives, rig.why) == (MarkState(1, at(rig)), {1}, "")
    for life in (2, 3):
        assert rig.advance().data_mark == MarkState(life, at(rig))
        assert (rig.lives, rig.why) == ({life}, "")


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("again", [1, 2, 3, None])
def test_a_death_at_any_step_leaves_what_the_next_start_goes_on_from(
    rig: Rig, step: int, after: bool, again: int | None
) -> None:
    with rig.death(step, after=after):
        rig.advance()
    assert rig.why == ""
    if again is not None:
        try:
            with rig.death(again, after=after):
                rig.advance()
        except pytest.fail.Exception:
            # It had fewer steps to go.
            pass
    assert rig.why == ""
    record = rig.advance()
    assert rig.why == ""
    assert record.data_mark.next_life is None
    assert rig.lives == {record.data_mark.life}
    # Older ones are refused.
    assert record.data_mark.life > 1
    identity.put(rig.device, UUID, record.data_mark.life - 1, at(rig))
    assert "is an older copy" in rig.why


@pytest.mark.parametrize(
    ("life", "next_life", "mark"),
    list(product((0, 2, 5), (None, 3, 6), (None, 0, 1, 2, 3, 5, 6, 9))),
)
def test_every_state_of_record_and_mark(
    rig: Rig, life: int, next_life: int | None, mark: int | None
) -> None:
    place = at(rig)
    rig.state(MarkState(life, place, next_life, place if next_life is not None else None))
    if mark is not None:
        identity.put(rig.device, UUID, mark, place)
    elif place is None:
        os.removexattr(rig.device.fd, "user.thinpoold.pool")
    else:
        os.pwrite(rig.device.fd, bytes(MARK_BYTES), place)
    allowed = {life} | ({next_life} if next_life is not None else set())
    if mark is None:
        assert "it has not its mark" in rig.why
    elif mark in allowed:
        assert rig.why == ""
    else:
        kind = "an older" if mark < min(allowed) else "a newer"
        assert f"is {kind} copy than the pool's metadata: its mark is of life {mark}" in rig.why
        assert "--accept-data" in rig.why


def test_another_pools_mark(rig: Rig) -> None:
    identity.put(rig.device, OTHER, 1, at(rig))
    assert "belongs to another pool, 01020304-0506" in rig.why
    with pytest.raises(DeviceError, match="belongs to another pool"):
        identity.check_acceptable(rig.device, rig.record, BLOCKS * BLOCK)


@pytest.mark.parametrize("life", [None, 0, 1, 2, 7])
def test_a_device_that_is_accepted_begins_a_life_that_no_copy_has(
    rig: Rig, life: int | None
) -> None:
    rig.advance()
    if life is not None:
        identity.put(rig.device, UUID, life, at(rig))
    elif rig.device.regular:
        os.removexattr(rig.device.fd, "user.thinpoold.pool")
    else:
        os.pwrite(rig.device.fd, b"scribble", END)
    identity.check_acceptable(rig.device, rig.record, BLOCKS * BLOCK)
    record = rig.advance(accepting=True)
    assert rig.why == ""
    assert record.data_mark.life == max(2, life or 0) + 1


@pytest.mark.parametrize("step", [1, 2])
def test_a_commit_that_finds_no_room_leaves_the_life_as_it_was(
    rig: Rig, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    real = rig.store.commit

    def fails(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == step:
            raise StoreError(28, "no room")
        return real(*arguments)

    monkeypatch.setattr(rig.store, "commit", fails)
    assert rig.advance().data_mark.life == 1
    assert rig.why == ""
    monkeypatch.undo()
    assert rig.advance().data_mark == MarkState(2, at(rig))
    assert rig.why == ""


def test_a_file_without_attributes_has_no_life(make: Maker) -> None:
    rig = make(DataDevice)
    rig.put(replace(rig.record, data_known_by={}, data_mark=MarkState()))
    os.removexattr(rig.device.fd, "user.thinpoold.pool")
    assert rig.why == ""
    assert rig.advance().data_mark == MarkState()
    assert "user.thinpoold.life" in os.listxattr(rig.device.fd)
    assert "user.thinpoold.pool" not in os.listxattr(rig.device.fd)


def test_a_pool_from_before_gets_its_mark(rig: Rig) -> None:
    if rig.device.regular:
        os.removexattr(rig.device.fd, "user.thinpoold.life")
    else:
        os.pwrite(rig.device.fd, bytes(MARK_BYTES), END)
    rig.state(MarkState())
    assert rig.why == ""
    rig.advance()
    assert (rig.record.data_mark, rig.lives) == (MarkState(1, at(rig)), {1})
    # The metadata of before does not go with it any more.
    rig.state(MarkState())
    assert "is a newer copy" in rig.why


def test_without_room_there_is_no_mark(disk: Rig) -> None:
    os.pwrite(disk.device.fd, bytes(MARK_BYTES), END)
    disk.metadata.resize_data(BLOCKS + 1)
    disk.state(MarkState())
    before = disk.metadata.generation
    assert disk.advance().data_mark == MarkState()
    assert disk.metadata.generation == before
    # A volume's data may look like another pool's mark.
    os.pwrite(disk.device.fd, DeviceMark(OTHER, 1, END).pack(), END)
    identity.check_ours(disk.device, disk.record, SIZE)
    disk.put(replace(disk.record, data_known_by={"wwid": "1"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identity, "_ids", lambda device: {"wwid": "2"})
        with pytest.raises(DeviceError, match="its wwid is 2, not 1"):
            identity.check_ours(disk.device, disk.record, SIZE)


# --- a block device that has grown ----------------------------------------------------------------


def grown(rig: Rig, size: int) -> None:
    os.truncate(rig.device.path, size)
    rig.device.resize(size)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", [1, 2, 3, None])
def test_a_larger_device_gets_its_mark_at_the_end(disk: Rig, step: int | None, after: bool) -> None:
    grown(disk, 2 * SIZE)
    assert disk.why == ""
    if step is not None:
        with disk.death(step, after=after):
            disk.advance()
        assert disk.why == ""
        # Larger again, with a life announced.
        grown(disk, 3 * SIZE)
        assert disk.why == ""
    disk.advance()
    end = disk.device.size - MARK_BYTES
    assert disk.record.data_mark.at == end
    with pytest.raises(DeviceError, match="belongs to the pool 00010203-"):
        identity.check_unclaimed(disk.device, force=False)
    identity.check_unclaimed(disk.device, force=True)


def test_another_pool_at_the_end_of_a_larger_device(disk: Rig) -> None:
    grown(disk, 2 * SIZE)
    identity.put(disk.device, OTHER, 1, 2 * SIZE - MARK_BYTES)
    assert disk.lives == {1}
    assert "belongs to another pool" in disk.why


def test_a_smaller_device(disk: Rig) -> None:
    os.truncate(disk.device.path, SIZE - BLOCK // 2)
    disk.device.resize(SIZE - BLOCK // 2)
    assert "it has not its mark" in disk.why
    record = disk.advance(accepting=True)
    assert record.data_mark == MarkState(2, SIZE - BLOCK // 2 - MARK_BYTES)
    assert disk.why == ""


@pytest.fixture
def block_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pool on what is taken for a block device."""
    real = DataDevice._find_size

    def find_size(self: DataDevice) -> int:
        self.regular = False
        return real(self)

    monkeypatch.setattr(DataDevice, "_find_size", find_size)
    disk = tmp_path / "disk"
    disk.touch()
    os.truncate(disk, SIZE)
    create_pool(tmp_path / "pool", data=disk)
    return tmp_path / "pool"


def stored(directory: Path) -> PoolRecord:
    pool = Pool.open(directory, looking=True)
    pool.close()
    return pool.record


def test_room_is_left_at_the_end(block_pool: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    assert device_mark.unpack(disk.read_bytes()[END:], END) == DeviceMark(
        stored(block_pool).uuid, 1, END
    )
    pool = Pool.open(block_pool)
    assert pool.metadata.data_blocks == BLOCKS
    pool.close()
    other = tmp_path / "disk2"
    other.write_bytes(bytes(SIZE))
    with pytest.raises(InvalidSize, match="do not fit, the most that does is 1M"):
        create_pool(tmp_path / "other", data=other, size=SIZE)
    assert not (tmp_path / "other").exists()
    with pytest.raises(UserError, match="less than 2M"):
        create_pool(tmp_path / "other", data=other, size=2 << 20)
    small = tmp_path / "small"
    small.write_bytes(bytes(BLOCK))
    with pytest.raises(InvalidSize, match="too small"):
        create_pool(tmp_path / "other", data=small)


def test_a_device_is_as_it_was_when_the_pool_cannot_be_made(
    block_pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (tmp_path / "disk").read_bytes()

    def fail(*_: Any) -> None:
        raise StoreError(28, "no room")

    monkeypatch.setattr("thinpoold.pool_record.store", fail)
    with pytest.raises(StoreError):
        create_pool(tmp_path / "other", data=tmp_path / "disk", force=True)
    assert (tmp_path / "disk").read_bytes() == before


def test_openings_that_do_not_serve_change_no_life(block_pool: Path) -> None:
    for more in ({}, {"looking": True}, {"read_only": True}, {"serving": True}):
        before = stored(block_pool).data_mark.life
        pool = Pool.open(block_pool, **more)
        pool.close()
        assert stored(block_pool).data_mark.life == before + ("serving" in more)


def test_a_pool_that_needs_a_check_is_served_in_its_life(block_pool: Path) -> None:
    pool = Pool.open(block_pool)
    with pool.core.lock:
        pool.metadata.set_needs_check(True)
    pool.close()
    before = stored(block_pool).data_mark
    Pool.open(block_pool, serving=True).close()
    assert stored(block_pool).data_mark == before


@pytest.mark.parametrize("dies", [None, "before", "after"])
def test_growing_moves_the_mark(
    block_pool: Path, tmp_path: Path, dies: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    pool = Pool.open(block_pool, serving=True)
    os.truncate(disk, 2 * SIZE)
    with pytest.raises(InvalidSize, match="do not fit"):
        admin.grow(pool, 2 * SIZE)
    with monkeypatch.context() as patch:

        def die(*_: Any) -> None:
            raise Death

        if dies == "before":
            patch.setattr("thinpoold.lives.identity.put", die)
        elif dies == "after":
            patch.setattr("thinpoold.admin.settings._grow_metadata", die)
        if dies:
            with pytest.raises(Death):
                admin.grow(pool, 2 * SIZE - BLOCK)
        else:
            admin.grow(pool, 2 * SIZE - BLOCK)
    pool.close()
    record = stored(block_pool)
    assert record.data_mark == MarkState(2, END if dies else 2 * SIZE - MARK_BYTES)
    pool = Pool.open(block_pool, serving=True)
    assert pool.record.data_mark == MarkState(3, 2 * SIZE - MARK_BYTES)
    assert pool.metadata.data_blocks == (BLOCKS if dies else 2 * BLOCKS + 1)
    pool.close()


def test_a_check_judges_by_the_record_as_it_is_after_the_look(
    block_pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = Pool.open(block_pool)
    real = identity.look

    def meanwhile(path: Path, record: PoolRecord, data_bytes: int) -> str:
        """A start comes between the record and the mark."""
        if record.data_mark.life == 1:
            lives.advance(pool.metadata, pool.device, pool.record)
            lives.advance(pool.metadata, pool.device, pool_record.load(pool.metadata))
            return "is a newer copy"
        return real(path, record, data_bytes) and ""

    monkeypatch.setattr(identity, "look", meanwhile)
    assert data_mark(pool.store, pool_paths(block_pool)) == []
    monkeypatch.setattr(identity, "look", lambda *_: "is an older copy")
    (problem,) = data_mark(pool.store, pool_paths(block_pool))
    assert (problem.kind, problem.message) == ("mark", "is an older copy")
    pool.close()
