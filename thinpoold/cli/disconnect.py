"""`thinpool disconnect`."""

import click

from thinpoold.attach.guard import refuse_attached
from thinpoold.attach.records import attachments
from thinpoold.cli import output
from thinpoold.cli.backend import call_daemon
from thinpoold.cli.options import Name, Text, chosen_pool, json_option, verb
from thinpoold.progress import Progress


@verb("disconnect")
@click.argument("volume", metavar="VOL", type=Name())
@click.argument("client", metavar="[CLIENT]", required=False, type=Text())
@json_option
def disconnect(volume: str, client: str | None, pool: str | None, as_json: bool) -> None:
    """Hang up on the clients that have the volume VOL open, or on CLIENT alone.

    CLIENT is a process id, or an address: 'thinpool info' has them. What a client has asked for is
    carried out, and not answered; to the client it is as if the network had gone. One that connects
    again is let in again: 'thinpool set --volume VOL allow=...' says who is.

    A volume that is attached to this machine is refused, for it would be back at once: detach it.

    \b
    Examples:
      thinpool -p mypool disconnect disk
      thinpool -p mypool disconnect disk 192.0.2.7

    Exit status: 0 disconnected; 1 refused (no such volume, nobody has it open, it is attached, the
    pool does not run), or requests are still under way.
    """
    paths = chosen_pool(pool).require_pool()
    info = call_daemon(paths, "info", {"name": volume})
    for one in attachments(paths.directory):
        if one.uuid == info["uuid"] and (client is None or client in map(str, one.clients)):
            refuse_attached(paths.directory, volume, one.uuid)
    with Progress(f"disconnecting the clients of {volume}"):
        answer = call_daemon(paths, "disconnect", {"name": volume, "client": client})
    if as_json:
        output.emit_json(answer)
    else:
        count = output.plural(answer["disconnected"], "connection")
        output.emit(f"disconnected {count} of {volume}")
    if answer["left"]:
        count = output.plural(answer["left"], "connection")
        output.note(
            f"{count} of volume {volume!r} still have requests under way, and end with them"
        )
        click.get_current_context().exit(1)
