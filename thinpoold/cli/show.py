"""`thinpool list`, `tree`, `info` and `uri`: verbs that only look."""

from typing import Any

import click

from thinpoold.attach.records import attachments
from thinpoold.cli import output
from thinpoold.cli.backend import Backend
from thinpoold.cli.options import Name, chosen_pool, json_option, verb
from thinpoold.paths import PoolPaths

# `list` names so many clients of a volume; `info` names all.
_LISTED = 2


@verb("list")
@json_option
def list_(pool: str | None, as_json: bool) -> None:
    """List the volumes of a pool.

    MAPPED is what a volume has written or shares, EXCLUSIVE what only it uses and deleting it
    would free. OPEN BY names the clients: a process, its id and user, or an address; xN for N
    connections. ATTACHED says which device of this machine it is, and where that is mounted.

    \b
    Examples:
      thinpool -p mypool list
      thinpool -p mypool list --json    sizes in bytes

    Exit status: 0 listed; 1 failed.
    """
    paths = chosen_pool(pool)
    answer = Backend(paths).call("list")
    _add_attached(paths, answer["volumes"])
    if as_json:
        output.emit_json(answer)
        return
    header: tuple[str, ...] = (
        "NAME", "SIZE", "MAPPED", "EXCLUSIVE", "ACCESS", "ORIGIN", "CREATED", "OPEN BY"
    )  # fmt: skip
    rows = [_row(volume) for volume in answer["volumes"]]
    if any(volume["attached"] for volume in answer["volumes"]):
        header = (*header, "ATTACHED")
        rows = [
            (*row, _attached(volume["attached"]))
            for row, volume in zip(rows, answer["volumes"], strict=True)
        ]
    output.emit(output.table(header, rows, right=(1, 2, 3), cut=(0, 5)))


@verb("tree")
@json_option
def tree(pool: str | None, as_json: bool) -> None:
    """Show who was snapshotted from whom, with sizes.

    \b
    Example:
      thinpool -p mypool tree

    Exit status: 0 shown; 1 failed.
    """
    answer = Backend(chosen_pool(pool)).call("tree")
    if as_json:
        output.emit_json(answer)
        return
    rows: list[tuple[str, ...]] = []
    _grow_tree(answer["volumes"], "", rows, top=True)
    header = ("NAME", "SIZE", "MAPPED", "EXCLUSIVE")
    output.emit(output.table(header, rows, right=(1, 2, 3)))


@verb("info")
@click.argument("volume", metavar="VOL", type=Name())
@json_option
def info(volume: str, pool: str | None, as_json: bool) -> None:
    """Say everything about the volume VOL.

    \b
    Example:
      thinpool -p mypool info disk

    Exit status: 0 told; 1 no such volume, or failed.
    """
    paths = chosen_pool(pool)
    answer = Backend(paths).call("info", name=volume)
    _add_attached(paths, [answer])
    if as_json:
        output.emit_json(answer)
    else:
        output.emit(output.facts([(_title(key), _value(key, answer[key])) for key in answer]))


@verb("uri")
@click.argument("volume", metavar="VOL", type=Name())
@click.option(
    "--stable", is_flag=True, help="One that never is another volume's: for what reconnects."
)
@json_option
def uri(volume: str, stable: bool, pool: str | None, as_json: bool) -> None:
    """Print the NBD URI of the volume VOL, alone on one line.

    On a pool that does not run it is the URI the volume will have once the pool is started as
    usual.

    \b
    Examples:
      nbdinfo "$(thinpool -p mypool uri disk)"
      qemu-system-x86_64 -drive file="$(thinpool uri disk --stable)",format=raw ...

    Exit status: 0 printed; 1 no such volume, or failed.
    """
    answer = Backend(chosen_pool(pool)).call("uri", name=volume)
    if as_json:
        output.emit_json(answer)
    else:
        output.emit(answer["stable_uri" if stable else "uri"])


def _row(volume: dict[str, Any]) -> tuple[str, ...]:
    return (
        volume["name"],
        output.size(volume["size"]),
        output.size(volume["mapped"]),
        output.size(volume["exclusive"]),
        "ro" if volume["read_only"] else "rw",
        volume["origin"] or "-",
        output.moment(volume["created"]),
        _open_by(volume["opened_by"], most=_LISTED),
    )


def _add_attached(paths: PoolPaths, volumes: list[dict[str, Any]]) -> None:
    """Add to each volume what this machine has attached of it."""
    there = attachments(paths.directory)
    for volume in volumes:
        volume["attached"] = [one.fact() for one in there if one.uuid == volume["uuid"]]


def _attached(facts: list[dict[str, Any]]) -> str:
    return ", ".join(" on ".join((fact["device"], *fact["mounts"])) for fact in facts) or "-"


def _open_by(clients: list[dict[str, Any]], most: int | None = None) -> str:
    told = [_client(one) for one in clients[:most]]
    if len(clients) > len(told):
        told.append(f"and {len(clients) - len(told)} more")
    return ", ".join(told) or "-"


def _client(client: dict[str, Any]) -> str:
    """Name one client: 'nbd-client[123] (root) x4 ro', '192.0.2.7 tls'."""
    pid, user = client["pid"], client["user"] or client["uid"]
    who = client["address"] or f"{client['command'] or 'process'}[{pid if pid else '?'}]"
    words = [who, *([f"({user})"] if user is not None else [])]
    if client["connections"] > 1:
        words.append(f"x{client['connections']}")
    if client["tls"]:
        words.append("tls")
    if client["read_only"]:
        words.append("ro")
    return " ".join(words)


def _grow_tree(
    volumes: list[dict[str, Any]], indent: str, rows: list[tuple[str, ...]], *, top: bool = False
) -> None:
    lines = ("├─ ", "└─ ", "│  ") if output.can_print("├└│─") else ("|- ", "`- ", "|  ")
    for place, volume in enumerate(volumes):
        last = place == len(volumes) - 1
        branch = "" if top else lines[1] if last else lines[0]
        sizes = (output.size(volume[key]) for key in ("size", "mapped", "exclusive"))
        rows.append((indent + branch + volume["name"], *sizes))
        below = "" if top else "   " if last else lines[2]
        _grow_tree(volume["children"], indent + below, rows)


_SIZES = frozenset({"size", "mapped", "exclusive", "reserve", "shared", "block_size"})


def _title(key: str) -> str:
    return key.replace("_", " ")


def _value(key: str, value: Any) -> str:
    if value is None or value in ({}, []):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key in _SIZES and isinstance(value, int):
        return f"{output.size(value)} ({value} bytes)" if value else "0"
    if key == "created":
        return output.moment(value)
    if key == "opened_by":
        return _open_by(value)
    if key == "attached":
        return _attached(value)
    if isinstance(value, dict):
        return ", ".join(f"{name}={item}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
