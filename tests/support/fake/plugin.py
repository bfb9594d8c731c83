"""An nbdkit script that serves volumes from plain files: what the rigs are tried on.

A rig that has never failed proves nothing. This stand-in keeps every promise of the real pool that
a client can see, has none of its machinery, and breaks one promise at a time on demand (`fault=`):

    flip            one byte of a long write is wrong
    shift           an unaligned write lands a sector too far
    zero-short      a zero forgets its last 512 bytes
    trim-junk       a trim leaves bytes that were neither there nor zero
    resize-junk     a grown volume shows old bytes
    snapshot-alias  a snapshot follows its origin
    rollback-noop   a rollback does nothing
    hole-lie        block status calls data a hole
    lost-flush      a flush is answered, and a crash forgets what it covered
    lost-fua        the same for a write with FUA
    lost-snapshot   the same for a snapshot
    torn            a crash leaves sectors that nobody wrote
    half-group      a crash leaves one snapshot of a group

Writes lie in memory until a flush, so a kill loses what was not flushed, as the worst device may.
The control socket speaks the daemon's protocol, as much of it as the rigs use.

Thread-safety: `lock` guards everything; nbdkit serializes requests.
"""

import json
import os
import shutil
import socket
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbdkit

API_VERSION = 2
SECTOR = 512

directory = ""
control = ""
fault = ""
lock = threading.RLock()
volumes: dict[str, "Volume"] = {}
serial = 0
listener: socket.socket


def thread_model() -> int:
    model: int = nbdkit.THREAD_MODEL_SERIALIZE_ALL_REQUESTS
    return model


def config(key: str, value: str) -> None:
    global directory, control, fault
    if key == "dir":
        directory = value
    elif key == "control":
        control = value
    elif key == "fault":
        fault = value
    else:
        raise RuntimeError(f"unknown parameter {key}")


def store_path(key: str) -> str:
    return os.path.join(directory, key)


def commit() -> None:
    """All that was written, and what exists, in one piece."""
    for volume in volumes.values():
        volume.persist()
    table = [
        {"name": v.name, "file": v.file, "size": v.size, "origin": v.origin, "id": v.dev_id}
        for v in volumes.values()
        if not v.volatile
    ]
    temporary = store_path("table.new")
    Path(temporary).write_text(json.dumps({"serial": serial, "volumes": table}))
    os.replace(temporary, store_path("table"))


class Volume:
    """A file, and the sectors written since the last flush."""

    def __init__(self, name: str, file: str, size: int, origin: str | None, dev_id: int) -> None:
        self.name, self.file, self.size, self.origin = name, file, size, origin
        self.dev_id = dev_id
        self.volatile = False
        self.pending: dict[int, bytes] = {}
        self.opened = 0
        self.alias: Volume | None = None
        self.fd = os.open(store_path(file), os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self.fd, size)

    def read(self, count: int, offset: int) -> bytearray:
        if self.alias is not None:
            return self.alias.read(count, offset)
        first, last = offset // SECTOR, -(-(offset + count) // SECTOR)
        data = bytearray(os.pread(self.fd, (last - first) * SECTOR, first * SECTOR))
        data.extend(bytes((last - first) * SECTOR - len(data)))
        for sector in self.pending.keys() & range(first, last):
            at = (sector - first) * SECTOR
            data[at : at + SECTOR] = self.pending[sector]
        begin = offset - first * SECTOR
        return data[begin : begin + count]

    def write(self, data: bytes, offset: int) -> None:
        first, last = offset // SECTOR, -(-(offset + len(data)) // SECTOR)
        whole = self.read((last - first) * SECTOR, first * SECTOR)
        begin = offset - first * SECTOR
        whole[begin : begin + len(data)] = data
        for sector in range(first, last):
            at = (sector - first) * SECTOR
            self.pending[sector] = bytes(whole[at : at + SECTOR])

    def persist(self) -> None:
        for sector, data in self.pending.items():
            os.pwrite(self.fd, data, sector * SECTOR)
        self.pending.clear()

    def copy_from(self, other: "Volume") -> None:
        """Takes another's content, in a new file: a crash before the commit leaves the old one."""
        other.persist()
        self.file = fresh_file()
        shutil.copyfile(store_path(other.file), store_path(self.file))
        os.close(self.fd)
        self.fd = os.open(store_path(self.file), os.O_RDWR)
        self.pending.clear()
        self.size = other.size


def fresh_file() -> str:
    """A name that no file has: a crash may have left some that nothing refers to."""
    global serial
    serial += 1
    while os.path.exists(store_path(f"v{serial}")):
        serial += 1
    return f"v{serial}"


def add(name: str, size: int, origin: str | None) -> Volume:
    file = fresh_file()
    volume = Volume(name, file, size, origin, serial)
    volumes[name] = volume
    return volume


# The control socket


def describe(volume: Volume) -> dict[str, Any]:
    return {
        "name": volume.name,
        "id": volume.dev_id,
        "uuid": str(uuid.UUID(int=volume.dev_id)),
        "size": volume.size,
        "mapped": 0,
        "exclusive": 0,
        "origin": volume.origin,
        "created": "",
        "read_only": False,
        "clients": volume.opened,
    }


def do_list() -> Any:
    return {"volumes": [describe(volume) for volume in volumes.values()]}


def do_create(name: str, size: int) -> Any:
    volume = add(name, size, None)
    commit()
    return describe(volume)


def do_snapshot(pairs: list[list[str]]) -> Any:
    for index, (origin, snap) in enumerate(pairs):
        source = volumes[origin]
        volume = add(snap, source.size, origin)
        volume.copy_from(source)
        if fault == "snapshot-alias":
            volume.alias = source
        volume.volatile = fault == "lost-snapshot" or (fault == "half-group" and index > 0)
    commit()
    return {"snapshots": [describe(volumes[snap]) for _, snap in pairs]}


def do_delete(names: list[str]) -> Any:
    for name in names:
        if volumes[name].opened:
            raise ValueError(f"{name} is in use")
    for name in names:
        os.close(volumes.pop(name).fd)
    commit()
    return {}


def do_rename(old: str, new: str) -> Any:
    volume = volumes.pop(old)
    volume.name = new
    volumes[new] = volume
    commit()
    return describe(volume)


def do_resize(name: str, size: int, shrink: bool = False) -> Any:
    volume = volumes[name]
    volume.persist()
    grown = size - volume.size
    if fault == "resize-junk" and grown > 0:
        os.pwrite(volume.fd, b"old" * 100, volume.size)
    volume.size = size
    commit()
    os.ftruncate(volume.fd, size)
    return describe(volume)


def do_rollback(name: str, snapshot: str, discard_current: bool = False) -> Any:
    volume = volumes[name]
    if not discard_current:
        add(f"{name}-kept-{serial}", volume.size, name).copy_from(volume)
    if fault == "rollback-noop":
        os.ftruncate(volume.fd, volumes[snapshot].size)
        volume.size = volumes[snapshot].size
    else:
        volume.copy_from(volumes[snapshot])
    commit()
    return describe(volume)


def do_stop() -> Any:
    return {"stopping": False}


METHODS: dict[str, Callable[..., Any]] = {
    "stop": do_stop,
    "list": do_list,
    "create": do_create,
    "snapshot": do_snapshot,
    "delete": do_delete,
    "rename": do_rename,
    "resize": do_resize,
    "rollback": do_rollback,
}


def talk(peer: socket.socket) -> None:
    with peer, peer.makefile("rb") as lines:
        for line in lines:
            message = json.loads(line)
            answer: dict[str, Any] = {"jsonrpc": "2.0", "id": message["id"]}
            try:
                with lock:
                    answer["result"] = METHODS[message["method"]](**message["params"])
            except Exception as error:
                answer["error"] = {"code": -32000, "message": str(error)}
            peer.sendall(json.dumps(answer).encode() + b"\n")


def serve(listener: socket.socket) -> None:
    while True:
        peer, _ = listener.accept()
        threading.Thread(target=talk, args=(peer,), daemon=True).start()


def get_ready() -> None:
    """Listens before nbdkit says that it is ready; `after_fork` answers."""
    global listener
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(control)
    listener.listen()


def after_fork() -> None:
    global serial
    if os.path.exists(store_path("table")):
        known = json.loads(Path(store_path("table")).read_text())
        serial = known["serial"]
        for v in known["volumes"]:
            volumes[v["name"]] = Volume(v["name"], v["file"], v["size"], v["origin"], v["id"])
        if fault == "torn":
            for volume in volumes.values():
                os.pwrite(volume.fd, b"torn" * 128, volume.size // 2 // SECTOR * SECTOR)
    threading.Thread(target=serve, args=(listener,), daemon=True).start()


# nbdkit's callbacks


def list_exports(readonly: int, is_tls: int) -> list[tuple[str, str]]:
    with lock:
        return [(name, "a stand-in") for name in volumes]


def open(readonly: int) -> Volume:
    with lock:
        volume = volumes.get(nbdkit.export_name())
        if volume is None:
            raise FileNotFoundError(2, "no such volume")
        volume.opened += 1
        return volume


def close(volume: Volume) -> None:
    with lock:
        volume.opened -= 1


def get_size(volume: Volume) -> int:
    return volume.size


def can_write(volume: Volume) -> bool:
    return True


def can_flush(volume: Volume) -> bool:
    return True


def can_trim(volume: Volume) -> bool:
    return True


def can_zero(volume: Volume) -> bool:
    return True


def can_fast_zero(volume: Volume) -> bool:
    return True


def can_extents(volume: Volume) -> bool:
    return True


def can_multi_conn(volume: Volume) -> bool:
    return True


def can_fua(volume: Volume) -> int:
    native: int = nbdkit.FUA_NATIVE
    return native


def can_cache(volume: Volume) -> int:
    emulate: int = nbdkit.CACHE_EMULATE
    return emulate


def finish(volume: Volume, flags: int) -> None:
    if flags & nbdkit.FLAG_FUA and fault != "lost-fua":
        volume.persist()


def pread(volume: Volume, buf: Any, offset: int, flags: int) -> None:
    with lock:
        buf[:] = volume.read(len(buf), offset)


def pwrite(volume: Volume, buf: Any, offset: int, flags: int) -> None:
    with lock:
        data = bytearray(buf)
        if fault == "flip" and len(data) > 70000:
            data[66000] ^= 1
        if fault == "shift" and offset % 65536 and offset + len(data) + SECTOR <= volume.size:
            offset += SECTOR
        volume.write(bytes(data), offset)
        finish(volume, flags)


def zero(volume: Volume, count: int, offset: int, flags: int) -> None:
    with lock:
        if fault == "zero-short":
            count = max(1, count - SECTOR)
        volume.write(bytes(count), offset)
        finish(volume, flags)


def trim(volume: Volume, count: int, offset: int, flags: int) -> None:
    with lock:
        volume.write((b"\xff" if fault == "trim-junk" else b"\0") * count, offset)
        finish(volume, flags)


def flush(volume: Volume, flags: int) -> None:
    with lock:
        if fault != "lost-flush":
            for each in volumes.values():
                each.persist()


def extents(volume: Volume, count: int, offset: int, flags: int) -> list[tuple[int, int, int]]:
    with lock:
        found = []
        data = volume.read(count, offset)
        for at in range(0, count, SECTOR):
            piece = data[at : at + SECTOR]
            empty = fault == "hole-lie" or not any(piece)
            kind = nbdkit.EXTENT_HOLE | nbdkit.EXTENT_ZERO if empty else 0
            found.append((offset + at, len(piece), kind))
        return found
