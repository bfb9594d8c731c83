"""The data device past the page cache, on a real file; where there is no O_DIRECT, the refusals."""

import ctypes
import errno
import mmap
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from thinpoold import direct, fallocate, mapping_table
from thinpoold.datacache import MIN_BYTES, PIECE_BYTES
from thinpoold.device import DataDevice
from thinpoold.direct import DirectDevice, check_direct
from thinpoold.errors import DeviceError

SIZE = 8 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.touch()
    os.truncate(path, SIZE)
    try:
        check_direct(path)
    except DeviceError:
        pytest.skip("no O_DIRECT where pytest keeps its files")
    return path


@pytest.fixture
def device(path: Path) -> Iterator[DirectDevice]:
    opened = DirectDevice.open_direct(path, MIN_BYTES)
    yield opened
    opened.close()


def resident(device: DirectDevice) -> int:
    """Bytes of the cache's memory that have pages. What else the process has comes and goes."""
    memory = device.cache._memory
    found = ctypes.create_string_buffer(-(-len(memory) // mmap.PAGESIZE))
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert not mapping_table._mincore(address, len(memory), found)
    return found.raw.count(b"\1") * mmap.PAGESIZE


def content(device: DataDevice, offset: int, count: int) -> bytes:
    buffer = bytearray(count)
    device.read(buffer, offset)
    return bytes(buffer)


def test_a_write_is_in_the_file_when_it_returns(device: DirectDevice, path: Path) -> None:
    rng = random.Random(5)
    model = bytearray(SIZE)
    for _ in range(60):
        offset = rng.randrange(SIZE - 1)
        data = rng.randbytes(min(rng.choice((1, 512, 5000, 200_000)), SIZE - offset))
        if rng.random() < 0.5:
            device.write(data, offset)
        else:
            device.write_all([data[:100], memoryview(data)[100:]], offset)
        model[offset : offset + len(data)] = data
        # By another descriptor, as a process that comes after this one sees it.
        assert path.read_bytes() == model
        assert content(device, max(0, offset - 10), 30) == model[max(0, offset - 10) :][:30]
    assert content(device, 0, SIZE) == model


def test_the_kernel_keeps_nothing_of_it(device: DirectDevice, path: Path) -> None:
    if os.statvfs(path).f_bsize and _is_tmpfs(path):
        pytest.skip("a file in memory is in the page cache")
    device.write(b"x" * (1 << 20), 0)
    content(device, 0, SIZE)
    assert _pages_cached(path) == 0
    assert 0 < device.cache.resident_bytes <= MIN_BYTES


def _is_tmpfs(path: Path) -> bool:
    types = {}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        types[where] = kind
    at = next(one for one in (path, *path.parents) if str(one) in types)
    return types[str(at)] == "tmpfs"


def _pages_cached(path: Path) -> int:
    """How many pages of a file are in memory, by mincore(2)."""
    import ctypes
    import mmap

    with open(path, "rb") as file, mmap.mmap(file.fileno(), SIZE, mmap.MAP_PRIVATE) as memory:
        pages = SIZE // mmap.PAGESIZE
        found = (ctypes.c_ubyte * pages)()
        at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        assert not ctypes.CDLL(None).mincore(ctypes.c_void_p(at), ctypes.c_size_t(SIZE), found)
        return sum(one & 1 for one in found)


@pytest.mark.parametrize("able", [True, False])
def test_zero_punch_and_copy(
    device: DirectDevice, monkeypatch: pytest.MonkeyPatch, able: bool
) -> None:
    if not able:
        monkeypatch.setattr(fallocate, "_call", lambda *_: False)
    model = bytearray(random.Random(6).randbytes(SIZE))
    device.write(model, 0)
    content(device, 0, SIZE)
    device.zero(1000, 3 << 20)
    model[1000 : 1000 + (3 << 20)] = bytes(3 << 20)
    assert content(device, 0, SIZE) == model
    device.copy(4 << 20, 1 << 20, 1_500_000)
    model[1 << 20 : (1 << 20) + 1_500_000] = model[4 << 20 : (4 << 20) + 1_500_000]
    assert content(device, 0, SIZE) == model
    assert device.punch(6 << 20, 1 << 20) is able
    if able:
        model[6 << 20 : 7 << 20] = bytes(1 << 20)
        assert device.is_zero(6 << 20, 1 << 20)
    assert content(device, 0, SIZE) == model
    device.flush()


def test_prefetch_reads_ahead(device: DirectDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    device.write(b"a" * 5000, 0)
    device.prefetch(0, 100_000)
    calls: list[Any] = []
    monkeypatch.setattr(device, "read_at", lambda *given: calls.append(given))
    assert content(device, 0, 100_000) == b"a" * 5000 + bytes(95_000)
    assert calls == []


def test_idle_memory_is_given_back(device: DirectDevice) -> None:
    assert resident(device) < SIZE // 2
    for offset in range(0, SIZE, 1 << 20):
        content(device, offset, 1 << 20)
    assert device.cache.resident_bytes == SIZE
    assert resident(device) > SIZE // 2
    for _ in range(20):
        device.age()
    assert device.cache.resident_bytes == 0
    assert resident(device) < SIZE // 2
    assert content(device, 0, 10) == bytes(10)


def test_short_transfers_are_continued(
    device: DirectDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_read, real_write = os.preadv, os.pwritev

    def short_read(fd: int, buffers: Any, offset: int) -> int:
        return real_read(fd, [memoryview(buffers[0])[:4096]], offset)

    def short_write(fd: int, buffers: Any, offset: int) -> int:
        return real_write(fd, [memoryview(buffers[0])[:4096]], offset)

    monkeypatch.setattr(os, "preadv", short_read)
    monkeypatch.setattr(os, "pwritev", short_write)
    data = random.Random(7).randbytes(100_000)
    device.write(data, 777)
    assert content(device, 777, len(data)) == data
    device.cache.age()
    with device.cache.change(0, SIZE):
        pass
    assert content(device, 777, len(data)) == data


def test_errors_name_the_operation(device: DirectDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwritev", fail)
    with pytest.raises(DeviceError, match="write to the data device: No space") as caught:
        device.write(b"x" * 512, 0)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(DeviceError, match="read of the data device"):
        content(device, SIZE - 10, 20)
    device.prefetch(SIZE, 100)

    monkeypatch.setattr(fallocate, "_call", fail)
    with pytest.raises(DeviceError, match="zeroing of the data device: No space") as caught:
        device.zero(0, 1 << 20)
    assert caught.value.errno == errno.ENOSPC


def test_a_cache_too_large_for_the_machine_is_refused(path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(DeviceError, match="a data cache of 1P"):
        DirectDevice.open_direct(path, 1 << 50)
    assert os.listdir("/proc/self/fd") == before


def test_where_there_is_no_direct_io_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open = os.open

    def refuse(where: Any, flags: int, *more: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_open(where, flags, *more)

    def refuse_read(*_: Any) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    for name, function in (("open", refuse), ("preadv", refuse_read)):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, function)
            for attempt in (
                lambda: DirectDevice.open_direct(path, MIN_BYTES),
                lambda: check_direct(path),
            ):
                with pytest.raises(DeviceError, match="use cache=page"):
                    attempt()
    with pytest.raises(DeviceError, match="No such file"):
        check_direct(path.with_name("none"))
    # Nothing holds the lock.
    DataDevice.open(path).close()


def test_a_device_in_use_is_refused(device: DirectDevice, path: Path) -> None:
    with pytest.raises(DeviceError, match="in use by another pool"):
        DirectDevice.open_direct(path, MIN_BYTES)


def test_alignment_is_what_the_file_system_says(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        align = direct._alignment(fd, regular=True)
    finally:
        os.close(fd)
    assert align & (align - 1) == 0
    assert PIECE_BYTES % align == 0
