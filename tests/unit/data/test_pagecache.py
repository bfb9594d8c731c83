"""What the kernel tells of its page cache, and where it does not."""

import mmap
from pathlib import Path

import pytest

from thinpoold import pagecache

TOLD = """nr_free_pages 1000
nr_dirty 30
nr_writeback 4
nr_writeback_temp 99
pgpgin 5
nr_dirty_threshold 300
nr_dirty_background_threshold 100
"""


def test_this_kernel_tells() -> None:
    told = pagecache.unwritten()
    assert told is not None
    assert told.now >= 0
    assert told.free > 0


def test_what_it_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "vmstat"
    monkeypatch.setattr(pagecache, "_VMSTAT", path)
    path.write_text(TOLD)
    assert pagecache.unwritten() == pagecache.Unwritten(34 * mmap.PAGESIZE, 200 * mmap.PAGESIZE)


@pytest.mark.parametrize(
    "content", [None, "", "nr_dirty 30\n", TOLD.replace("30", "many"), "nr_dirty\n"]
)
def test_it_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    path = tmp_path / "vmstat"
    monkeypatch.setattr(pagecache, "_VMSTAT", path)
    if content is not None:
        path.write_text(content)
    assert pagecache.unwritten() is None
