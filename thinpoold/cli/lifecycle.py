"""`thinpool start` and `thinpool stop`."""

from thinpoold import daemon, launch
from thinpoold.cli import output
from thinpoold.cli.daemon import daemon_options
from thinpoold.cli.options import chosen_pool, json_option, pool_argument, verb
from thinpoold.errors import PoolNotRunning, ThinPoolError
from thinpoold.progress import Progress


@verb("start")
@pool_argument
@daemon_options
@json_option
def start(
    pool_word: str | None,
    pool: str | None,
    options: daemon.Options,
    as_json: bool,
) -> None:
    """Start the daemon of POOL in the background and print its NBD URI.

    It returns when the pool serves. What the daemon has to say goes to thinpoold.log in the pool's
    directory.

    With --read-only clients and commands may read alone. Nothing in the pool's directory or on its
    data device is written, so the pool may lie on a read-only file system; where it does not,
    nobody else can change it meanwhile. Sockets and log lie in a run directory elsewhere. There may
    be several such daemons for one pool: of several users, in several containers.

    \b
    Examples:
      thinpool start mypool
      thinpool start --read-only /media/archive/pool
      thinpool start ./pool --listen 127.0.0.1:10809
      thinpool start mypool --listen 0.0.0.0:10809 --tls /etc/thinpoold/tls

    Exit status: 0 the pool serves; 1 it cannot, or its daemon runs already.
    """
    paths = chosen_pool(pool, pool_word)
    with Progress(f"starting pool {paths.name}"):
        facts = daemon.background(paths, options)
    if as_json:
        output.emit_json(facts)
    else:
        output.emit(str(facts["uri"]))


@verb("stop")
@pool_argument
@json_option
def stop(pool_word: str | None, pool: str | None, as_json: bool) -> None:
    """Stop the daemon of POOL: everything is flushed, clients are disconnected.

    It returns when the process is gone. A pool that does not run is left as it is, and said so.

    \b
    Example:
      thinpool stop mypool

    Exit status: 0 the pool does not run; 1 it could not be stopped, or its last commit failed.
    """
    paths = chosen_pool(pool, pool_word).require_pool()
    try:
        with Progress(f"stopping pool {paths.name}"):
            answer = launch.stop(paths)
    except PoolNotRunning:
        output.note(f"pool {paths.directory} is not running: nothing to stop")
        if as_json:
            output.emit_json({"stopped": False, "pid": None})
        return
    if as_json:
        output.emit_json({"stopped": True, "pid": answer["pid"]})
    if answer.get("error"):
        raise ThinPoolError(
            f"pool {paths.directory} stopped, but its last commit failed: {answer['error']}"
        )
