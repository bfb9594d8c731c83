"""A pool under test: made, started, asked, killed and checked through the real programs.

Invariants:
1. Every verb is the CLI's; nothing reaches into the product.
2. `inspect()` runs `thinpool check` and, on the exported metadata, `thin_check` and an audit of all
   reference counts, and compares what `thin_dump` shows with what the pool says of itself.
3. A daemon started here is gone when `dispose()` returns.

Thread-safety: one thread per rig. Clients are independent of it.
"""

# An outcome, not always an error.
# ruff: noqa: N818

import contextlib
import functools
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.admin import Admin
from tests.support.audit import audit_image
from tests.support.client import NbdClient
from tests.support.rpc import Rpc, RpcGone
from tests.support.thin import Dumped, thin_check, thin_dump
from tests.support.tools import PATIENCE, SEARCH_PATH, run
from tests.support.zygote import Zygote

BIN = Path(sys.executable).parent


@functools.cache
def zygote() -> Zygote:
    """The one of this process."""
    return Zygote(BIN / "thinpool")


class Refused(Exception):
    """A command that exits with 1: refused or failed, one line that says why."""

    def __init__(self, command: Sequence[str], status: int, stderr: str) -> None:
        super().__init__(f"{' '.join(command)}: exit status {status}: {stderr.strip()}")
        self.status = status
        self.stderr = stderr


class PoolRig:
    """One pool directory and, at times, its daemon."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.env = {
            **os.environ,
            "PATH": os.pathsep.join((str(BIN), SEARCH_PATH)),
            "THINPOOL_POOL": str(directory),
        }
        self.damaged = False
        self._pid: int | None = None
        self._socket: str | None = None
        self._control: str | None = None

    # The CLI

    def run(
        self, *arguments: str, prefix: Sequence[str] = (), timeout: float = PATIENCE
    ) -> subprocess.CompletedProcess[str]:
        """`thinpool ARGUMENTS` on this pool, whatever its exit status.

        With a prefix the program itself is run.
        """
        if not prefix:
            return zygote().run(list(arguments), env=self.env, timeout=timeout)
        return run(
            str(BIN / "thinpool"),
            *arguments,
            check=False,
            env=self.env,
            prefix=prefix,
            timeout=timeout,
        )

    def cli(self, *arguments: str, prefix: Sequence[str] = ()) -> str:
        """`thinpool ARGUMENTS`, which must succeed; its stdout. Raises Refused."""
        done = self.run(*arguments, prefix=prefix)
        if done.returncode != 0:
            raise Refused(("thinpool", *arguments), done.returncode, done.stderr)
        return done.stdout

    def json(self, *arguments: str) -> Any:
        """`thinpool ARGUMENTS --json`, parsed."""
        return json.loads(self.cli(*arguments, "--json"))

    # Life

    def init(self, size: str = "256M", **options: str | bool) -> None:
        """Makes the pool; options as the CLI's, with underscores: `block_size="128K"`."""
        arguments = ["init", str(self.directory), "--size", size]
        for key, value in options.items():
            arguments.append("--" + key.replace("_", "-"))
            if not isinstance(value, bool):
                arguments.append(value)
        self.cli(*arguments)

    def start(self, *arguments: str, prefix: Sequence[str] = ()) -> str:
        """Starts the daemon; returns its URI once it answers."""
        out = self.cli("start", str(self.directory), *arguments, prefix=prefix)
        lines = out.split()
        uris = [word for word in lines if word.startswith(("nbd+unix:", "nbd:", "nbds"))]
        assert uris, f"`thinpool start` printed no URI: {out!r}"
        sockets = parse_qs(urlsplit(uris[0]).query, errors="surrogateescape").get("socket")
        self._socket = sockets[0] if sockets else None
        if self._socket is not None:
            # Beside it in the run directory; asked itself, which saves the start of a command.
            self._control = str(Path(self._socket).with_name("control.sock"))
            with Rpc(self._control) as rpc:
                self._pid = int(rpc.call("status")["pid"])
        else:
            self._note_sockets()
        return uris[0]

    def _note_sockets(self) -> None:
        """Takes a daemon that somebody else started, as `status` describes it."""
        status = self.status()
        self._pid = int(status["pid"])
        self._control = status["control_socket"]
        sockets = parse_qs(urlsplit(status["uri"]).query, errors="surrogateescape").get("socket")
        self._socket = sockets[0] if sockets else None

    def stop(self) -> None:
        """Stops the daemon cleanly and waits until its process is gone."""
        handle = os.pidfd_open(self.pid)
        try:
            self.cli("stop")
            self._await_end(handle)
        finally:
            os.close(handle)
        self._forget()

    def kill(self) -> None:
        """SIGKILL, and waits until the process is gone."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:  # It was asked to stop, and has.
            self._forget()
            return
        try:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            self._await_end(handle)
        finally:
            os.close(handle)
        self._forget()

    def start_and_kill(self, seconds: float) -> None:
        """Kills a daemon that has had `seconds` to come up."""
        daemon = subprocess.Popen(
            [str(BIN / "thinpoold"), str(self.directory), "--foreground"],
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            daemon.wait(seconds)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
        else:
            raise AssertionError(f"the daemon ended by itself: {daemon.returncode}")

    @staticmethod
    def _await_end(handle: int) -> None:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        if not poll.poll(PATIENCE * 1000):
            raise AssertionError("the daemon did not end")

    def _forget(self) -> None:
        self._pid = self._socket = self._control = None

    @property
    def running(self) -> bool:
        return self._pid is not None

    @property
    def pid(self) -> int:
        assert self._pid is not None, "no daemon runs"
        return self._pid

    @property
    def socket(self) -> str:
        """The path of the NBD socket."""
        assert self._socket is not None, "no daemon runs, or not on a Unix socket"
        return self._socket

    def status(self) -> Any:
        return self.json("status")

    def rpc(self) -> Rpc:
        """A connection to the control socket."""
        assert self._control is not None, "no daemon runs"
        return Rpc(self._control)

    # Volumes

    def create(self, volume: str, size: int | str, *arguments: str) -> None:
        self.cli("create", volume, str(size), *arguments)

    def snapshot(self, *pairs: str) -> None:
        """`pairs`: origin, snapshot, origin, snapshot..."""
        self.cli("snapshot", *pairs)

    def delete(self, *volumes: str) -> None:
        if self._control is not None:
            self.await_released(*volumes)
        self.cli("delete", *volumes)

    def await_released(self, *volumes: str) -> None:
        """Waits until the daemon has seen every client of these volumes off."""
        with self.rpc() as rpc:
            for volume in volumes:
                Admin(rpc).await_released(volume)

    def volumes(self) -> dict[str, Any]:
        """`list --json`, by name."""
        return {entry["name"]: entry for entry in self.json("list")["volumes"]}

    def connect(self, volume: str, *, strict: bool = True) -> NbdClient:
        return NbdClient(self.socket, volume, strict=strict)

    def uri(self, volume: str) -> str:
        return self.cli("uri", volume).strip()

    # The checkers

    def check(self) -> list[str]:
        """What `thinpool check` has against the pool; an empty list when it is sound."""
        done = self.run("check", "--json")
        try:
            report = json.loads(done.stdout)
        except json.JSONDecodeError:
            return [f"thinpool check: exit status {done.returncode}: {done.stderr.strip()}"]
        complaints = [f"thinpool check: {error}" for error in report["errors"]]
        if report["leaked_blocks"]:
            complaints.append(f"thinpool check: leaked blocks: {report['leaked_blocks']}")
        if report["ok"] != (done.returncode == 0):
            complaints.append(f"thinpool check: ok={report['ok']}, exit {done.returncode}")
        if not report["ok"] and not complaints:
            complaints.append("thinpool check: not ok, and no error named")
        return complaints

    def export(self) -> Path:
        """The metadata of the last commit in the kernel's format, in a fresh file."""
        image = self.directory.parent / f"{self.directory.name}.metadata"
        image.unlink(missing_ok=True)
        self.cli("export-metadata", str(image))
        return image

    def dump(self) -> Dumped:
        return thin_dump(self.export())

    def inspect(self) -> list[str]:
        """Both checkers and the comparison of accounts; an empty list when all agree."""
        if self.running:
            self._await_deletion()
        complaints = self.check()
        image = self.export()
        verdict = thin_check(image)
        complaints += [f"thin_check: {line}" for line in verdict]
        if not verdict:
            dumped = thin_dump(image)
            complaints += self._compare(dumped)
            try:
                audited = audit_image(image)
            except AssertionError as error:
                complaints.append(f"audit: {error}")
            else:
                if audited != {dev: d.mappings for dev, d in dumped.devices.items()}:
                    complaints.append("audit and thin_dump disagree on the mappings")
        image.unlink(missing_ok=True)
        return complaints

    def _await_deletion(self) -> None:
        """Waits until the daemon is through with what an earlier one left half deleted."""
        deadline = time.monotonic() + PATIENCE
        with self.rpc() as rpc:
            while rpc.call("status")["deleting"]:
                assert time.monotonic() < deadline, "a deletion does not go on"

    def _compare(self, dumped: Dumped) -> list[str]:
        """What `list` and `status` say against what thin_dump shows.

        For a pool at rest: both are asked about the last commit.
        """
        complaints = []
        if self._control is not None:
            with self.rpc() as rpc:
                volumes, status = rpc.call("list")["volumes"], rpc.call("status")
        else:
            volumes, status = self.json("list")["volumes"], self.status()
        listed = {int(entry["id"]): entry for entry in volumes}
        nobodys = set(dumped.devices) - set(listed)
        if set(listed) - set(dumped.devices) or len(nobodys) != status["deleting"]:
            complaints.append(f"devices {sorted(dumped.devices)} but volumes {sorted(listed)}")
        block = int(status["block_size"])
        for dev_id, device in dumped.devices.items():
            mapped = int(listed[dev_id]["mapped"]) if dev_id in listed else None
            if mapped is not None and mapped != len(device.mappings) * block:
                name = listed[dev_id]["name"]
                complaints.append(f"{name}: mapped {mapped}, thin_dump {len(device.mappings)}")
        used = int(status["data"]["used"])
        if used != len(dumped.data_in_use) * block:
            complaints.append(
                f"data used is {used} bytes, the mappings hold {len(dumped.data_in_use)} blocks"
            )
        return complaints

    # The end

    def dispose(self) -> list[str]:
        """Ends the daemon and inspects the pool, unless it was damaged on purpose."""
        complaints: list[str] = []
        if self.running:
            try:
                self.stop()
            except (
                Refused,
                AssertionError,
                ProcessLookupError,
                subprocess.TimeoutExpired,
            ) as error:
                complaints.append(f"the daemon did not stop: {error}")
                with contextlib.suppress(ProcessLookupError, AssertionError):
                    self.kill()
        if self.damaged or not self.directory.exists():
            return complaints
        try:
            complaints += self.inspect()
        except (Refused, subprocess.SubprocessError, RpcGone) as error:
            complaints.append(f"the pool cannot be inspected: {error}")
        if complaints:
            complaints.append(f"log: {self.log_tail()}")
        return complaints

    def logged(self, *words: str) -> list[str]:
        """Waits until lines of the log have all these words, which another process writes."""
        deadline = time.monotonic() + PATIENCE
        while True:
            lines = self.log_tail(1000).splitlines()
            found = [line for line in lines if all(word in line for word in words)]
            if found:
                return found
            assert time.monotonic() < deadline, f"{words} is not in the log: {self.log_tail()}"

    def log_tail(self, count: int = 40) -> str:
        """The last lines of the daemon's log, for a failure's message."""
        try:
            lines = (self.directory / "thinpoold.log").read_text(errors="replace").splitlines()
        except OSError:
            return "(no log)"
        return "\n".join(lines[-count:])
