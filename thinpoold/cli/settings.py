"""`thinpool set`, `get` and `grow`."""

from typing import Any

import click

from thinpoold import lock, settings
from thinpoold.attach import guard
from thinpoold.attach.records import attachments
from thinpoold.cli import output
from thinpoold.cli.backend import Backend
from thinpoold.cli.options import Name, Size, Text, chosen_pool, json_option, verb
from thinpoold.errors import InvalidSetting
from thinpoold.progress import Progress
from thinpoold.settings import parse

_volume_option = click.option("--volume", metavar="VOL", type=Name(), help="A volume's settings.")


@verb("set")
@click.argument("words", metavar="KEY=VALUE...", nargs=-1, required=True, type=Text())
@_volume_option
@json_option
def set_(words: tuple[str, ...], volume: str | None, pool: str | None, as_json: bool) -> None:
    """Change settings of a pool, running or not. All of them or, if one will not do, none.

    \b
      on-full=queue|error       writes that find no space wait, or fail
      full-timeout=SECONDS      how long they wait; 0 for ever
      discard=passdown|nopassdown|ignore
                                punch freed blocks out of the data device, only unmap them, or
                                take no discards
      skip-zeroing=yes|no       leave old bytes in the unwritten part of new blocks
      low-water=PERCENT%        with less space free, the log warns
      max-clients=N             connections to volumes at a time, 128 unless told; 0 for no limit,
                                also on the memory that their requests take
      cache=page|bufio          data in the kernel's page cache, or in one of the daemon's own over
                                O_DIRECT; from the next start on
      data-cache=SIZE           memory of the latter; from the next start on

    With --volume they are that volume's:

    \b
      iops=N|unlimited          requests of every kind a second, all clients together
      bps=SIZE|unlimited        bytes read, prefetched and written a second, likewise
      read-only=yes|no          writes fail from now on; or may be made by who opens it anew
      allow=anyone|RULE,...     who may open it: user:NAME, group:NAME (by a Unix socket),
                                net:ADDR/BITS, tls; one that fits is enough
      label.KEY=TEXT            a label, for you and your scripts; without TEXT it goes

    \b
    Examples:
      thinpool -p mypool set on-full=error low-water=5%
      thinpool -p mypool set --volume disk iops=1000 bps=50M
      thinpool -p mypool set --volume disk allow=user:backup,net:192.0.2.0/24
      thinpool -p mypool set --volume disk label.owner=ann label.tier=

    Exit status: 0 changed, durably; 1 refused (no such setting, a bad value) or failed.
    """
    given = _split(words)
    backend = Backend(chosen_pool(pool))
    _refuse_repeats(backend, given, volume)
    if volume is None:
        answer = backend.call("set", settings=parse(given))
    else:
        answer = backend.call("set", settings=given, volume=volume)
    _show(answer, as_json, volume)
    later = [word for word in given if word.replace("-", "_") in settings.AT_NEXT_START]
    if later and volume is None and lock.is_held(backend.paths):
        output.note(f"{' and '.join(later)}: in effect when the pool is stopped and started again")


@verb("get")
@click.argument("keys", metavar="[KEY]...", nargs=-1, type=Text())
@_volume_option
@json_option
def get(keys: tuple[str, ...], volume: str | None, pool: str | None, as_json: bool) -> None:
    """Show the settings of a pool, or with --volume of a volume: all, or those named.

    \b
    Examples:
      thinpool -p mypool get
      thinpool -p mypool get on-full

    Exit status: 0 shown; 1 no such setting, or failed.
    """
    answer = Backend(chosen_pool(pool)).call("get", volume=volume)
    if keys:
        answer = {"settings": _chosen(answer["settings"], keys)}
    _show(answer, as_json, volume)


@verb("grow")
@click.option("--size", metavar="SIZE", type=Size(), required=True, help="The new size.")
@json_option
def grow(size: int, pool: str | None, as_json: bool) -> None:
    """Make the data device of a pool larger, running or not.

    A data file is made larger, sparse. A block device must have been made larger before; then SIZE
    is how much of it the pool uses.

    \b
    Example:
      thinpool -p mypool grow --size 200G

    Exit status: 0 grown, durably; 1 refused (a bad size, smaller than now) or failed.
    """
    paths = chosen_pool(pool)
    with Progress(f"growing pool {paths.name}"):
        answer = Backend(paths).call("grow", size=size)
    if as_json:
        output.emit_json(answer)
    else:
        output.emit(f"grown to {output.size(answer['data']['size'])}")


def _refuse_repeats(backend: Backend, given: dict[str, str], volume: str | None) -> None:
    """Raise AttachRefused for what devices of this machine have too many connections for."""
    there = [one for one in attachments(backend.paths.directory) if one.connections > 1]
    if not there:
        return
    if volume is None:
        changes = parse(given)
    else:
        from thinpoold import volume_settings

        changes = volume_settings.parse(given)
        uuid = backend.call("place", name=volume)["uuid"]
        there = [one for one in there if one.uuid == uuid]
    if guard.SLOW & changes.keys():
        now = backend.call("get", volume=volume)["settings"]
        guard.refuse_to_slow({**now, **changes}, there)


def _split(words: tuple[str, ...]) -> dict[str, str]:
    given: dict[str, str] = {}
    seen = set()
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise click.UsageError(
                f"'{word}' is not KEY=VALUE", click.get_current_context(silent=True)
            )
        name = settings.key_of(key)
        if name in seen:
            raise InvalidSetting(f"setting {key} is given twice: give it once")
        seen.add(name)
        given[key] = value
    return given


def _chosen(there: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    chosen = {}
    for key in keys:
        name = settings.key_of(key)
        if name not in there:
            known = ", ".join(map(settings.name_of, there))
            raise InvalidSetting(f"no setting {key[:40]!r}: there are {known}")
        chosen[name] = there[name]
    return chosen


def _show(answer: dict[str, Any], as_json: bool, volume: str | None) -> None:
    if as_json:
        output.emit_json(answer)
        return
    if volume is None:
        as_text = settings.as_text
    else:
        from thinpoold.volume_settings import as_text
    for name, value in answer["settings"].items():
        output.emit(f"{settings.name_of(name)}={as_text(name, value)}")
