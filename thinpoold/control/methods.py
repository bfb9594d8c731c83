"""What can be asked of a pool: every method, its parameters, what it returns.

The one list behind the control socket, the command line on a stopped pool, and the documentation.
A method does what the verb of the same name does, and returns the fields of its `--json`.

Thread-safety: the table is constant. Methods run on whatever thread calls, several at a time.
"""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from thinpoold.control.codes import one_line
from thinpoold.control.jsonrpc import Json
from thinpoold.control.params import (
    BYTES,
    FLAG,
    PAIRS,
    PROCESSES,
    SETTINGS,
    TEXT,
    TEXT_OR_NULL,
    TEXTS,
    Param,
)
from thinpoold.uri import volume_uri

# How long `reconnect` waits before it says that something is left.
_FINISH_SECONDS = 10.0

Params: TypeAlias = dict[str, Json]
Result: TypeAlias = dict[str, Json]


class Host(Protocol):
    """The process that has the pool open: the daemon, or the command line on a stopped pool."""

    @property
    def pool(self) -> Any:
        """The open pool (thinpoold.pool.Pool)."""

    @property
    def server_uri(self) -> str:
        """Where NBD clients find the pool: a URI without an export."""

    def run_facts(self) -> Result:
        """What `status` says of the process: running, pid, uri, control_socket, fastpath_reason."""

    @property
    def threads(self) -> int:
        """How many threads serve one connection; 0 when there are no connections."""

    @property
    def answers_in_turn(self) -> bool:
        """Whether a connection's requests are answered one after the other."""

    def stop(self) -> None:
        """Begin to shut the process down; return at once."""


@dataclass(frozen=True)
class Method:
    """One method. `doc` opens with a line of summary; `returns` says what the result holds.

    `effect` is what it does that is more than to look and less than to change the pool.
    """

    name: str
    doc: str
    returns: str
    run: Callable[[Host, Params], Result]
    params: tuple[Param, ...] = ()
    changes: bool = False
    effect: str = ""

    def looks(self, params: Params) -> bool:
        """Whether it does no more than look, called like that."""
        return bool(params.get("dry_run")) or (not self.changes and not self.effect)


def _status(host: Host, params: Params) -> Result:
    from thinpoold import admin

    memory = admin.memory(host.pool, host.threads)
    return {**admin.status(host.pool), "memory": memory, **host.run_facts()}


def _stop(host: Host, params: Params) -> Result:
    answer: Result = {"stopping": True, "pid": host.run_facts()["pid"], "error": None}
    # The process commits at its end too, but then nobody is left to be told that it failed.
    try:
        host.pool.commit()
    except Exception as error:
        answer["error"] = one_line(error)
    host.stop()
    return answer


def _commit(host: Host, params: Params) -> Result:
    host.pool.commit()
    return {"committed": True}


def _uri(host: Host, params: Params) -> Result:
    place = _place(host, params)
    return {key: place[key] for key in ("uri", "stable_uri")}


def _place(host: Host, params: Params) -> Result:
    from thinpoold import admin

    place = admin.place_of(host.pool, name=params["name"])
    stable = str(place.pop("export"))
    return {
        "uri": volume_uri(host.server_uri, str(place["name"])),
        "stable_uri": volume_uri(host.server_uri, stable),
        **place,
    }


def _reconnect(host: Host, params: Params) -> Result:
    from thinpoold import admin, clients

    fact = admin.find(host.pool, uuid=params["uuid"], generation=params["generation"])
    gently = socket.SHUT_RD if host.answers_in_turn else socket.SHUT_RDWR
    shut = gently if params["hang_up"] else None
    left = clients.finish(params["pids"], shut=shut, seconds=_FINISH_SECONDS)
    export = str(fact.pop("export"))
    return {**fact, "uri": volume_uri(host.server_uri, export), "left": left}


def _disconnect(host: Host, params: Params) -> Result:
    from thinpoold import admin

    result: Result = admin.disconnect(host.pool, **params)
    return result


def _admin(function: str) -> Callable[[Host, Params], Result]:
    """Return a method that is one function of thinpoold.admin, parameters and all.

    Imported when it is called: the documentation and the command line's help need only the table.
    """

    def run(host: Host, params: Params) -> Result:
        from thinpoold import admin

        result: Result = getattr(admin, function)(host.pool, **params)
        return result

    return run


_NAME = Param("name", TEXT, "the volume")
_OF_VOLUME = Param("volume", TEXT_OR_NULL, "a volume, or null for the pool", None)
_FORCE_NAME = Param(
    "force", FLAG, "also if a client has another volume open by that name, and may come back", False
)
_FORCE_ABSENT = Param(
    "force", FLAG, "also if a client had it open when the daemon ended, and may come back", False
)
_VOLUME = "a volume, as `list` has it"

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "status",
            "Say how the pool is: its mode, space, transaction, volumes and clients.",
            "`name`, `uuid`, `running`, `served_read_only` (whether it was started to be read "
            "alone), `mode` (`write`, `out-of-data-space`, "
            "`out-of-metadata-space`, `read-only` or `failed`), `reason` (why it is in this mode, "
            "or empty), `needs_check`, `pid`, `uri`, `control_socket`, `transaction_id`, "
            "`block_size`, `data` (`path`, `size`, `used`), "
            "`cache` (`page` or `bufio`, the one in effect), `metadata` (`size`, `used`, "
            "`file_size`, `reader`: null, or the `pid` of a process that reads an old commit and "
            "its `cost` in bytes of file), `memory` (`resident`, `metadata_cache`, `data_cache`, "
            "`mapping_tables`, "
            "`unwritten` and, of all but the first, `bounds`; those are also of `requests`, all "
            "that `max_clients` may have under way, and `total`, the sum of what is the process's "
            "own: null where `max_clients` is 0), `volumes`, `lost` (names of volumes of which "
            "something that was answered is lost), `deleting` (how many deleted volumes' space is "
            "still being given back), `clients`, `max_clients`, `largest_request` (the most bytes "
            "that a client may send or ask for at a time), `fastpath` (whether the C filter is "
            "there) and `fastpath_reason` (why it is not, or empty)",
            _status,
        ),
        Method(
            "commit",
            "Commit what was done, which the daemon does each second by itself.",
            "`committed` (true)",
            _commit,
            effect="Changes when things are durable, and nothing else.",
        ),
        Method(
            "stop",
            "Begin to stop the daemon: everything is flushed, then the process ends.\n\n"
            "The answer comes before that. Wait for the process `pid` to be gone.",
            "`stopping` (true), `pid`, `error` (null or, when the last commit failed, why; the "
            "daemon stops all the same)",
            _stop,
            effect="Ends the daemon.",
        ),
        Method(
            "get",
            "Say what the settings are, of the pool or of a volume.",
            "`settings`",
            _admin("get_settings"),
            (_OF_VOLUME,),
        ),
        Method(
            "set",
            "Change settings, of the pool or of a volume: all or, if one will not do, none.",
            "`settings`, as they are now",
            _admin("set_settings"),
            (Param("settings", SETTINGS, "what to change, by name"), _OF_VOLUME),
            changes=True,
        ),
        Method(
            "grow",
            "Make the data device larger.\n\n"
            "A data file is made larger; a block device must have grown already.",
            "`data` (`path`, `size`, `used`)",
            _admin("grow"),
            (Param("size", BYTES, "the new size of the data device"),),
            changes=True,
        ),
        Method(
            "list",
            "List the volumes.",
            "`volumes`: for each `name`, `id`, `uuid`, `generation` (it goes up when the content "
            "becomes another under clients), `size`, `mapped`, `exclusive`, `origin` "
            "(a name or null), `created` (UTC, ISO 8601), `read_only`, `lost` (whether something "
            "that was answered is lost: see `accept-loss`), `clients` (how many "
            "connections), `opened_by`: for each client `pid`, `command`, `uid` and `user` of its "
            "process (null over a network), `address` (null at a Unix socket), `tls`, `read_only`, "
            "`connections`, `since`; what is not known is null; `labels`, texts by their keys",
            _admin("list_volumes"),
        ),
        Method(
            "tree",
            "Say who was snapshotted from whom.",
            "`volumes`: those without an origin, as `list` has them, each with `children`, nested; "
            "one that lies below 100 levels stands with those without an origin, and says by its "
            "`origin` where it belongs",
            _admin("tree"),
        ),
        Method(
            "info",
            "Say everything about one volume.",
            f"{_VOLUME}, and `shared`, `reserve`, `reserve_free` (bytes), `block_size`, "
            "`snapshots` (names), `created_in_transaction`",
            _admin("info"),
            (_NAME,),
        ),
        Method(
            "uri",
            "Say where NBD clients find a volume.",
            "`uri`, by its name, and `stable_uri`, which never is another volume's, nor of this "
            "volume with another content: for clients that connect again by themselves",
            _uri,
            (_NAME,),
        ),
        Method(
            "place",
            "Say where a volume is and how large, without a walk over it.",
            "what `uri` does, and `name`, `uuid`, `generation`, `size`, `read_only`",
            _place,
            (_NAME,),
        ),
        Method(
            "reconnect",
            "Say where a volume is now, to a client that connects again.\n\n"
            "It waits, for some seconds, until all requests of connections that have ended are "
            "done: what the client repeats then cannot be overtaken by what it sent before.",
            "`name`, `uuid`, `generation`, `uri` (the stable one), `size`, `read_only`, `left` "
            "(how many connections still have requests under way; ask again until there is none)",
            _reconnect,
            (
                Param("uuid", TEXT, "the volume"),
                Param("generation", BYTES, "refuse another content than this; 0: any", 0),
                Param("pids", PROCESSES, "the processes that had connected, on UNIX sockets"),
                Param("hang_up", FLAG, "end all connections of theirs, not only wait", False),
            ),
            effect="Changes connections alone.",
        ),
        Method(
            "disconnect",
            "Hang up on the clients that have a volume open, or on one of them.\n\n"
            "Requests under way are carried out, and their answers go nowhere. A client that "
            "connects again is let in again.",
            "`name`, `disconnected` (how many connections), `left` (how many of them still have "
            "requests under way after ten seconds, and have the volume open until those are done)",
            _disconnect,
            (
                _NAME,
                Param("client", TEXT_OR_NULL, "a process id or an address; null: all", None),
            ),
            effect="Changes connections alone.",
        ),
        Method(
            "create",
            "Make a thin volume. It takes no space until it is written.",
            _VOLUME,
            _admin("create"),
            (
                Param("name", TEXT, "the new volume"),
                Param("size", BYTES, "its size, a multiple of 512"),
                Param("read_only", FLAG, "whether clients may only read it", False),
                Param("reserve", BYTES, "space kept free for it", 0),
                _FORCE_NAME,
            ),
            changes=True,
        ),
        Method(
            "snapshot",
            "Snapshot volumes, all at one instant and in one transaction.",
            "`volumes`: the snapshots, as `list` has them",
            _admin("snapshot"),
            (
                Param("pairs", PAIRS, "the origin and the new snapshot's name, for each"),
                Param("read_only", FLAG, "whether clients may only read them", False),
                _FORCE_NAME,
            ),
            changes=True,
        ),
        Method(
            "resize",
            "Change a volume's size.",
            _VOLUME,
            _admin("resize"),
            (
                _NAME,
                Param("size", BYTES, "the new size, a multiple of 512"),
                Param("shrink", FLAG, "allow a smaller size, which discards what is cut", False),
                _FORCE_ABSENT,
            ),
            changes=True,
        ),
        Method(
            "accept-loss",
            "Let clients open volumes again of which something that was answered is lost.",
            "`volumes`: for each what `list` says of it, and `losses`: `when` (UTC, ISO 8601), "
            "`why`, `ranges` (offset and length in bytes of new blocks; what was overwritten in "
            "place is not known); `dry_run`",
            _admin("accept_loss"),
            (
                Param("names", TEXTS, "the volumes"),
                Param("dry_run", FLAG, "only say what is lost", False),
            ),
            changes=True,
        ),
        Method(
            "rename",
            "Give a volume another name. Clients that have it open keep it.",
            _VOLUME,
            _admin("rename"),
            (
                Param("old", TEXT, "the volume"),
                Param("new", TEXT, "its new name"),
                _FORCE_NAME,
            ),
            changes=True,
        ),
        Method(
            "delete",
            "Delete volumes, all of them or none. Refused while a client has one open.\n\n"
            "They are gone for good in one transaction; then their space is given back, and the "
            "answer comes.",
            "`volumes` (names), `freed` (bytes), `dry_run`",
            _admin("delete"),
            (
                Param("names", TEXTS, "the volumes"),
                Param("dry_run", FLAG, "only say what would be freed", False),
                _FORCE_ABSENT,
            ),
            changes=True,
        ),
        Method(
            "rollback",
            "Make a volume's content that of a snapshot. Newer snapshots stay.",
            "`volume`, as `list` has it; `kept`, the name of the snapshot that holds what the "
            "volume held before, or null",
            _admin("rollback"),
            (
                _NAME,
                Param("snapshot", TEXT, "the volume whose content it gets"),
                Param("discard_current", FLAG, "keep no snapshot of what it held", False),
                _FORCE_ABSENT,
            ),
            changes=True,
        ),
    )
}
