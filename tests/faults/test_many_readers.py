"""Readers of the metadata on a full disk: LMDB's table of them is a file with a hole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.faults.mounts import small_disk
from thinmeta.store.lmdb import LmdbStore

READ = """
import sys
from contextlib import ExitStack
from pathlib import Path
from thinmeta.store.lmdb import LmdbStore
store = LmdbStore(Path(sys.argv[1]), read_only=True)
with ExitStack() as stack:
    for _ in range(int(sys.argv[2])):
        stack.enter_context(store.snapshot())
"""


def test_readers_beyond_the_first_page_of_their_table(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1M") as disk:
        path = disk.path / "metadata.lmdb"
        LmdbStore(path, create=True).close()
        with (disk.path / "full").open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                pass
        for readers in (60, 140):
            done = subprocess.run(
                [sys.executable, "-c", READ, str(path), str(readers)], check=False
            )
            # Not SIGBUS, whatever else is said.
            assert done.returncode >= 0, readers
