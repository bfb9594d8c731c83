"""Attach, refresh and detach: what the command line's verbs do.

Invariants

1. What fails half way is undone: no device stays connected, no process stays.
2. A volume is attached once, or any number of times read-only: two devices would not know what the
   other has written.
3. Nothing that somebody uses is detached.

Thread-safety: the records' lock keeps commands of one user apart.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from thinpoold.attach import fuse, kernel, mounts, nbdclient, records
from thinpoold.attach import unmount as unmounting
from thinpoold.attach.devices import NbdDevice, free_devices, parse_nbd_device
from thinpoold.attach.errors import AttachFailed, AttachRefused, DeviceBusy
from thinpoold.attach.guard import refuse_repeats
from thinpoold.attach.handshake import parse_uri, wait_for_daemon
from thinpoold.attach.keeper import Order, ask_for_volume
from thinpoold.attach.records import Attachment
from thinpoold.control.client import ControlClient
from thinpoold.control.codes import RemoteError, one_line
from thinpoold.errors import ControlError, PoolNotRunning, ThinPoolError
from thinpoold.paths import PoolPaths
from thinpoold.uri import unix_uri
from thinpoold.waiting import Waiting

# I/O waits so long for a daemon that is gone, and fails then.
PATIENCE_SECONDS = 600
_DAEMON_SECONDS = 90.0
_GONE_SECONDS = 30.0
_REFRESH_SECONDS = 120.0
_LOOK_AGAIN = 0.05
# A daemon that has not said by then what a volume is called now is done without.
_ASK_SECONDS = 10.0


@dataclass(frozen=True)
class Wanted:
    """How a volume is to be attached; `device` is None for any that is free."""

    device: NbdDevice | None = None
    read_only: bool = False
    user: bool = False
    connections: int = 1
    block_size: int = 512
    patience: int = PATIENCE_SECONDS


def attach(paths: PoolPaths, name: str, wanted: Wanted) -> Attachment:
    """Attach a volume of a running pool. Raises ThinPoolError."""
    if not wanted.user:
        require_kernel()
    place, uri = look_up(paths, name)
    # Refuses TLS.
    parse_uri(uri)
    refuse_repeats(_settings(paths, name), wanted.connections)
    read_only = wanted.read_only or place["read_only"]
    with records.locked():
        records.clear_stale()
        _refuse_twice(name, place["uuid"], read_only)
        if wanted.user:
            return fuse.attach(
                pool=str(paths.directory),
                volume=name,
                uuid=place["uuid"],
                generation=place["generation"],
                uri=uri,
                read_only=read_only,
                patience=wanted.patience,
            )
        order = Order(
            pool=str(paths.directory),
            control_socket=str(paths.control_socket),
            uri=uri,
            volume=name,
            uuid=place["uuid"],
            generation=place["generation"],
            size=place["size"],
            device="",
            block_size=wanted.block_size,
            connections=wanted.connections,
            patience=wanted.patience,
            read_only=read_only,
        )
        return _attach_nbd(order, wanted.device)


def require_kernel() -> None:
    """Raise AttachRefused unless this process may attach with the kernel's nbd."""
    if os.geteuid() != 0:
        raise AttachRefused("only root may attach nbd devices: run it with sudo, or use --user")
    if not kernel.available():
        raise AttachRefused(
            "the kernel has no nbd module: load it with 'modprobe nbd', or use --user"
        )


def look_up(paths: PoolPaths, name: str) -> tuple[dict[str, Any], str]:
    """Return what `place` says of a volume, and its URI. Raises PoolNotRunning, RemoteError."""
    paths.require_pool()
    try:
        client = ControlClient.connect(paths.control_socket, paths.trusted)
    except PoolNotRunning:
        # A service manager may listen for the daemon, and start it for whoever connects.
        server, _ = parse_uri(unix_uri(paths.nbd_socket))
        wait_for_daemon(server, _DAEMON_SECONDS)
        client = ControlClient.connect(paths.control_socket, paths.trusted)
    with client:
        place: Any = client.call("place", {"name": name})
    # Whoever connects again by it finds this volume with this content, or none.
    return place, place["stable_uri"]


def _settings(paths: PoolPaths, name: str) -> dict[str, Any]:
    """The settings of a pool, and of a volume of it."""
    with ControlClient.connect(paths.control_socket, paths.trusted) as client:
        answers: list[Any] = [client.call("get"), client.call("get", {"volume": name})]
    return {key: value for answer in answers for key, value in answer["settings"].items()}


def _refuse_twice(name: str, uuid: str, read_only: bool) -> None:
    there = [one for one in records.attachments() if one.uuid == uuid]
    if there and not (read_only and all(one.read_only for one in there)):
        raise AttachRefused(
            f"volume {name!r} is attached already, as {there[0].device}: detach it first, or "
            "attach a snapshot of it"
        )
    if any(one.kind == records.FUSE for one in there):
        raise AttachRefused(f"volume {name!r} is attached already, as {there[0].device}")


def _attach_nbd(order: Order, device: NbdDevice | None) -> Attachment:
    if device is not None:
        if device.connector is not None:
            raise AttachRefused(f"{device.path} is in use; leave --device out, or name another")
        return start_keeper(order, device)
    for candidate in free_devices():
        try:
            return start_keeper(order, candidate)
        except DeviceBusy:
            continue
    raise AttachRefused("all nbd devices are in use; detach one, or 'modprobe nbd nbds_max=N'")


def start_keeper(order: Order, device: NbdDevice) -> Attachment:
    """Start the process that attaches a device and stays with it; return once it is attached."""
    settled = replace(order, device=str(device.path))
    log = records.make_directory() / f"{device.name}.log"
    ready, ready_child = os.pipe()
    try:
        with log.open("ab" if order.adopt else "wb") as said:
            process = subprocess.Popen(
                # -P: not what lies in the directory that the caller stands in.
                [sys.executable, "-P", "-m", "thinpoold.attach.keeper", str(ready_child)],
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=said,
                pass_fds=[ready_child],
                start_new_session=True,
                cwd="/",
            )
        os.close(ready_child)
        ready_child = -1
        assert process.stdin is not None
        process.stdin.write(settled.to_json().encode())
        process.stdin.close()
        message = _read_all(ready)
    finally:
        os.close(ready)
        if ready_child >= 0:
            os.close(ready_child)
    answer: Any = json.loads(message) if message else {"error": f"its keeper died; see {log}"}
    if "error" in answer:
        process.wait()
        kind = DeviceBusy if answer.get("busy") else AttachFailed
        raise kind(f"cannot attach volume {order.volume!r} as {device.path}: {answer['error']}")
    # It stays, and is nobody's to wait for.
    process.returncode = 0
    values = answer["attached"]
    return Attachment(**{**values, "clients": tuple(values["clients"])})


def refresh(paths: PoolPaths, attachment: Attachment) -> tuple[Attachment, int]:
    """Connect an attached volume anew, so that the kernel learns its size; return that in bytes.

    An nbd device need not be unmounted: I/O waits for a moment. FUSE's file keeps its size, so it
    is made again, while nobody uses it, and may be another device then. Raises ThinPoolError.
    """
    if attachment.kind == records.FUSE:
        return _serve_anew(paths, attachment)
    return attachment, _connect_anew(paths, attachment)


def _serve_anew(paths: PoolPaths, attachment: Attachment) -> tuple[Attachment, int]:
    with records.locked():
        current = _still_attached(attachment)
        place = ask_for_volume(str(paths.control_socket), current)
        who = users(current)
        if who:
            raise AttachRefused(
                f"{current.device} is {who[0]}, and learns no new size meanwhile: {_remedy(who[0])}"
            )
        fuse.detach(current)
        try:
            found = fuse.attach(
                pool=current.pool,
                volume=place["name"],
                uuid=current.uuid,
                generation=place["generation"],
                uri=place["uri"],
                read_only=current.read_only,
                patience=current.patience,
            )
        except (ThinPoolError, OSError) as error:
            words = ["thinpool", "-p", current.pool, "attach", place["name"], "--user"]
            words += ["--read-only"] if current.read_only else []
            words += ["--timeout", str(current.patience)]
            raise AttachFailed(
                f"{current.device} is detached, and cannot be attached anew: {one_line(error)}; "
                f"then attach it with '{shlex.join(words)}'"
            ) from None
    return found, int(place["size"])


def _still_attached(attachment: Attachment) -> Attachment:
    """The record as it is now, under the lock. Raises AttachRefused when it is no longer true."""
    current = records.reread(attachment)
    if current is None or not current.is_live:
        raise AttachRefused(f"{attachment.device} is no longer attached")
    return current


def _connect_anew(paths: PoolPaths, attachment: Attachment) -> int:
    device = NbdDevice(Path(attachment.device).name)
    require_kernel()
    _, uri = look_up_uuid(paths, attachment)
    server, _ = parse_uri(uri)
    if isinstance(server.address, tuple):
        # Whose connections are whose is not known there.
        raise AttachRefused(
            f"{attachment.device} is attached over TCP: for its new size detach it and attach it "
            "again, or restart the daemon"
        )
    with records.locked():
        current = _still_attached(attachment)
        if not current.is_kept:
            current = _adopt(paths, current)
        until = f"for at most {_REFRESH_SECONDS:.0f} s"
        with Waiting(f"the keeper of {device.path} to connect it again", until):
            place = ask_for_volume(str(paths.control_socket), current, hang_up=True)
            deadline = time.monotonic() + _REFRESH_SECONDS
            while not _is_renewed(current) or device.size != place["size"]:
                if time.monotonic() >= deadline:
                    log = records.directory() / f"{device.name}.log"
                    raise AttachFailed(
                        f"{attachment.device} is not connected again yet; its keeper goes on "
                        f"trying, see {log}"
                    )
                time.sleep(_LOOK_AGAIN)
    return int(place["size"])


def _adopt(paths: PoolPaths, attachment: Attachment) -> Attachment:
    """Give a device whose keeper is gone another."""
    _, uri = look_up_uuid(paths, attachment)
    order = Order(
        pool=attachment.pool,
        control_socket=str(paths.control_socket),
        uri=uri,
        volume=attachment.volume,
        uuid=attachment.uuid,
        generation=attachment.generation,
        size=0,
        device=attachment.device,
        block_size=0,
        connections=attachment.connections,
        patience=attachment.patience,
        read_only=attachment.read_only,
        adopt=asdict(attachment),
    )
    return start_keeper(order, NbdDevice(Path(attachment.device).name))


def look_up_uuid(paths: PoolPaths, attachment: Attachment) -> tuple[str, str]:
    """Return name and URI of the volume that is attached, whatever it is called now."""
    place = ask_for_volume(str(paths.control_socket), attachment)
    return place["name"], place["uri"]


def _is_renewed(before: Attachment) -> bool:
    now = records.reread(before)
    return now is not None and now.renewed > before.renewed


def find(paths: PoolPaths | None, word: str) -> Attachment:
    """Return what is attached under a volume's name, or as a device or file.

    Raises AttachRefused when nothing is, or more than one thing.
    """
    if "/" in word:
        return _find_device(word)
    assert paths is not None
    there = records.attachments(paths.directory)
    uuid = _uuid_of(paths, word)
    found = [one for one in there if (one.uuid == uuid if uuid else one.volume == word)]
    if not found:
        raise AttachRefused(f"volume {word!r} is not attached to this machine")
    if len(found) > 1:
        devices = ", ".join(one.device for one in found)
        raise AttachRefused(f"volume {word!r} is attached more than once: name one of {devices}")
    return found[0]


def _find_device(word: str) -> Attachment:
    real = os.path.realpath(word)
    for one in records.attachments():
        if real in (one.device, one.file):
            return one
    if real.startswith("/dev/nbd") and parse_nbd_device(word).connector is not None:
        raise AttachRefused(
            f"{word} was not attached by thinpool: whoever did can detach it, or 'nbd-client -d'"
        )
    raise AttachRefused(f"nothing is attached as {word}")


def _uuid_of(paths: PoolPaths, name: str) -> str | None:
    """The uuid of the volume that has this name now; None when the daemon cannot tell."""
    try:
        with ControlClient.connect(
            paths.control_socket, paths.trusted, timeout=_ASK_SECONDS
        ) as client:
            place: Any = client.call("place", {"name": name})
        uuid: str = place["uuid"]
    except (PoolNotRunning, RemoteError, ControlError):
        return None
    return uuid


def detach(attachment: Attachment, *, unmount: bool = False, force: bool = False) -> list[str]:
    """Detach. Raises AttachRefused while anybody uses it, AttachFailed.

    With `force` the daemon is not needed: what is not written there yet is lost. Processes that
    have the device open get errors, and keep it from others: they are returned. A mount still needs
    `unmount`.
    """
    with records.locked():
        if attachment.kind == records.NBD:
            _require_root()
        if force:
            if not unmount:
                _refuse_mounted(attachment)
            _cut_off(attachment)
        if unmount:
            unmounting.unmount(attachment, force=force)
        who = users(attachment)
        if who and not force:
            raise AttachRefused(f"{attachment.device} is {who[0]}: {_remedy(who[0])}")
        if attachment.kind == records.FUSE:
            fuse.detach(attachment, used=bool(who))
        else:
            _detach_nbd(attachment, disconnected=force, used=bool(who))
        return who


def _refuse_mounted(attachment: Attachment) -> None:
    for point in attachment.mounts():
        use = f"mounted on {point}"
        raise AttachRefused(f"{attachment.device} is {use}: {_remedy(use)}")


def _cut_off(attachment: Attachment) -> None:
    """Have all that waits for the daemon fail, and nothing be connected again."""
    if attachment.is_kept:
        # A keeper would connect it anew; nbdfuse serves it.
        os.kill(attachment.pid, signal.SIGKILL)
    if attachment.kind == records.NBD:
        try:
            kernel.disconnect(NbdDevice(Path(attachment.device).name).index)
        except OSError as error:
            raise AttachFailed(f"{attachment.device}: {error.strerror}") from None


def users(attachment: Attachment) -> list[str]:
    """Say who uses what is attached."""
    device = attachment.block_device
    found = mounts.users(device) if device is not None else []
    if attachment.kind == records.FUSE:
        # The loop device itself is the kernel's way of having the file open.
        found += fuse.users(attachment)
    return found


def _remedy(use: str) -> str:
    if use.startswith("mounted on "):
        return "unmount it first, or say --unmount"
    if use.startswith("in use as swap"):
        return "swapoff first"
    return "end that first"


def _require_root() -> None:
    if os.geteuid() != 0:
        raise AttachRefused("only root may detach nbd devices: run it with sudo")


def _detach_nbd(attachment: Attachment, *, disconnected: bool, used: bool) -> None:
    device = NbdDevice(Path(attachment.device).name)
    if not disconnected:
        program = nbdclient.find("nbd-client", "nbd-client")
        nbdclient.run(nbdclient.disconnect_command(program, device.path))
    if not used:
        with Waiting(f"{device.path} to be let go", f"for at most {_GONE_SECONDS:.0f} s"):
            free = device.wait_until_free(attachment.connector, _GONE_SECONDS)
        if not free:
            raise AttachFailed(f"{device.path} stays connected: see dmesg for who holds it")
    if attachment.is_kept:
        os.kill(attachment.pid, signal.SIGTERM)
    records.remove(attachment)


def _read_all(fd: int) -> bytes:
    data = b""
    while piece := os.read(fd, 65536):
        data += piece
        if data.endswith(b"\n"):
            break
    return data
