"""`thinpool accept-loss`."""

from typing import Any

import click

from thinpoold.cli import output
from thinpoold.cli.backend import Backend
from thinpoold.cli.options import Name, chosen_pool, json_option, verb

# The rest is in --json.
_MOST = 8


@verb("accept-loss")
@click.argument("volumes", metavar="VOL...", nargs=-1, required=True, type=Name())
@click.option("--dry-run", is_flag=True, help="Only say what is lost.")
@json_option
def accept_loss(volumes: tuple[str, ...], dry_run: bool, pool: str | None, as_json: bool) -> None:
    """Let clients open volumes again of which something that was answered is lost.

    What is lost is printed, as far as it is known. Disconnect the clients that had the volume open
    before, and check the file system on it.

    \b
    Examples:
      thinpool -p mypool accept-loss disk --dry-run
      thinpool -p mypool accept-loss disk

    Exit status: 0 accepted, durably; 1 refused (no such volume, nothing of it is lost) or failed.
    """
    answer = Backend(chosen_pool(pool)).call("accept-loss", names=list(volumes), dry_run=dry_run)
    if as_json:
        output.emit_json(answer)
        return
    for volume in answer["volumes"]:
        for loss in volume["losses"]:
            output.emit(f"{volume['name']}: {output.moment(loss['when'])}: {_told(loss)}")
        if not volume["losses"]:
            output.emit(f"{volume['name']}: something is lost; what is not known")
    if not dry_run:
        names = ", ".join(volume["name"] for volume in answer["volumes"])
        output.emit(f"clients may open {names} again")


def _told(loss: dict[str, Any]) -> str:
    ranges = loss["ranges"]
    told = [f"{output.size(length)} at {offset}" for offset, length in ranges[:_MOST]]
    if len(ranges) > _MOST:
        told.append(f"and {len(ranges) - _MOST} more")
    known = f"new blocks: {', '.join(told)}; " if told else ""
    return f"{loss['why']}; {known}anything written since the last flush before that may be lost"
