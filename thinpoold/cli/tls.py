"""`thinpool tls init` and `thinpool tls add`: the files that `--tls DIR` wants."""

import socket
from pathlib import Path

import click

from thinpoold import tls_files
from thinpoold.cli import output
from thinpoold.cli.options import Text, json_option
from thinpoold.errors import UserError

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
_LOOPBACK = ("localhost", "127.0.0.1", "::1")

_directory = click.argument("directory", metavar="DIR", type=Text())
_days = click.option(
    "--days",
    metavar="N",
    type=click.IntRange(1, 36500),
    default=tls_files.DEFAULT_DAYS,
    show_default=True,
    help="How long certificates are good for.",
)


@click.group("tls", context_settings=_SETTINGS)
def tls() -> None:
    """Make what serving with TLS needs: certificates, or pre-shared keys.

    Either proves to the server that a client is one of its own. Certificates also prove to the
    client that the server is the right one by name, and clients can be added while the daemon
    runs; keys are simpler, and need no tool.

    \b
    Examples:
      thinpool tls init /etc/thinpoold/tls --host storage.example.com
      thinpool start mypool --listen 0.0.0.0:10809 --tls /etc/thinpoold/tls

    Exit status: 0 made; 1 refused or failed.
    """


@tls.command("init", context_settings=_SETTINGS)
@_directory
@click.option(
    "--host",
    "hosts",
    metavar="NAME",
    multiple=True,
    type=Text(),
    help="A name or IP address that clients know this server by. [this host's name]",
)
@click.option(
    "--client",
    "clients",
    metavar="NAME",
    multiple=True,
    type=Text(),
    help="Make a certificate for this client. [client]",
)
@click.option(
    "--psk",
    "keys",
    metavar="NAME",
    multiple=True,
    type=Text(),
    help="Make a pre-shared key for this client, instead of certificates.",
)
@_days
@json_option
def init(
    directory: str,
    hosts: tuple[str, ...],
    clients: tuple[str, ...],
    keys: tuple[str, ...],
    days: int,
    as_json: bool,
) -> None:
    """Make DIR: an authority, the server's certificate and the clients', or pre-shared keys.

    --host, --client and --psk may be given many times. The server's certificate is good for
    localhost as well. DIR/clients/NAME is for the client NAME: give it that directory, whole, over
    a way you trust, and nothing else. ca-key.pem signs new clients: keep it from all.

    \b
    Examples:
      thinpool tls init ./tls --host storage.example.com --host 192.0.2.7 --client laptop
      thinpool tls init ./keys --psk laptop --psk backup

    Exit status: 0 made; 1 refused (DIR is not empty, a bad name) or failed, and nothing is left.
    """
    path = Path(directory).absolute()
    if keys and (hosts or clients):
        raise click.UsageError(
            "--psk makes keys, --host and --client certificates: choose one kind",
            click.get_current_context(),
        )
    names = _once(keys or clients or (tls_files.DEFAULT_CLIENT,))
    if keys:
        tls_files.create_keys(path, names)
    else:
        all_hosts = dict.fromkeys((*(hosts or (socket.gethostname(),)), *_LOOPBACK))
        tls_files.create_certificates(path, list(all_hosts), names, days)
    _show(path, names, as_json)


@tls.command("add", context_settings=_SETTINGS)
@_directory
@click.argument("name", metavar="NAME", type=Text())
@_days
@json_option
def add(directory: str, name: str, days: int, as_json: bool) -> None:
    """Make what the client NAME needs, of the kind that DIR has.

    A certificate is good at once, a pre-shared key from the daemon's next start.

    \b
    Example:
      thinpool tls add ./tls backup

    Exit status: 0 made; 1 refused (NAME is there already, a bad name) or failed.
    """
    path = Path(directory).absolute()
    tls_files.add_client(path, name, days)
    _show(path, [name], as_json)


def _once(names: tuple[str, ...]) -> list[str]:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"client {twice[:70]!r} is named twice: name each once")
    return list(names)


def _show(path: Path, names: list[str], as_json: bool) -> None:
    places = {name: str(path / tls_files.CLIENTS / name) for name in names}
    if as_json:
        output.emit_json({"directory": str(path), "clients": places})
        return
    for name, place in places.items():
        output.emit(f"for client {name}: {place}")
