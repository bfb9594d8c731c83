"""`thinpool status`."""

from typing import Any

from thinpoold.cli import output
from thinpoold.cli.backend import Backend
from thinpoold.cli.options import chosen_pool, json_option, pool_argument, verb

# The reason for `out-of-data-space` says what to do.
_TO_DO = {"read-only": "; stop it, and check it", "failed": "; stop it, and check it"}


@verb("status")
@pool_argument
@json_option
def status(pool_word: str | None, pool: str | None, as_json: bool) -> None:
    """Say how POOL is: mode, space, transaction, volumes, clients.

    \b
    Examples:
      thinpool status mypool
      thinpool status mypool --json    sizes in bytes

    Exit status: 0 told, whatever the mode is; 1 it cannot be told.
    """
    answer = Backend(chosen_pool(pool, pool_word)).call("status")
    if as_json:
        output.emit_json(answer)
    else:
        output.emit(_text(answer))


def _text(status: dict[str, Any]) -> str:
    data, metadata = status["data"], status["metadata"]
    running = f"yes, process {status['pid']}" if status.get("running") else "no"
    rows = [
        ("pool", f"{status['name']}  {status['uuid']}"),
        ("running", running),
        ("mode", _mode(status)),
        ("data", f"{_space(data)}, {data['path']}"),
        (
            "metadata",
            f"{_space(metadata)}, {output.size(metadata['file_size'])} of file",
        ),
        ("block size", output.size(status["block_size"])),
        ("transaction", str(status["transaction_id"])),
        ("volumes", _volumes(status["volumes"], status["deleting"])),
        ("clients", _clients(status["clients"], status["max_clients"])),
    ]
    reader = metadata["reader"]
    if reader is not None and reader["cost"]:
        cost = output.size(reader["cost"])
        rows.append(("reader", f"process {reader['pid']} keeps {cost} of metadata.lmdb in use"))
    if status["lost"]:
        names = ", ".join(status["lost"])
        rows.append(("not served", f"{names}: something is lost; see 'thinpool accept-loss'"))
    if status.get("running"):
        rows += [
            ("cache", _cache(status["cache"], status["memory"])),
            ("memory", _memory(status["memory"])),
            ("fast path", "yes" if status["fastpath"] else f"no: {status['fastpath_reason']}"),
            ("uri", status["uri"]),
            ("control socket", status["control_socket"]),
        ]
    return output.facts(rows)


def _mode(status: dict[str, Any]) -> str:
    mode, reason = status["mode"], status["reason"]
    if status["needs_check"]:
        return f"{mode}; it needs a check: stop it, and run 'thinpool check --clear-needs-check'"
    meant = not status["running"] or status["served_read_only"]
    return f"{mode}: {reason}{'' if meant else _TO_DO.get(mode, '')}" if reason else str(mode)


def _volumes(count: int, deleting: int) -> str:
    return f"{count}, and {deleting} being deleted" if deleting else str(count)


def _clients(count: int, most: int) -> str:
    return f"{count} of at most {most}" if most else str(count)


def _cache(kind: str, memory: dict[str, Any]) -> str:
    what = "data_cache" if kind == "bufio" else "unwritten"
    used, bound = output.size(memory[what]), output.size(memory["bounds"][what])
    if kind == "bufio":
        return f"bufio, {used} of at most {bound}"
    return f"page, {used} unwritten of about {bound} at most"


def _memory(memory: dict[str, Any]) -> str:
    bounds, metadata = memory["bounds"], memory["metadata_cache"]
    most = bounds["metadata_cache"]
    parts = (
        f"metadata cache {output.size(metadata)} of {output.size(most)}, mapping tables "
        f"{output.size(memory['mapping_tables'])}"
    )
    resident, total = output.size(memory["resident"]), bounds["total"]
    if total is None:
        return f"{resident}, without a bound while max-clients is 0; {parts}"
    requests = output.size(bounds["requests"])
    return f"{resident} of at most {output.size(total)}; {parts}, requests up to {requests}"


def _space(space: dict[str, Any]) -> str:
    used, size = space["used"], space["size"]
    share = output.percent(used, size)
    return f"{output.size(used)} of {output.size(size)} used ({share})"
