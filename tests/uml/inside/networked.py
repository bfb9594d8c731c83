"""Jobs on pools that are served at a port: attached over TCP, and by nbd-client over TLS."""

import os
import subprocess
from pathlib import Path

from tests.support.pools import PoolRig
from tests.uml.inside.attached import (
    TREE,
    Writer,
    digest,
    drop_caches,
    finish,
    mount_point,
    opened_by,
)
from tests.uml.inside.commands import run
from tests.uml.inside.filesystems import fsck, mkfs

PORT = "10810"
DEVICE = "/dev/nbd0"


def _served(*options: str) -> tuple[PoolRig, tuple[str, ...]]:
    rig = PoolRig(Path("/run/p"))
    rig.init("600M")
    words = ("--listen", f"127.0.0.1:{PORT}", *options)
    rig.start(*words)
    rig.create("v", "200M")
    return rig, words


def over_tcp() -> dict[str, object]:
    """Attaches from a port, and kills and restarts the daemon under a busy file system."""
    rig, words = _served()
    device = rig.cli("attach", "v").strip()
    mkfs("ext4", device)
    point = mount_point("v")
    run("mount", "-o", "errors=remount-ro", device, str(point))
    with Writer(point) as writer:
        for end in (rig.kill, rig.stop):
            writer.wait_for_rounds(3)
            end()
            rig.start(*words)
            writer.wait_for_rounds(10)
    (client,) = opened_by(rig, "v")
    refusal = rig.run("attach", "v", "--refresh").stderr
    drop_caches()
    found = {name: one for name, one in digest(point).items() if name in writer.written}
    run("umount", str(point))
    fsck("ext4", device)
    rig.cli("detach", "v")
    return {
        "same": found == writer.written,
        "address": client["address"],
        "refusal": refusal,
        "complaints": finish(rig),
    }


def over_tls() -> dict[str, object]:
    """Lets nbd-client in with the pool's certificate, and with nothing else."""
    files, strangers = Path("/run/tls"), Path("/run/strangers")
    maker = PoolRig(Path("/run/p"))
    for directory in (files, strangers):
        maker.cli("tls", "init", str(directory), "--host", "127.0.0.1")
    rig, _ = _served("--tls", str(files))
    ours, theirs = (_credentials(one / "clients/client") for one in (files, strangers))
    # Theirs, signed by another authority; and ours, by whom the server is not known.
    refused = {
        "plain text": _connect(),
        "no certificate": _connect("-cacertfile", ours["-cacertfile"]),
        "a stranger's certificate": _connect(
            *_words({**theirs, "-cacertfile": ours["-cacertfile"]})
        ),
        "another authority": _connect(*_words({**ours, "-cacertfile": theirs["-cacertfile"]})),
    }
    listed = subprocess.run(
        ["nbd-client", "-l", "127.0.0.1", PORT], capture_output=True, text=True, check=False
    )
    connected = _connect(*_words(ours))
    assert connected is None, connected
    (client,) = opened_by(rig, "v")
    mkfs("ext4", DEVICE)
    point = mount_point("v")
    run("mount", DEVICE, str(point))
    run("cp", "-r", str(TREE), str(point / "tree"))
    drop_caches()
    same = digest(point / "tree") == digest(TREE)
    run("umount", str(point))
    fsck("ext4", DEVICE)
    run("nbd-client", "-d", DEVICE)
    return {
        "refused": refused,
        "listing": listed.returncode,
        "listed": listed.stdout,
        "tls": client["tls"],
        "same": same,
        "complaints": finish(rig),
    }


def _credentials(client: Path) -> dict[str, str]:
    return {
        "-cacertfile": str(client / "ca-cert.pem"),
        "-certfile": str(client / "client-cert.pem"),
        "-keyfile": str(client / "client-key.pem"),
    }


def _words(credentials: dict[str, str]) -> list[str]:
    return [word for pair in credentials.items() for word in pair]


def _connect(*credentials: str) -> str | None:
    """What nbd-client says when it fails; None when there is a device with bytes in it."""
    command = ["nbd-client", "127.0.0.1", PORT, DEVICE, "-N", "v", *credentials]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        with open(DEVICE, "rb") as device:
            if done.returncode == 0 and device.read(4096) and os.path.exists("/sys/block/nbd0/pid"):
                return None
    except OSError as error:
        return str(error)
    return done.stdout + done.stderr
