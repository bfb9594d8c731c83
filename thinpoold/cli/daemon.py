"""The command line of `thinpoold`, and the options it shares with `thinpool start`."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from thinpoold import __version__, daemon
from thinpoold import fastpath as fastpath_modes
from thinpoold.cli import output
from thinpoold.cli.options import Size, Text, chosen_pool, pool_argument, verb
from thinpoold.errors import InvalidSize
from thinpoold.progress import Progress
from thinpoold.sizes import exact_size

MIN_CACHE = 1 << 20
MAX_CACHE = 1 << 40


def daemon_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say how a pool is served; `function` gets them as `options`."""

    @functools.wraps(function)
    def wrapper(
        *arguments: Any,
        listen: str,
        tls: str | None,
        insecure_no_tls: bool,
        fastpath: str | None,
        threads: int | None,
        cache_size: int | None,
        read_only: bool,
        **others: Any,
    ) -> None:
        options = _options(listen, tls, insecure_no_tls, fastpath, threads, cache_size, read_only)
        function(*arguments, options=options, **others)

    for option in (
        click.option(
            "--cache-size",
            metavar="SIZE",
            type=Size(),
            help="Most memory for cached metadata. [64M]",
        ),
        click.option(
            "--threads",
            metavar="N",
            type=click.IntRange(1, 1024),
            help="Requests served at a time on one connection. [4; 1 where nbdkit is not safe with "
            "more]",
        ),
        click.option(
            "--listen",
            metavar="unix|ADDR:PORT",
            type=Text(),
            default=daemon.DEFAULT_LISTEN,
            show_default=True,
            help="Where NBD clients connect. Without TLS, only loopback addresses.",
        ),
        click.option(
            "--tls",
            metavar="DIR",
            type=Text(),
            help="Take only clients with TLS that have a key or certificate: 'thinpool tls init'.",
        ),
        click.option(
            "--fastpath",
            type=click.Choice(fastpath_modes.MODES),
            help="Whether nbdkit gets the filter that serves mapped blocks without Python; with "
            "'on', not to start without it. [auto, or what THINPOOL_FASTPATH says]",
        ),
        click.option(
            "--insecure-no-tls",
            is_flag=True,
            help="Listen beyond loopback without TLS: whoever reaches the port owns the data.",
        ),
        click.option(
            "--read-only",
            is_flag=True,
            help="Serve the pool to be read alone, also from where nothing can be written.",
        ),
    ):
        option(wrapper)
    return wrapper


def _options(
    listen: str,
    tls: str | None,
    insecure_no_tls: bool,
    fastpath: str | None,
    threads: int | None,
    cache_size: int | None,
    read_only: bool,
) -> daemon.Options:
    """Return the options as the daemon has them. Raises InvalidSize for a useless cache."""
    if tls is not None and insecure_no_tls:
        raise click.UsageError(
            "--tls or --insecure-no-tls? Say one", click.get_current_context(silent=True)
        )
    if cache_size is not None and not MIN_CACHE <= cache_size <= MAX_CACHE:
        wrong = "small: it must be at least 1M" if cache_size < MIN_CACHE else "large: at most 1T"
        raise InvalidSize(f"cache size {exact_size(cache_size)} is too {wrong}")
    directory = Path(tls) if tls is not None else None
    return daemon.Options(
        listen, threads, cache_size, directory, insecure_no_tls, fastpath, read_only
    )


@verb("thinpoold")
@pool_argument
@daemon_options
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground, as systemd wants.")
@click.version_option(__version__, prog_name="thinpoold", message="%(prog)s %(version)s")
def command(
    pool_word: str | None,
    pool: str | None,
    options: daemon.Options,
    foreground: bool,
) -> None:
    """The daemon of one pool: checks and locks it, and serves it over NBD.

    It goes to the background once the pool serves, and prints its NBD URI, as 'thinpool start'
    does. With --foreground it stays, and its messages go to stderr. SIGTERM and SIGINT stop it
    cleanly, everything flushed.

    With --read-only clients and commands may read alone, and nothing in the pool's directory or on
    its data device is written: thinpool-start(1) says more.

    \b
    Examples:
      thinpoold --foreground /srv/pool
      thinpoold mypool --listen 127.0.0.1:10809

    Exit status: 0 stopped cleanly, or in the background and serving; 1 refused or failed.
    """
    paths = chosen_pool(pool, pool_word)
    if foreground:
        daemon.foreground(paths, options)
    with Progress(f"starting pool {paths.name}"):
        facts = daemon.background(paths, options)
    output.emit(str(facts["uri"]))
