"""Bounded write-out: what is charged, who waits and for what, and that it is written in truth."""

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.data.rigs import PATIENCE, Rig, finish, spin, threads
from thinpoold import admin, pagecache
from thinpoold import writeout as module
from thinpoold.device import DataDevice
from thinpoold.pagecache import Unwritten
from thinpoold.writeout import (
    FIRST_BYTES,
    GRANT_SHARE,
    LEAST_BYTES,
    MOST_BYTES,
    Account,
    WriteOut,
)

LIMIT_BYTES = FIRST_BYTES
HALF = FIRST_BYTES // 2
GRANT_BYTES = FIRST_BYTES // GRANT_SHARE


class Disk:
    """Stands for the disk: what is to be written waits until the test lets it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = 0
        self.go = threading.Semaphore(0)
        self._now = 0.0
        # What the kernel tells; nothing, and charges are all there is to go by.
        self.told: Unwritten | None = None
        monkeypatch.setattr(module, "_write_file", self._write)
        monkeypatch.setattr(module, "monotonic", lambda: self._now)
        monkeypatch.setattr(pagecache, "unwritten", lambda: self.told)

    def _write(self, fd: int) -> None:
        self.begun += 1
        assert self.go.acquire(timeout=PATIENCE)
        self._now += 1.0

    def write(self, windows: int = 1) -> None:
        for _ in range(windows):
            self.go.release()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
def out(tmp_path: Path, disk: Disk) -> Iterator[WriteOut]:
    fd = os.open(tmp_path / "data", os.O_RDWR | os.O_CREAT)
    made = WriteOut(fd)
    made.start()
    yield made
    disk.write(1000)
    made.stop()
    made.close()
    os.close(fd)


def write(account: Account, count: int) -> None:
    """Charge `count` bytes as a volume does, 64 KiB at a time."""
    for _ in range(count // 65536):
        account.credit[0] -= 65536
        if account.credit[0] < 0:
            account.renew()


def test_writing_begins_at_half_the_bound(out: WriteOut, disk: Disk) -> None:
    one = out.account()
    write(one, HALF - 2 * GRANT_BYTES)
    assert disk.begun == 0
    assert HALF - 2 * GRANT_BYTES <= out.unwritten < HALF
    write(one, 2 * GRANT_BYTES)
    spin(lambda: disk.begun == 1)
    assert out.unwritten >= HALF
    disk.write()
    spin(lambda: out.unwritten == 0)


def test_a_flood_waits_for_the_disk(out: WriteOut, disk: Disk) -> None:
    one = out.account()
    with threads() as pool:
        flood = pool.submit(write, one, 3 * LIMIT_BYTES)
        spin(lambda: len(out._changed._waiters) == 1)  # type: ignore[attr-defined]
        assert LIMIT_BYTES <= out.unwritten <= LIMIT_BYTES + GRANT_BYTES + 65536
        spin(lambda: disk.begun == 1)
        assert not flood.done()
        disk.write(100)
        finish(flood)
    assert disk.begun > 1


def test_another_volume_does_not_wait_for_a_flood(out: WriteOut, disk: Disk) -> None:
    flooding, other = out.account(), out.account()
    with threads() as pool:
        flood = pool.submit(write, flooding, 2 * LIMIT_BYTES)
        spin(lambda: len(out._changed._waiters) == 1)  # type: ignore[attr-defined]
        # Up to its share, which is half, it does not wait, though nothing reaches the disk.
        write(other, LIMIT_BYTES // 2 - GRANT_BYTES)
        assert not flood.done()
        second = pool.submit(write, other, LIMIT_BYTES)
        spin(lambda: len(out._changed._waiters) == 2)  # type: ignore[attr-defined]
        assert other.unwritten <= LIMIT_BYTES // 2 + 2 * GRANT_BYTES
        disk.write(100)
        finish(flood, second)


def test_a_flush_lets_those_who_wait_go_on(out: WriteOut, disk: Disk) -> None:
    one = out.account()
    write(one, HALF)
    spin(lambda: disk.begun == 1)
    with threads() as pool:
        flood = pool.submit(write, one, HALF + HALF // 2)
        spin(lambda: len(out._changed._waiters) == 1)  # type: ignore[attr-defined]
        with out.writing():
            pass
        finish(flood)


def test_the_bound_is_what_the_disk_writes_in_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    free = MOST_BYTES
    monkeypatch.setattr(module, "monotonic", lambda: clock[0])
    monkeypatch.setattr(pagecache, "unwritten", lambda: Unwritten(2 * MOST_BYTES, free))
    fd = os.open(tmp_path / "data", os.O_RDWR | os.O_CREAT)
    out = WriteOut(fd)
    one = out.account()

    def write_out(seconds: float) -> int:
        def pass_time(_: int) -> None:
            clock[0] += seconds

        monkeypatch.setattr(module, "_write_file", pass_time)
        write(one, MOST_BYTES)
        amount = out.unwritten
        out._look()
        assert out.unwritten == 0
        return amount

    assert out.limit_bytes == FIRST_BYTES
    first = write_out(8.0) // 8
    assert out.limit_bytes == first
    # From then on the mean of what it was and what was seen.
    amount = write_out(4.0)
    assert out.limit_bytes == (first + amount // 4) // 2
    for seconds, limit in ((0.001, MOST_BYTES), (1000.0, LEAST_BYTES)):
        for _ in range(10):
            write_out(seconds)
        assert out.limit_bytes == limit
    # Never more than the kernel lets be unwritten before it slows down all alike.
    free = 300 << 20
    for _ in range(2):
        for _ in range(10):
            write_out(0.001)
        assert out.limit_bytes == free
    out.close()
    os.close(fd)


def test_a_higher_bound_lets_go_who_waits_under_the_lower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = os.open(tmp_path / "data", os.O_RDWR | os.O_CREAT)
    out = WriteOut(fd)
    one, other = out.account(), out.account()
    kicks = threading.Semaphore(0)
    clock = iter([0.0, 0.001])

    def monotonic() -> float:
        now = next(clock)
        if now:
            # The writing has ended, and the bound is the old one: who waits looks, and waits on.
            assert kicks.acquire(timeout=PATIENCE)
            spin(lambda: len(out._changed._waiters) == 1)  # type: ignore[attr-defined]
        return now

    monkeypatch.setattr(module, "monotonic", monotonic)
    monkeypatch.setattr(module, "_write_file", lambda fd: None)
    monkeypatch.setattr(pagecache, "unwritten", lambda: Unwritten(2 * MOST_BYTES, MOST_BYTES))
    monkeypatch.setattr(out._timer, "kick", kicks.release)
    write(one, LIMIT_BYTES)
    # A flush of what that was is under way, and goes on for as long as this test.
    with threads() as pool, out.writing():
        write(other, HALF)
        monkeypatch.setattr(out._timer, "_running", True)
        while kicks.acquire(blocking=False):
            pass
        flood = pool.submit(write, one, 2 * GRANT_BYTES)
        assert kicks.acquire(timeout=PATIENCE)
        spin(lambda: len(out._changed._waiters) == 1)  # type: ignore[attr-defined]
        out._look()
        assert out.limit_bytes > 2 * out.unwritten
        finish(flood)
    out.close()
    os.close(fd)


def test_the_kernel_knows_what_was_written_twice(out: WriteOut, disk: Disk) -> None:
    one, other = out.account(), out.account()
    write(one, HALF // 2)
    write(other, HALF // 4)
    asked = threading.Event()
    really = HALF // 4

    def tell() -> Unwritten:
        asked.set()
        return Unwritten(really, MOST_BYTES)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pagecache, "unwritten", tell)
        write(one, HALF // 4)
        assert asked.wait(PATIENCE)
        # From both alike, and nothing is written out for it.
        with out._changed:
            assert out.unwritten <= really + 2 * GRANT_BYTES
            assert one.unwritten > 2 * other.unwritten > 0
            assert out.unwritten == one.unwritten + other.unwritten
        assert disk.begun == 0
        # A flood of one page, as it were, never waits for the disk.
        write(one, 10 * LIMIT_BYTES)
        assert disk.begun == 0
        # Its last charges may not have been looked at yet.
        spin(lambda: out.unwritten < HALF)
        # But what is unwritten in truth is written out.
        really = LIMIT_BYTES
        write(one, HALF)
        spin(lambda: disk.begun == 1)
    disk.write(100)
    spin(lambda: out.unwritten < HALF)


def test_what_the_kernel_has_written_is_taken_off(out: WriteOut, disk: Disk) -> None:
    one, other = out.account(), out.account()
    write(other, HALF // 2)
    disk.told = Unwritten(0, MOST_BYTES)
    write(one, HALF // 2)
    spin(lambda: other.unwritten == 0)
    with out._changed:
        # What came after it looked is there still.
        assert out.unwritten == one.unwritten <= 4 * GRANT_BYTES
    assert disk.begun == 0


def written_stretches(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    calls: list[tuple[int, int]] = []
    with monkeypatch.context() as patch:
        patch.setattr(
            module,
            "_sync_file_range",
            lambda fd, offset, count, flags: calls.append((offset, count)),
        )
        with open(path, "rb") as file:
            module._write_file(file.fileno())
    return calls


@pytest.mark.parametrize("knows_holes", [True, False])
def test_all_of_a_file_is_written_a_stretch_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, knows_holes: bool
) -> None:
    real = os.lseek

    def lseek(fd: int, offset: int, whence: int) -> int:
        if whence == os.SEEK_DATA and not knows_holes:
            raise OSError(errno.EINVAL, "no such seek")
        return real(fd, offset, whence)

    monkeypatch.setattr(os, "lseek", lseek)
    path = tmp_path / "data"
    path.write_bytes(b"x" * (40 << 20))
    for steps, stretch in ((4096, 16 << 20), (2, 20 << 20)):
        monkeypatch.setattr(module, "_STEPS", steps)
        calls = written_stretches(path, monkeypatch)
        assert [offset for offset, _ in calls] == list(range(0, 40 << 20, stretch))
        assert {count for _, count in calls} == {stretch}


def test_holes_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data"
    path.touch()
    os.truncate(path, 1 << 40)
    assert written_stretches(path, monkeypatch) == []
    places = (5 << 20, 700 << 30, (1 << 40) - (1 << 20))
    with open(path, "r+b") as file:
        for place in places:
            file.seek(place)
            file.write(b"x" * (1 << 20))
    stretches = written_stretches(path, monkeypatch)
    assert [offset for offset, _ in stretches] == list(places)
    assert {count for _, count in stretches} == {16 << 20}


def test_nobody_waits_when_it_ends(out: WriteOut, disk: Disk) -> None:
    one = out.account()
    with threads() as pool:
        flood = pool.submit(write, one, 2 * LIMIT_BYTES)
        spin(lambda: len(out._changed._waiters) == 1)  # type: ignore[attr-defined]
        stopping = pool.submit(out.stop)
        disk.write()
        finish(stopping, flood)


def test_without_its_thread_nobody_waits(tmp_path: Path) -> None:
    device = DataDevice(tmp_path / "data", os.open(tmp_path / "data", os.O_RDWR | os.O_CREAT))
    one = device.writeout.account()
    write(one, 2 * LIMIT_BYTES)
    assert device.writeout.unwritten > LIMIT_BYTES
    device.flush()
    assert device.writeout.unwritten == 0
    device.close()


def test_the_address_is_that_of_the_credit(out: WriteOut) -> None:
    import ctypes

    one = out.account()
    one.renew()
    one.credit[0] = 12345
    assert ctypes.c_int64.from_address(one.address).value == 12345


def test_volumes_are_charged_for_what_they_write(rig: Rig) -> None:
    volume = rig.create()
    size = rig.pool.core.block_size
    volume.pwrite(b"x" * 4096, 0)
    granted = volume.account.unwritten
    assert granted == rig.device.writeout.unwritten == GRANT_BYTES + 4096
    # The rest of its block was a hole, and stays one.
    assert volume.account.credit[0] == GRANT_BYTES
    volume.pwrite(b"x" * 4096, 4096)
    assert volume.account.credit[0] == GRANT_BYTES - 4096
    admin.snapshot(rig.pool, [["v", "s"]])
    volume.pwrite(b"y" * 4096, 8192)
    # The rest of the block was copied.
    assert volume.account.credit[0] == GRANT_BYTES - 4096 - size
    rig.pool.core.flush()
    assert rig.device.writeout.unwritten == 0


def test_what_is_unwritten_is_written_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the kernel's own sync_file_range, on a file of any file system."""
    # It is not as much as is charged for it.
    monkeypatch.setattr(pagecache, "unwritten", lambda: None)
    path = tmp_path / "data"
    path.touch()
    os.truncate(path, 1 << 20)
    device = DataDevice.open(path)
    device.writeout.start()
    device.write(b"x" * (1 << 20), 0)
    account = device.writeout.account()
    account.credit[0] = -HALF
    account.renew()
    spin(lambda: device.writeout.unwritten == 0)
    device.writeout.stop()
    device.close()
    assert path.read_bytes() == b"x" * (1 << 20)
