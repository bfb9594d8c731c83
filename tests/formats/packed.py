"""Pools made by the program as it was, packed: what was written once opens ever after.

    python -m tests.formats.packed NAME     packs `NAME.clean` and `NAME.killed`, by this program

NAME is the version of the formats, one more than the last in this folder. Packed ones are never
made anew. `clean` was stopped; `killed` was not, and has notes that no commit holds, which were
flushed.

Both hold volume `vol` of 4 MiB with a label, a limit and a rule, its snapshot `snap`, and `doomed`,
which was deleted. What they hold is in `CONTENT`.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.support.pools import PoolRig

HERE: Final = Path(__file__).parent
BLOCK: Final = 64 << 10
SIZE: Final = 4 << 20

# What each block held that is not zero, by volume; what `vol` holds of a killed pool besides.
CONTENT: Final = {
    "vol": {0: b"rewritten", 1: b"first", 9: b"new"},
    "snap": {0: b"first", 1: b"first", 5: b"discarded later"},
}
NOTED: Final = {12: b"noted"}


def content(blocks: dict[int, bytes]) -> bytes:
    """A volume's bytes."""
    whole = bytearray(SIZE)
    for block, text in blocks.items():
        whole[block * BLOCK : block * BLOCK + len(text)] = text
    return bytes(whole)


def unpack(name: str, folder: Path) -> Path:
    """Unpack a pool into a folder, and return its directory. Extended attributes come with it."""
    tar("--extract", "--directory", str(folder), "--file", str(HERE / f"{name}.tar.xz"))
    return folder / "pool"


def pack(name: str, directory: Path) -> None:
    """Pack a pool's directory."""
    archive = str(HERE / f"{name}.tar.xz")
    out = ("--exclude=run", "--exclude=*-lock", "--owner=0", "--group=0", "--sparse")
    folder = ("--directory", str(directory.parent), directory.name)
    tar("--create", "--file", archive, *out, *folder)


def tar(*arguments: str) -> None:
    subprocess.run(["tar", "--xz", "--xattrs", "--xattrs-include=user.*", *arguments], check=True)


def make(pool: PoolRig) -> None:
    """Make the pool, served."""
    pool.init("16M", cache="page")
    pool.start()
    for volume in ("vol", "doomed"):
        pool.create(volume, "4M")
    with pool.connect("vol") as client:
        for block in (0, 1):
            client.write(block * BLOCK, b"first")
        client.write(5 * BLOCK, b"discarded later")
        client.flush()
        pool.snapshot("vol", "snap")
        client.write(0, b"rewritten")
        client.write(9 * BLOCK, b"new")
        client.trim(5 * BLOCK, BLOCK)
        client.flush()
    pool.cli("set", "--volume", "vol", "label.purpose=formats", "iops=5000", "allow=user:0")
    pool.delete("doomed")


def main() -> None:
    """Pack both."""
    (name,) = sys.argv[1:]
    # On a disk: extended attributes are part of the format.
    with tempfile.TemporaryDirectory(dir=HERE) as folder:
        for end in ("clean", "killed"):
            pool = PoolRig(Path(folder) / end / "pool")
            pool.directory.parent.mkdir()
            make(pool)
            if end == "clean":
                pool.stop()
            else:
                with pool.connect("vol") as client, pool.rpc() as rpc:
                    rpc.call("commit")
                    for block, text in NOTED.items():
                        client.write(block * BLOCK, text)
                    client.flush()
                    # Before the commit that comes each second; the test says whether it was.
                    pool.kill()
            pack(f"{name}.{end}", pool.directory)


if __name__ == "__main__":
    main()
