"""`thinpool list`, `tree`, `info` and `uri`: verbs that only look."""

from typing import Any

import click

from thinpoold.attach.records import attachments
from thinpoold.cli import output
from thinpoold.cli.backend import Backend
from thinpoold.cli.options import Name, Text, chosen_pool, json_option, verb
from thinpoold.paths import PoolPaths

# `list` names so many clients of a volume; `info` names all.
_LISTED = 2
# `tree` indents so many levels, and numbers those that are deeper.
_MOST_INDENTED = 16


@verb("list")
@click.option(
    "--label",
    "labels",
    metavar="KEY[=TEXT]",
    multiple=True,
    type=Text(),
    help="Only volumes with this label. May be given more than once: all must be there.",
)
@json_option
def list_(labels: tuple[str, ...], pool: str | None, as_json: bool) -> None:
    """List the volumes of a pool.

    MAPPED is what a volume has written or shares, EXCLUSIVE what only it uses and deleting it
    would free. OPEN BY names the clients: a process, its id and user, or an address; xN for N
    connections. ATTACHED says which device of this machine it is, and where that is mounted.
    LABELS are what 'thinpool set --volume VOL label.KEY=TEXT' has said.

    \b
    Examples:
      thinpool -p mypool list
      thinpool -p mypool list --json    sizes in bytes
      thinpool -p mypool list --label owner=ann --label tier

    Exit status: 0 listed; 1 failed.
    """
    paths = chosen_pool(pool)
    answer = Backend(paths).call("list")
    answer["volumes"] = [one for one in answer["volumes"] if _has(one.get("labels", {}), labels)]
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
    if any(volume.get("labels") for volume in answer["volumes"]):
        header = (*header, "LABELS")
        rows = [
            (*row, _value("labels", volume.get("labels")))
            for row, volume in zip(rows, answer["volumes"], strict=True)
        ]
    output.emit(output.table(header, rows, right=(1, 2, 3), cut=(0, 5)))


@verb("tree")
@json_option
def tree(pool: str | None, as_json: bool) -> None:
    """Show who was snapshotted from whom, with sizes.

    Below 16 levels the lines are indented no further, and each says in brackets how deep it lies.
    --json nests at most 100 levels: a volume below them stands with those without an origin, and
    its `origin` says where it belongs.

    \b
    Example:
      thinpool -p mypool tree

    Exit status: 0 shown; 1 failed.
    """
    answer = Backend(chosen_pool(pool)).call("tree")
    if as_json:
        output.emit_json(answer)
        return
    rows = _tree_rows(_flat(answer["volumes"]))
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


def _has(labels: dict[str, str], wanted: tuple[str, ...]) -> bool:
    """Whether all that is wanted, KEY or KEY=TEXT, is among a volume's labels."""
    for word in wanted:
        key, equals, text = word.partition("=")
        if key not in labels or (equals and labels[key] != text):
            return False
    return True


def _add_attached(paths: PoolPaths, volumes: list[dict[str, Any]]) -> None:
    """Add to each volume what this machine has attached of it."""
    facts: dict[str, list[dict[str, Any]]] = {}
    for one in attachments(paths.directory):
        facts.setdefault(one.uuid, []).append(one.fact())
    for volume in volumes:
        volume["attached"] = facts.get(volume["uuid"], [])


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


def _flat(volumes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return all volumes of a tree, those of one origin in their order."""
    found = []
    pending = list(reversed(volumes))
    while pending:
        found.append(pending.pop())
        pending += reversed(found[-1]["children"])
    return found


def _tree_rows(volumes: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return the rows of a tree: each volume below its origin, with a branch that leads there."""
    branch, last_branch, trunk = ("├─ ", "└─ ", "│  ")
    if not output.can_print("├└│─"):
        branch, last_branch, trunk = ("|- ", "`- ", "|  ")
    names = {volume["name"] for volume in volumes}
    below: dict[str | None, list[dict[str, Any]]] = {}
    for volume in volumes:
        below.setdefault(volume["origin"] if volume["origin"] in names else None, []).append(volume)
    rows = []
    # Volume, how deep it lies, what stands before it, and before those below it.
    pending = [(volume, 0, "", "") for volume in reversed(below.get(None, []))]
    while pending:
        volume, depth, before, indent = pending.pop()
        sizes = (output.size(volume[key]) for key in ("size", "mapped", "exclusive"))
        rows.append((before + volume["name"], *sizes))
        children = below.get(volume["name"], [])
        for place, child in enumerate(reversed(children)):
            here = last_branch if place == 0 else branch
            onward = indent + ("   " if place == 0 else trunk)
            if depth >= _MOST_INDENTED:
                # A line for each of thousands of levels must not be as long as there are levels.
                here, onward = f"[{depth + 1}] {here}", indent
            pending.append((child, depth + 1, indent + here, onward))
    return rows


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
