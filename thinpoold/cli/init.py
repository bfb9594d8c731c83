"""`thinpool init`."""

from pathlib import Path

import click

from thinpoold import settings as pool_settings
from thinpoold.cli import output
from thinpoold.cli.backend import Backend
from thinpoold.cli.options import Size, Text, chosen_pool, json_option, pool_argument, verb
from thinpoold.errors import UserError
from thinpoold.names import check_new_name
from thinpoold.progress import Progress
from thinpoold.sizes import MIN_BLOCK_SIZE, check_block_size, check_pool_size


@verb("init")
@pool_argument
@click.option("--size", metavar="SIZE", type=Size(), help="How much data the pool can hold.")
@click.option(
    "--data",
    metavar="PATH",
    type=Text(),
    help="The data device: a file or a block device. Without it, a sparse file in the pool.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Take PATH even if it holds data, or is the block device of another pool.",
)
@click.option(
    "--block-size",
    metavar="SIZE",
    type=Size(),
    default=MIN_BLOCK_SIZE,
    help="Data block size, a multiple of 64K, to 1G. Large ones suit few snapshots. [64K]",
)
@click.option(
    "--on-full",
    type=click.Choice(pool_settings.ON_FULL),
    default="queue",
    help="Whether writes that find no space wait or fail. [queue]",
)
@click.option("--full-timeout", metavar="SECONDS", default="60", help="How long they wait. [60]")
@click.option(
    "--discard",
    type=click.Choice(pool_settings.DISCARD),
    default="passdown",
    help="What becomes of discarded blocks. [passdown]",
)
@click.option("--skip-zeroing", is_flag=True, help="Leave old bytes in new blocks.")
@click.option(
    "--low-water", metavar="PERCENT%", default="10%", help="Warn with less space free. [10%]"
)
@click.option(
    "--cache",
    type=click.Choice(pool_settings.CACHE),
    default="page",
    help="Where data are cached: by the kernel, or by the daemon over O_DIRECT. [page]",
)
@click.option(
    "--data-cache", metavar="SIZE", default="256M", help="Memory of the latter cache. [256M]"
)
@json_option
def init(
    pool_word: str | None,
    pool: str | None,
    size: int | None,
    data: str | None,
    force: bool,
    block_size: int,
    on_full: str,
    full_timeout: str,
    discard: str,
    skip_zeroing: bool,
    low_water: str,
    cache: str,
    data_cache: str,
    as_json: bool,
) -> None:
    """Make the pool POOL, which can hold SIZE of data.

    The data device is a sparse file in the pool's directory or, with --data, a file or block device
    elsewhere. One that is there already need not be given a SIZE; of a block device, the last 4K
    are for the pool's mark. If it holds data it is refused unless --force.

    \b
    Examples:
      thinpool init mypool --size 100G
      thinpool init /srv/pool --data /dev/sdb
      thinpool init ./pool --size 1T --block-size 256K --on-full error

    Exit status: 0 made; 1 refused (a pool is there, a bad size or setting, PATH holds data) or
    failed. Then nothing is left behind, and PATH is as it was.
    """
    paths = chosen_pool(pool, pool_word)
    _check_device(size, data, block_size)
    changes = {"on-full": on_full, "full-timeout": full_timeout, "discard": discard}
    changes |= {"low-water": low_water, "cache": cache, "data-cache": data_cache}
    settings = pool_settings.Settings().changed({**changes, "skip-zeroing": skip_zeroing})
    from thinpoold.pool import create_pool

    with Progress(f"making pool {paths.name}"):
        create_pool(
            paths.directory,
            name=check_new_name(paths.name, "pool"),
            size=size,
            data=Path(data) if data is not None else None,
            block_size=block_size,
            settings=settings,
            force=force,
        )
    status = Backend(paths).call("status")
    if as_json:
        output.emit_json(status)
    else:
        space = output.size(status["data"]["size"])
        output.emit(f"made pool {paths.directory}, {space} in blocks of {output.size(block_size)}")


def _check_device(size: int | None, data: str | None, block_size: int) -> None:
    """Raise unless a data device can be as it is asked for."""
    check_block_size(block_size)
    if size is not None:
        check_pool_size(size, block_size)
    if data == "":
        raise UserError("--data is empty: name a file or a block device")
    if size is None and data is None:
        raise click.UsageError("Missing option '--size'", click.get_current_context())
