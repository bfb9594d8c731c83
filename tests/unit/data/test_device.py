"""The data device, on a real file: short transfers, holes, copies, and what is refused."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.tools import run
from thinpoold import device as module
from thinpoold import fallocate
from thinpoold.device import FOLIO_BYTES, DataDevice
from thinpoold.errors import DeviceError

SIZE = 8 << 20


@pytest.fixture
def device(tmp_path: Path) -> Iterator[DataDevice]:
    path = tmp_path / "data"
    path.touch()
    os.truncate(path, SIZE)
    opened = DataDevice.open(path)
    yield opened
    opened.close()


def content(device: DataDevice, offset: int, count: int) -> bytes:
    buffer = bytearray(count)
    device.read(buffer, offset)
    return bytes(buffer)


def test_reads_and_writes(device: DataDevice) -> None:
    device.write(b"abc", 5)
    device.write_all([b"12", memoryview(b"34"), bytearray(b"56")], 8)
    assert content(device, 4, 12) == b"\0abc123456\0\0"


def test_short_transfers_are_continued(device: DataDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    real_read, real_write = os.preadv, os.pwritev

    def short_read(fd: int, buffers: Any, offset: int) -> int:
        return real_read(fd, [memoryview(buffers[0])[:7]], offset)

    def short_write(fd: int, buffers: Any, offset: int) -> int:
        return real_write(fd, [memoryview(buffers[0])[:5]], offset)

    monkeypatch.setattr(os, "preadv", short_read)
    monkeypatch.setattr(os, "pwritev", short_write)
    data = bytes(range(100))
    device.write(data, 10)
    device.write_all([data, b"", data[:3], data], 1000)
    assert content(device, 10, 100) == data
    assert content(device, 1000, 203) == data + data[:3] + data


def test_no_write_makes_a_large_folio(device: DataDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    real = os.pwritev

    def noted(fd: int, buffers: Any, offset: int) -> int:
        calls.append((offset, sum(map(len, buffers))))
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "pwritev", noted)
    data = bytes(range(256)) * (3 * FOLIO_BYTES // 256)
    begin = FOLIO_BYTES - 4096
    whole = [(begin, 4096), *((at * FOLIO_BYTES, FOLIO_BYTES) for at in (1, 2))]
    whole.append((3 * FOLIO_BYTES, FOLIO_BYTES - 4096))
    device.write(data, begin)
    assert calls == whole
    assert content(device, begin, len(data)) == data
    calls.clear()
    device.write_all([data[:5000], data[5000:]], begin)
    assert calls == whole
    assert content(device, begin, len(data)) == data
    calls.clear()
    # What lies within one is one call.
    device.write(data[:FOLIO_BYTES], FOLIO_BYTES)
    device.write_all([data[:1], data[1:2]], FOLIO_BYTES - 2)
    assert calls == [(FOLIO_BYTES, FOLIO_BYTES), (FOLIO_BYTES - 2, 2)]


def test_many_buffers(device: DataDevice) -> None:
    device.write_all([b"%04d" % number for number in range(3000)], 0)
    assert content(device, 4 * 2999, 4) == b"2999"


def test_the_end_of_the_device_is_an_error(device: DataDevice) -> None:
    with pytest.raises(DeviceError) as caught:
        content(device, SIZE - 10, 20)
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("able", [True, False])
def test_copy(device: DataDevice, monkeypatch: pytest.MonkeyPatch, able: bool) -> None:
    if not able:

        def refuse(*_: Any) -> int:
            raise OSError(errno.EXDEV, "no")

        monkeypatch.setattr(os, "copy_file_range", refuse)
    data = os.urandom(3 << 20)
    device.write(data, 512)
    device.copy(512, 4 << 20, len(data))
    assert content(device, 4 << 20, len(data)) == data


@pytest.mark.parametrize("able", [True, False])
def test_zero_and_punch(device: DataDevice, monkeypatch: pytest.MonkeyPatch, able: bool) -> None:
    if not able:
        monkeypatch.setattr(fallocate, "_call", lambda *_: False)
    device.write(b"x" * SIZE, 0)
    device.zero(1000, 3 << 20)
    assert content(device, 990, 20) == b"x" * 10 + bytes(10)
    assert content(device, 1000 + (3 << 20) - 10, 20) == bytes(10) + b"x" * 10
    assert device.zeroes_fast is able
    assert device.punch(4 << 20, 1 << 20) is able
    assert content(device, 4 << 20, 10) == (bytes(10) if able else b"x" * 10)


def test_a_block_device_is_discarded(tmp_path: Path) -> None:
    backing = tmp_path / "backing"
    backing.touch()
    os.truncate(backing, SIZE)
    done = run("losetup", "--find", "--show", str(backing), check=False)
    if done.returncode:
        pytest.skip(f"no loop device here: {done.stderr.strip()}")
    loop = done.stdout.strip()
    try:
        opened = DataDevice.open(Path(loop))
        opened.write(b"x" * SIZE, 0)
        opened.flush()
        full = backing.stat().st_blocks
        assert opened.punch(1 << 20, 4 << 20)
        opened.flush()
        assert backing.stat().st_blocks * 512 <= full * 512 - (4 << 20)
        assert not opened.is_zero(1 << 20, 4 << 20)
        assert content(opened, 0, 10) == b"x" * 10
        opened.close()
    finally:
        run("losetup", "--detach", loop)


def test_holes_are_known_to_be_zero(device: DataDevice) -> None:
    assert device.is_zero(0, SIZE)
    device.write(b"\0", 1 << 20)
    assert device.is_zero(0, 1 << 20)
    assert not device.is_zero(0, (1 << 20) + 1)
    assert device.is_zero(2 << 20, SIZE - (2 << 20))
    # Past the end nothing is known.
    assert not device.is_zero(2 << 20, SIZE)
    device.punch(0, SIZE)
    assert device.is_zero(0, SIZE)


def test_errors_carry_the_systems_errno(
    device: DataDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("preadv", "pwritev", "fdatasync", "copy_file_range", "lseek"):
        monkeypatch.setattr(os, name, fail)
    monkeypatch.setattr(fallocate, "_call", fail)
    calls: list[Callable[[], object]] = [
        lambda: device.read(bytearray(1), 0),
        lambda: device.write(b"x", 0),
        lambda: device.write_all([b"x"], 0),
        lambda: device.copy(0, 10, 5),
        device.flush,
        lambda: device.zero(0, 10),
        lambda: device.punch(0, 10),
        lambda: device.is_zero(0, 10),
        lambda: device.resize(SIZE * 2),
    ]
    for call in calls:
        with pytest.raises(DeviceError) as caught:
            call()
        assert caught.value.errno == errno.ENOSPC
    device.prefetch(0, SIZE)


def test_resize(device: DataDevice) -> None:
    device.resize(2 * SIZE)
    assert (device.size, os.stat(device.path).st_size) == (2 * SIZE, 2 * SIZE)
    device.resize(SIZE)
    assert device.size == 2 * SIZE


def test_a_device_is_one_pools(device: DataDevice) -> None:
    with pytest.raises(DeviceError) as caught:
        DataDevice.open(device.path)
    assert caught.value.errno == errno.EBUSY
    with pytest.raises(DeviceError):
        DataDevice.open(device.path, read_only=True)
    path = device.path
    device.close()
    DataDevice.open(path).close()


def test_what_is_no_device_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none", Path("/dev/null")):
        with pytest.raises(DeviceError):
            DataDevice.open(path)


def test_a_large_range_is_zeroed_without_fallocate(
    device: DataDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fallocate, "_call", lambda *_: False)
    monkeypatch.setattr(module, "_PIECE", 1000)
    device.write(b"x" * 10000, 0)
    device.zero(10, 5432)
    assert content(device, 0, 10000) == b"x" * 10 + bytes(5432) + b"x" * (10000 - 5442)
