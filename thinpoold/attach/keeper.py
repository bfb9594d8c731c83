"""The process that stays with an attached nbd device, and connects it anew when its daemon went.

    attach ── starts ──> keeper ── runs ──> nbd-client ── configures ──> /dev/nbdN, and is gone
                            │
                            ├─ tells the kernel to let I/O wait while there is no connection
                            └─ at each lost connection: waits for the daemon, makes new ones,
                               gives them, and the volume's size, to the kernel

nbd-client alone would lose the device: over netlink it does not stay, and over ioctl Linux fails
all requests as soon as the connection is gone, -persist or not.

Invariants

1. It listens for lost connections before there are any to lose.
2. New connections go to the kernel only when the daemon has finished every request of the lost
   ones. The kernel repeats what was not answered; done earlier, an old write could overtake a newer
   one of the same block.
3. The volume is known by its uuid: renaming it does not matter, and another one of the same name
   is never connected.
4. It lives as long as the device is connected by whoever its record names, and no longer.
5. It needs no disk to do its work: all it needs is in memory, and stays there.

One thread.
"""

import ctypes
import json
import os
import select
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from thinpoold.attach import kernel, nbdclient, records
from thinpoold.attach.devices import NbdDevice
from thinpoold.attach.errors import AttachFailed, DeviceBusy
from thinpoold.attach.handshake import greet, open_export, parse_uri
from thinpoold.attach.records import Attachment
from thinpoold.control.client import ControlClient
from thinpoold.control.codes import one_line
from thinpoold.errors import ThinPoolError
from thinpoold.paths import pool_paths

# How long the kernel lets a request go unanswered before it looks whether it was lost with its
# connection, and repeats it then. With one connection a slow request is left alone, so this can be
# short. With several the kernel declares the connection of a slow request dead, so this must be
# longer than any request takes.
LOOK_AFTER_SECONDS = 5.0
LOOK_AFTER_SECONDS_MANY = 120.0

_SIZE_SECONDS = 30.0
_STEP_SECONDS = 30.0
# Longer than the daemon waits for requests that are under way before it answers.
_ANSWER_SECONDS = 60.0
_LOOK_SECONDS = 2.0
_RETRY_SECONDS = 0.2
_MCL_CURRENT_AND_FUTURE = 3
_OUT_OF_MEMORY_NEVER = "-1000"
# What it is called in lists of processes, and in `thinpool list`.
_NAME = b"thinpool-keeper"
_PR_SET_NAME = 15  # linux/prctl.h


@dataclass(frozen=True)
class Order:
    """What to keep attached. `socket` is where the NBD server of `pool` listens, as a URI.

    With `adopt`, a record of a device whose keeper is gone, nothing is connected at first.
    """

    pool: str
    control_socket: str
    uri: str
    volume: str
    uuid: str
    size: int
    device: str
    block_size: int
    connections: int
    patience: int
    read_only: bool
    generation: int = 0
    adopt: dict[str, Any] | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def main() -> None:
    """Run as `python -m thinpoold.attach.keeper READY-FD`, with an Order on stdin."""
    ready = int(sys.argv[1])
    order = Order(**json.load(sys.stdin))
    os.chdir("/")
    ctypes.CDLL(None).prctl(_PR_SET_NAME, _NAME, 0, 0, 0)
    with ExitStack() as stack:
        try:
            keeper = stack.enter_context(Keeper(order))
            keeper.begin()
        except (ThinPoolError, OSError) as error:
            _report(ready, {"error": one_line(error), "busy": isinstance(error, DeviceBusy)})
            sys.exit(1)
        _report(ready, {"attached": asdict(keeper.attachment)})
        keeper.run()


class Keeper:
    """Keeps one device connected."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._device = NbdDevice(Path(order.device).name)
        self._server, self._export = parse_uri(order.uri)
        self._events = kernel.LinkEvents()
        self._complaint = ""
        self.attachment: Attachment

    def __enter__(self) -> "Keeper":
        return self

    def __exit__(self, *_: object) -> None:
        self._events.close()

    def begin(self) -> None:
        """Connect the device, or take over the one that is. Raises AttachFailed, OSError."""
        if self._order.adopt is not None:
            old = {**self._order.adopt, "clients": tuple(self._order.adopt["clients"])}
            pid = os.getpid()
            self.attachment = replace(Attachment(**old), pid=pid, started=records.start_time(pid))
        else:
            self._connect()
        try:
            self._set_up()
            records.save(self.attachment)
        except (ThinPoolError, OSError):
            if self._order.adopt is None:
                kernel.disconnect(self._device.index)
            raise
        _harden()

    def run(self) -> None:
        """Stay until the device is disconnected."""
        lost = self._order.adopt is not None
        while self._ours():
            if lost:
                self._reconnect()
            select.select([self._events], [], [], _LOOK_SECONDS)
            lost = self._events.any_of(self._device.index)
        records.remove(self.attachment)

    # --- the first connection -------------------------------------------------------------------

    def _connect(self) -> None:
        order, pids = self._order, list[int]()
        program = nbdclient.find("nbd-client", "nbd-client")
        command = nbdclient.connect_command(
            program,
            self._device.path,
            self._server,
            self._export,
            block_size=order.block_size,
            connections=order.connections,
            read_only=order.read_only,
        )
        try:
            nbdclient.run(command, record=pids)
        except AttachFailed as error:
            if self._device.connector is not None:
                raise DeviceBusy(f"{self._device.path} is in use; name another device") from error
            raise
        self.attachment = Attachment(
            kind=records.NBD,
            device=order.device,
            pool=order.pool,
            volume=order.volume,
            uuid=order.uuid,
            generation=order.generation,
            read_only=order.read_only,
            connector=self._device.connector or 0,
            clients=tuple(pids),
            connections=order.connections,
            patience=order.patience,
            pid=os.getpid(),
            started=records.start_time(os.getpid()),
        )

    def _set_up(self) -> None:
        kernel.reconfigure(self._device.index, patience=self.attachment.patience)
        many = self.attachment.connections > 1
        self._device.set_request_timeout(LOOK_AFTER_SECONDS_MANY if many else LOOK_AFTER_SECONDS)
        if self._order.adopt is None:
            self._device.wait_for_size(self._order.size, _SIZE_SECONDS)
            # The first who opens it has the kernel look for partitions.
            os.close(os.open(self._device.path, os.O_RDONLY | os.O_CLOEXEC))

    # --- again ----------------------------------------------------------------------------------

    def _ours(self) -> bool:
        return self._device.connector == self.attachment.connector

    def _reconnect(self) -> None:
        _log("connection lost")
        while self._ours():
            try:
                self._make_anew()
                break
            except (ThinPoolError, OSError) as error:
                self._complain(one_line(error))
                time.sleep(_RETRY_SECONDS)

    def _make_anew(self) -> None:
        # Whoever answers is a daemon that serves; a service manager starts it for this.
        with self._server.connect(_STEP_SECONDS) as peer:
            greet(peer)
        place = ask_for_volume(self._order.control_socket, self.attachment)
        server, export = parse_uri(place["uri"])
        with ExitStack() as stack:
            sockets = []
            for _ in range(self.attachment.connections):
                peer, found = open_export(server, export, _STEP_SECONDS)
                sockets.append(stack.enter_context(peer))
            size = found.size if found.size != self._device.size else None
            kernel.reconfigure(self._device.index, size=size, sockets=sockets)
        self.attachment = self.attachment.renewed_by(os.getpid(), place["name"])
        records.save(self.attachment)
        self._complaint = ""
        _log(f"connected again, {found.size} bytes")

    def _complain(self, text: str) -> None:
        if text != self._complaint:
            self._complaint = text
            _log(f"not connected again yet: {text}")


def ask_for_volume(
    control_socket: str, attachment: Attachment, *, hang_up: bool = False
) -> dict[str, Any]:
    """Ask the daemon where the volume is now: its `name`, `uri` and `size`.

    It answers when it has finished all requests of connections that are gone; with `hang_up`, it
    ends all that serve the attachment first. Raises PoolNotRunning, ControlError, RemoteError.
    """
    while True:
        trusted = pool_paths(Path(attachment.pool)).trusted
        with ControlClient.connect(
            Path(control_socket), trusted, timeout=_ANSWER_SECONDS
        ) as client:
            answer: Any = client.call(
                "reconnect",
                {
                    "uuid": attachment.uuid,
                    "generation": attachment.generation,
                    "pids": list(attachment.clients),
                    "hang_up": hang_up,
                },
            )
        if not answer["left"]:
            found: dict[str, Any] = answer
            return found


def _harden() -> None:
    """Stay in memory: the kernel may need this process to free any. As far as we may."""
    ctypes.CDLL(None).mlockall(_MCL_CURRENT_AND_FUTURE)
    try:
        Path("/proc/self/oom_score_adj").write_text(_OUT_OF_MEMORY_NEVER)
    except OSError:
        pass


def _report(fd: int, message: dict[str, Any]) -> None:
    try:
        os.write(fd, json.dumps(message).encode() + b"\n")
    except OSError:
        # Whoever started this did not wait for it.
        pass
    os.close(fd)


def _log(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
    sys.stderr.flush()


def _entry() -> NoReturn:
    main()
    sys.exit(0)


if __name__ == "__main__":
    _entry()
