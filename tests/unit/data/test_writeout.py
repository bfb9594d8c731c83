"""Bounded write-out: what is charged, who waits and for what, and that it is written in truth."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.data.rigs import PATIENCE, Rig, finish, spin, threads
from thinpoold import admin
from thinpoold import writeout as module
from thinpoold.device import DataDevice
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
        monkeypatch.setattr(module, "_write_file", self._write)
        monkeypatch.setattr(module, "monotonic", lambda: self._now)

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
    monkeypatch.setattr(module, "monotonic", lambda: clock[0])
    fd = os.open(tmp_path / "data", os.O_RDWR | os.O_CREAT)
    out = WriteOut(fd)
    one = out.account()

    def write_out(seconds: float) -> int:
        def pass_time(_: int) -> None:
            clock[0] += seconds

        monkeypatch.setattr(module, "_write_file", pass_time)
        write(one, FIRST_BYTES)
        amount = out.unwritten
        out._write_window()
        assert out.unwritten == 0
        return amount

    # The mean of what it was and what was seen.
    amount = write_out(4.0)
    assert out.limit_bytes == (FIRST_BYTES + amount // 4) // 2
    for seconds, limit in ((0.001, MOST_BYTES), (1000.0, LEAST_BYTES)):
        for _ in range(10):
            write_out(seconds)
        assert out.limit_bytes == limit
    out.close()
    os.close(fd)


def test_all_of_a_file_is_written_a_stretch_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(
        module, "_sync_file_range", lambda fd, offset, count, flags: calls.append((offset, count))
    )
    path = tmp_path / "data"
    for size in (1, 40 << 20, 1 << 40):
        calls.clear()
        path.touch()
        os.truncate(path, size)
        with open(path, "rb") as file:
            module._write_file(file.fileno())
        assert 0 < len(calls) <= 4097
        assert calls[0][0] == 0
        for (offset, count), following in zip(
            calls, [*calls[1:], (sum(calls[-1]), 0)], strict=True
        ):
            assert offset + count == following[0]
        assert sum(calls[-1]) >= size


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


def test_what_is_unwritten_is_written_out(tmp_path: Path) -> None:
    """With the kernel's own sync_file_range, on a file of any file system."""
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
