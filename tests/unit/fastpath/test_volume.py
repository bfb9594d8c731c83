"""The C side of a volume, called as nbdkit and Python call it."""

import ctypes
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.fastpath import READ, SOURCES, WAITS, WRITE, Hold
from thinpoold import fastpath, mapping_table
from thinpoold.fastlib import FastVolume, Library
from thinpoold.gate import Gate
from thinpoold.mapping_table import MappingTable
from thinpoold.provision import MAX_RUN_BYTES

BLOCK = 65536
DATA_BLOCKS = 8


def content(block: int, size: int = BLOCK) -> bytes:
    return bytes([block + 1]) * size


@pytest.fixture
def device(tmp_path: Path) -> Iterator[int]:
    """A data device each block of which is full of its number, plus one."""
    path = tmp_path / "data"
    path.write_bytes(b"".join(content(n) for n in range(DATA_BLOCKS)))
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


class Shown:
    """A volume of some blocks that the C side is shown."""

    def __init__(
        self,
        library: Library,
        fd: int,
        blocks: int,
        *,
        block_size: int = BLOCK,
        writable: bool = True,
        size: int | None = None,
    ) -> None:
        self.library = library
        self.table = MappingTable(blocks, library.store)
        self.volume = FastVolume(library)
        self.credit = ctypes.c_int64(1 << 40)
        self.volume.show(
            self.table,
            blocks * block_size if size is None else size,
            block_size,
            fd,
            writable=writable,
            credit=ctypes.addressof(self.credit),
        )

    def read(self, offset: int, count: int) -> bytes | None:
        """What C reads; None where it leaves that to Python."""
        buffer = ctypes.create_string_buffer(max(count, 1))
        done = self.library.read(self.volume.pointer, buffer, count, offset)
        return buffer.raw[:count] if done else None

    def write(self, offset: int, data: bytes) -> bool:
        return bool(self.library.write(self.volume.pointer, data, len(data), offset))


def test_both_sides_mean_the_same_by_an_entry() -> None:
    header = (SOURCES / "volume.h").read_text()
    assert f"ENTRY_PRESENT UINT64_C ({mapping_table.PRESENT})" in header
    assert f"ENTRY_WRITABLE UINT64_C ({mapping_table.WRITABLE})" in header
    assert f"ENTRY_SHIFT {mapping_table.DATA_SHIFT}\n" in header


def test_both_sides_have_the_same_interface() -> None:
    [number] = re.findall(r'#define INTERFACE "(\d+)"', (SOURCES / "filter.c").read_text())
    assert int(number) == fastpath.INTERFACE


def test_what_is_unknown_is_left_to_python(library: Library, device: int) -> None:
    shown = Shown(library, device, 4)
    assert shown.read(0, 512) is None
    assert not shown.write(0, b"x" * 512)


def test_a_mapped_block_is_read_and_written(library: Library, device: int) -> None:
    shown = Shown(library, device, 4)
    shown.table.set_run(1, 5, 1, writable=True)
    assert shown.read(BLOCK + 512, 1024) == content(5, 1024)
    assert shown.write(BLOCK + 512, b"x" * 1024)
    assert os.pread(device, 3 * 512 + 512, 5 * BLOCK) == (
        content(5, 512) + b"x" * 1024 + content(5, 512)
    )
    assert os.pread(device, BLOCK, 4 * BLOCK) == content(4)


def test_a_shared_block_is_read_alone(library: Library, device: int) -> None:
    shown = Shown(library, device, 4)
    shown.table.set_run(0, 2, 1, writable=False)
    assert shown.read(0, BLOCK) == content(2)
    assert not shown.write(0, b"x" * 512)
    assert os.pread(device, BLOCK, 2 * BLOCK) == content(2)


def test_a_read_only_volume_is_not_written(library: Library, device: int) -> None:
    shown = Shown(library, device, 4, writable=False)
    shown.table.set_run(0, 2, 1, writable=True)
    assert not shown.write(0, b"x" * 512)


def test_a_request_over_several_blocks_is_all_or_nothing(library: Library, device: int) -> None:
    shown = Shown(library, device, 4)
    shown.table.set_run(0, 2, 2, writable=True)
    shown.table.set_run(2, 0, 1, writable=False)
    assert shown.read(0, 3 * BLOCK) == content(2) + content(3) + content(0)
    assert shown.read(0, 3 * BLOCK + 1) is None
    assert not shown.write(0, b"x" * (2 * BLOCK + 1))
    assert os.pread(device, BLOCK, 2 * BLOCK) == content(2)
    assert shown.write(BLOCK - 1, b"xx")
    assert os.pread(device, 2, 3 * BLOCK - 1) == b"xx"


@pytest.mark.parametrize(
    ("offset", "count"),
    [
        (4 * BLOCK, 1),
        (4 * BLOCK - 1, 2),
        (0, 0),
        (0, 4 * BLOCK + 1),
        (1 << 63, 512),
        ((1 << 64) - 512, 512),
        ((1 << 64) - 1, (1 << 32) - 1),
    ],
)
def test_past_the_end_nothing_is_looked_up(
    library: Library, device: int, offset: int, count: int
) -> None:
    shown = Shown(library, device, 4)
    shown.table.set_run(0, 0, 4, writable=True)
    buffer = ctypes.create_string_buffer(5 * BLOCK)
    for request in (library.read, library.write):
        assert not request(shown.volume.pointer, buffer, count, offset)


def test_a_size_past_the_table_does_not_count(library: Library, device: int) -> None:
    shown = Shown(library, device, 4, size=1 << 62)
    shown.table.set_run(0, 0, 4, writable=True)
    assert shown.read(4 * BLOCK - 512, 512) == content(3, 512)
    assert shown.read(4 * BLOCK, 512) is None


def test_a_volume_may_end_within_a_block(library: Library, device: int) -> None:
    shown = Shown(library, device, 4, size=3 * BLOCK + 1024)
    shown.table.set_run(0, 0, 4, writable=True)
    assert shown.read(3 * BLOCK, 1024) == content(3, 1024)
    assert shown.read(3 * BLOCK, 1025) is None


def test_what_the_device_does_not_do_is_left_to_python(library: Library, device: int) -> None:
    shown = Shown(library, device, 4)
    # Half of the first, and all of the second, lie past the device's end.
    os.ftruncate(device, DATA_BLOCKS * BLOCK - BLOCK // 2)
    shown.table.set_run(0, DATA_BLOCKS - 1, 2, writable=True)
    assert shown.read(0, BLOCK // 2) == content(DATA_BLOCKS - 1, BLOCK // 2)
    assert shown.read(0, BLOCK) is None
    assert shown.read(BLOCK, 512) is None


def test_a_failing_device_is_left_to_python(library: Library) -> None:
    read_only = os.open("/dev/null", os.O_RDONLY)
    try:
        shown = Shown(library, read_only, 4)
        shown.table.set_run(0, 0, 4, writable=True)
        assert not shown.write(0, b"x" * 512)
    finally:
        os.close(read_only)


def test_writes_use_up_the_credit_and_reads_do_not(library: Library, device: int) -> None:
    shown = Shown(library, device, 4)
    shown.table.set_run(0, 0, 4, writable=True)
    shown.credit.value = 1024
    assert shown.read(0, 4096) is not None
    assert shown.write(0, b"x" * 512)
    assert shown.write(0, b"x" * 512)
    assert shown.credit.value == 0
    assert not shown.write(0, b"x" * 512)
    # Python takes that write into account, and renews the credit.
    assert shown.credit.value == 0
    shown.credit.value = 512
    assert not shown.write(0, b"x" * 513)
    assert shown.write(0, b"x" * 512)


@settings(max_examples=200)
@given(data=st.data())
def test_it_reads_what_a_model_reads(library: Library, data: st.DataObject) -> None:
    """Any table, any block size, any request: what C reads is there, and it reads what it can."""
    block_size = data.draw(st.sampled_from([512, 4096, 3 * 512]))
    entries = data.draw(st.lists(st.none() | st.integers(0, DATA_BLOCKS - 1), max_size=12))
    size = len(entries) * block_size
    offset = data.draw(st.integers(0, size))
    count = data.draw(st.integers(0, size - offset))
    fd = os.memfd_create("device")
    try:
        os.write(fd, b"".join(content(n, block_size) for n in range(DATA_BLOCKS)))
        shown = Shown(library, fd, len(entries), block_size=block_size)
        for block, entry in enumerate(entries):
            if entry is not None:
                shown.table.set_run(block, entry, 1, writable=False)
        wanted = b"".join(
            content(entry, block_size) if entry is not None else bytes(block_size)
            for entry in entries
        )[offset : offset + count]
        known = count > 0 and 0 not in wanted
        assert shown.read(offset, count) == (wanted if known else None)
    finally:
        os.close(fd)


# --- the gate -----------------------------------------------------------------------------------


def test_nobody_is_let_in_while_it_is_closed(library: Library, device: int) -> None:
    shown = Shown(library, device, 4)
    shown.table.set_run(0, 0, 4, writable=True)
    gate = Gate(shown.volume)
    with gate.closed():
        assert shown.read(0, 512) is None
        assert not shown.write(0, b"x" * 512)
    assert shown.read(0, 512) is not None
    gate.synchronize()
    assert shown.read(0, 512) is not None


def test_closers_overlap(library: Library, device: int) -> None:
    shown = Shown(library, device, 4)
    shown.table.set_run(0, 0, 4, writable=True)
    gate = Gate(shown.volume)
    with gate.closed():
        # As a resize, which shows another table with the gate closed.
        shown.volume.withdraw()
        shown.volume.show(shown.table, 4 * BLOCK, BLOCK, device, writable=True)
        assert shown.read(0, 512) is None
    assert shown.read(0, 512) is not None


def test_a_gate_that_failed_to_close_is_open(library: Library, device: int) -> None:
    shown = Shown(library, device, 4)
    shown.table.set_run(0, 0, 4, writable=True)
    gate = Gate(shown.volume)
    with pytest.raises(ZeroDivisionError), gate.closed():
        _ = 1 // 0
    assert shown.read(0, 512) is not None


def test_withdrawn_it_serves_nothing(library: Library, device: int) -> None:
    shown = Shown(library, device, 4)
    shown.table.set_run(0, 0, 4, writable=True)
    shown.volume.withdraw()
    shown.volume.withdraw()
    assert shown.read(0, 512) is None
    shown.volume.show(shown.table, 4 * BLOCK, BLOCK, device, writable=True)
    assert shown.read(0, 512) is not None


@pytest.mark.parametrize("how", ["closed", "synchronize", "withdraw"])
def test_whoever_closes_waits_for_those_inside(
    hooks: Path, device: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    hold = Hold(tmp_path / "hold")
    monkeypatch.setenv("FASTPATH_TEST_HOOKS", str(hold.directory))
    shown = Shown(Library(hooks), device, 4)
    shown.table.set_run(0, 0, 4, writable=True)
    gate = Gate(shown.volume)
    seen: list[bytes | None] = []
    order: list[str] = []

    def read() -> None:
        seen.append(shown.read(0, 512))
        order.append("read")

    def close() -> None:
        if how == "closed":
            with gate.closed():
                order.append("closed")
        elif how == "synchronize":
            gate.synchronize()
            order.append("closed")
        else:
            shown.volume.withdraw()
            order.append("closed")

    hold.arm(READ)
    reader = threading.Thread(target=read)
    reader.start()
    assert hold.next() == READ
    closer = threading.Thread(target=close)
    closer.start()
    assert hold.next() == WAITS
    assert order == []
    # Nor are others let in meanwhile.
    assert shown.read(0, 512) is None
    hold.go()
    closer.join()
    reader.join()
    assert seen == [content(0, 512)]
    assert sorted(order) == ["closed", "read"]
    hold.close()


# Several portions, and not a multiple of one.
LARGE = 10 * (1 << 20) + 512


def large(library: Library, device: int) -> Shown:
    """A volume of 11 MiB, all of it in the few data blocks that there are."""
    shown = Shown(library, device, 176)
    for block in range(176):
        shown.table.set_run(block, block % DATA_BLOCKS, 1, writable=True)
    return shown


def test_both_sides_have_the_same_portion() -> None:
    source = (SOURCES / "volume.c").read_text()
    assert f"#define PORTION_BYTES ({MAX_RUN_BYTES >> 20}u << 20)" in source


def test_a_request_of_several_portions(library: Library, device: int) -> None:
    shown = large(library, device)
    whole = b"".join(content(block % DATA_BLOCKS) for block in range(176))
    assert shown.read(300, LARGE) == whole[300 : 300 + LARGE]
    assert shown.write(0, b"x" * LARGE)
    assert os.pread(device, BLOCK, 3 * BLOCK) == b"x" * BLOCK
    assert shown.credit.value == (1 << 40) - LARGE


def test_of_a_large_request_for_python_nothing_is_done(library: Library, device: int) -> None:
    shown = large(library, device)
    shown.table.set_run(150, 1, 1, writable=False)
    shown.table.drop_range(155, 156)
    assert not shown.write(0, b"x" * LARGE)
    assert os.pread(device, BLOCK, 0) == content(0)
    assert shown.read(0, LARGE) is None
    assert shown.read(0, 176 * BLOCK + 512) is None


@pytest.mark.parametrize("kind", [READ, WRITE])
def test_whoever_closes_waits_for_one_portion(
    hooks: Path, device: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """What is left of the request goes to Python, which waits at its own gate."""
    hold = Hold(tmp_path / "hold")
    monkeypatch.setenv("FASTPATH_TEST_HOOKS", str(hold.directory))
    shown = large(Library(hooks), device)
    gate = Gate(shown.volume)
    seen: list[object] = []

    def request() -> None:
        done = shown.read(0, LARGE) if kind == READ else shown.write(0, b"x" * LARGE)
        seen.append(done)

    def close() -> None:
        with gate.closed():
            requester.join()

    hold.arm(kind)
    requester = threading.Thread(target=request)
    requester.start()
    assert hold.next() == kind
    closer = threading.Thread(target=close)
    closer.start()
    assert hold.next() == WAITS
    hold.go()
    closer.join()
    assert seen in ([None], [False])
    hold.close()


# --- lives --------------------------------------------------------------------------------------


def test_volumes_are_given_back(library: Library, device: int) -> None:
    before = library.count()
    volumes = [Shown(library, device, 4) for _ in range(100)]
    assert library.count() == before + 100
    volumes.clear()
    assert library.count() == before


def test_the_table_refuses_what_is_not_in_it(library: Library) -> None:
    table = MappingTable(4, library.store)
    for begin, count in ((-1, 1), (4, 1), (3, 2), (0, 5)):
        with pytest.raises(IndexError):
            table.set_run(begin, 0, count, writable=True)
        with pytest.raises(IndexError):
            table.drop_range(begin, begin + count)
    table.close()
