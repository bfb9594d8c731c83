"""`thinpool create`, `snapshot`, `resize`, `rename`, `delete` and `rollback`."""

from collections.abc import Iterable
from typing import Any

import click

from thinpoold.attach.guard import any_attached, refuse_attached
from thinpoold.cli import output
from thinpoold.cli.backend import Backend
from thinpoold.cli.options import (
    Name,
    Size,
    chosen_pool,
    json_option,
    pairs,
    verb,
)
from thinpoold.errors import InvalidSize
from thinpoold.paths import PoolPaths
from thinpoold.sizes import SECTOR


@verb("create")
@click.argument("volume", metavar="VOL", type=Name())
@click.argument("size", metavar="SIZE", type=Size())
@click.option("--read-only", is_flag=True, help="Clients may only read it.")
@click.option("--reserve", metavar="SIZE", type=Size(), default=0, help="Space kept free for it.")
@click.option("--force", is_flag=True, help="Take a name that clients have another volume by.")
@json_option
def create(
    volume: str,
    size: int,
    read_only: bool,
    reserve: int,
    force: bool,
    pool: str | None,
    as_json: bool,
) -> None:
    """Make the thin volume VOL of SIZE. It takes no space until it is written.

    SIZE is a multiple of 512 bytes, and may be larger than the pool.

    \b
    Example:
      thinpool -p mypool create disk 10G

    Exit status: 0 made, durably; 1 refused (a bad name or size, the name is taken) or failed.
    """
    if reserve < 0 or reserve % SECTOR:
        raise InvalidSize(f"reserve {reserve} will not do: it must be a multiple of {SECTOR} bytes")
    answer = Backend(chosen_pool(pool)).call(
        "create", name=volume, size=size, read_only=read_only, reserve=reserve, force=force
    )
    _tell(answer, as_json, f"created {answer['name']}, {output.size(answer['size'])}")


@verb("snapshot")
@click.argument(
    "words", metavar="ORIGIN SNAP [ORIGIN SNAP]...", nargs=-1, required=True, type=Name()
)
@click.option("--read-only", is_flag=True, help="Clients may only read the snapshots.")
@click.option("--force", is_flag=True, help="Take a name that clients have another volume by.")
@json_option
def snapshot(
    words: tuple[str, ...], read_only: bool, force: bool, pool: str | None, as_json: bool
) -> None:
    """Make SNAP a snapshot of the volume ORIGIN.

    Several pairs are snapshotted at one instant and in one transaction: all of them or none. A
    snapshot is a volume like any other, and may be written, unless --read-only, and snapshotted.

    \b
    Examples:
      thinpool -p mypool snapshot disk monday
      thinpool -p mypool snapshot db db-1 log log-1

    Exit status: 0 made, durably; 1 refused (no such origin, the name is taken) or failed.
    """
    answer = Backend(chosen_pool(pool)).call(
        "snapshot", pairs=pairs(words), read_only=read_only, force=force
    )
    made = [f"{volume['name']} of {volume['origin']}" for volume in answer["volumes"]]
    _tell(answer, as_json, f"snapshotted {', '.join(made)}")


@verb("resize")
@click.argument("volume", metavar="VOL", type=Name())
@click.argument("size", metavar="SIZE", type=Size())
@click.option("--shrink", is_flag=True, help="Allow a smaller size: what is cut off is discarded.")
@click.option("--force", is_flag=True, help="Also under a client that may come back.")
@json_option
def resize(
    volume: str, size: int, shrink: bool, force: bool, pool: str | None, as_json: bool
) -> None:
    """Make the volume VOL as large as SIZE.

    Clients that have it open see the new size when they connect again.

    \b
    Examples:
      thinpool -p mypool resize disk 20G
      thinpool -p mypool resize disk 5G --shrink

    Exit status: 0 resized, durably; 1 refused (no such volume, a bad size, smaller without
    --shrink or while attached) or failed.
    """
    paths = chosen_pool(pool)
    if shrink:
        _refuse_attached(paths, [volume], smaller_than=size)
    answer = Backend(paths).call("resize", name=volume, size=size, shrink=shrink, force=force)
    _tell(answer, as_json, f"resized {answer['name']} to {output.size(answer['size'])}")


@verb("rename")
@click.argument("old", metavar="OLD", type=Name())
@click.argument("new", metavar="NEW", type=Name())
@click.option("--force", is_flag=True, help="Take a name that clients have another volume by.")
@json_option
def rename(old: str, new: str, force: bool, pool: str | None, as_json: bool) -> None:
    """Give the volume OLD the name NEW. Clients that have it open keep it.

    \b
    Example:
      thinpool -p mypool rename disk old-disk

    Exit status: 0 renamed, durably; 1 refused (no such volume, the name is taken) or failed.
    """
    answer = Backend(chosen_pool(pool)).call("rename", old=old, new=new, force=force)
    _tell(answer, as_json, f"renamed {old} to {answer['name']}")


@verb("delete")
@click.argument("volumes", metavar="VOL...", nargs=-1, required=True, type=Name())
@click.option("--dry-run", is_flag=True, help="Only say what would be freed.")
@click.option("--force", is_flag=True, help="Also under a client that may come back.")
@json_option
def delete(
    volumes: tuple[str, ...], dry_run: bool, force: bool, pool: str | None, as_json: bool
) -> None:
    """Delete volumes, all in one transaction, and say how much space that frees.

    A volume that a client has open, or that is attached, is refused, and then none is deleted.
    Snapshots of a deleted volume stay.

    \b
    Examples:
      thinpool -p mypool delete monday tuesday
      thinpool -p mypool delete monday --dry-run

    Exit status: 0 deleted, durably; 1 refused (no such volume, in use) or failed.
    """
    paths = chosen_pool(pool)
    if not dry_run:
        _refuse_attached(paths, volumes)
    answer = Backend(paths).call("delete", names=list(volumes), dry_run=dry_run, force=force)
    names, freed = ", ".join(answer["volumes"]), output.size(answer["freed"])
    line = (
        f"would delete {names} and free {freed}" if dry_run else f"deleted {names}, freed {freed}"
    )
    _tell(answer, as_json, line)


@verb("rollback")
@click.argument("volume", metavar="VOL", type=Name())
@click.argument("snapshot_name", metavar="SNAP", type=Name())
@click.option("--discard-current", is_flag=True, help="Keep no snapshot of what VOL held.")
@click.option("--force", is_flag=True, help="Also under a client that may come back.")
@json_option
def rollback(
    volume: str,
    snapshot_name: str,
    discard_current: bool,
    force: bool,
    pool: str | None,
    as_json: bool,
) -> None:
    """Make the content of the volume VOL that of SNAP.

    What VOL held is kept as a snapshot, whose name is printed, unless --discard-current. Newer
    snapshots stay, and so does SNAP.

    \b
    Example:
      thinpool -p mypool rollback disk monday

    Exit status: 0 rolled back, durably; 1 refused (no such volume, in use, attached) or failed.
    """
    paths = chosen_pool(pool)
    _refuse_attached(paths, [volume])
    answer = Backend(paths).call(
        "rollback",
        name=volume,
        snapshot=snapshot_name,
        discard_current=discard_current,
        force=force,
    )
    kept = answer.get("kept")
    line = f"rolled back {volume} to {snapshot_name}"
    _tell(answer, as_json, f"{line}; what it held is kept as {kept}" if kept else line)


def _refuse_attached(
    paths: PoolPaths, names: Iterable[str], smaller_than: int | None = None
) -> None:
    """Raise if one of the volumes is attached here; with a size, if it is larger than that too."""
    if not any_attached(paths.directory):
        return
    for name in names:
        place = Backend(paths).call("place", name=name)
        if smaller_than is None or smaller_than < place["size"]:
            refuse_attached(paths.directory, name, place["uuid"])


def _tell(answer: Any, as_json: bool, line: str) -> None:
    if as_json:
        output.emit_json(answer)
    else:
        output.emit(line)
