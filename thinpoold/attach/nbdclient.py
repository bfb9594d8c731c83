"""nbd-client's command lines. Those of 3.24, Debian 12's, are also understood by newer ones.

    nbd-client -unix SOCKET /dev/nbdN -name EXPORT -block-size 512 -connections 1
    nbd-client HOST PORT /dev/nbdN -name EXPORT ...
    nbd-client -d /dev/nbdN

It configures the device over netlink and is gone when the device works. What is left out, and why:
-persist does nothing over netlink, and with -nonetlink it ends at the first lost connection, as
kernels now report one; -timeout would have the kernel repeat a request that the server still works
on. `keeper` sees to both, its own way.

Thread-safety: functions; any thread.
"""

import os
import shutil
import subprocess
from pathlib import Path

from thinpoold.attach.errors import AttachFailed, AttachRefused
from thinpoold.attach.handshake import Server

_PATH = os.pathsep.join(("/usr/sbin", "/usr/bin", "/sbin", "/bin"))
_PATIENCE = 60.0
# What it says on its way, which is no reason for a failure.
_CHATTER = ("Negotiation:", "bs=", "Exiting", "Warning:")


def find(program: str, package: str) -> str:
    """Return the path of a program. Raises AttachRefused when it is not installed."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), _PATH))
    found = shutil.which(program, path=path)
    if found is None:
        raise AttachRefused(f"{program} is not installed: install the package {package}")
    return found


def connect_command(
    program: str,
    device: Path,
    server: Server,
    export: str,
    *,
    block_size: int,
    connections: int,
    read_only: bool,
) -> list[str]:
    """Return the command that connects a device."""
    if isinstance(server.address, tuple):
        host, port = server.address
        where = [host, str(port)]
    else:
        where = ["-unix", server.address]
    command = [program, *where, str(device), "-name", export]
    command += ["-block-size", str(block_size), "-connections", str(connections)]
    return [*command, "-readonly"] if read_only else command


def disconnect_command(program: str, device: Path) -> list[str]:
    """Return the command that disconnects a device."""
    return [program, "-d", str(device)]


def run(command: list[str], *, record: list[int] | None = None) -> None:
    """Run one of the commands; its process id goes into `record`.

    Raises AttachFailed with what it said.
    """
    name = os.path.basename(command[0])
    try:
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            if record is not None:
                record.append(process.pid)
            try:
                said, _ = process.communicate(timeout=_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                raise AttachFailed(
                    f"{name} took longer than {_PATIENCE:.0f} s: see dmesg, and the daemon's log"
                ) from None
    except OSError as error:
        raise AttachFailed(f"{command[0]}: {error.strerror}") from None
    if process.returncode != 0:
        raise AttachFailed(f"{name} failed: {reason(said.decode('utf-8', 'replace'))}")


def reason(said: str) -> str:
    """Return the line that tells why a program failed, of all it said."""
    lines = [" ".join(line.split()) for line in said.replace("\r", "\n").splitlines()]
    telling = [line for line in lines if line and not line.startswith(_CHATTER)]
    return telling[0].removeprefix("Error: ").rstrip(".") if telling else "it did not say why"
