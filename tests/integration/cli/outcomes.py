"""What the tests of verbs share: how a command is refused, and how it is used wrongly."""

from typing import Any

from tests.support.admin import Admin
from tests.support.pools import PoolRig

MIB = 1 << 20
GIB = 1 << 30


def refused(rig: PoolRig, *words: str, says: str) -> str:
    """Run a command that must be refused: status 1, nothing on stdout, one line that `says`."""
    return _failed(rig, 1, words, says)


def wrong_usage(rig: PoolRig, *words: str, says: str) -> str:
    """Run a command line that makes no sense: status 2, and one line that `says` what."""
    return _failed(rig, 2, words, says)


def _failed(rig: PoolRig, status: int, words: tuple[str, ...], says: str) -> str:
    done = rig.run(*words)
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    assert done.stdout == ""
    line = done.stderr
    assert line.startswith("thinpool: ")
    assert line.endswith("\n")
    assert line.count("\n") == 1
    assert "Traceback" not in line
    assert "internal error" not in line
    assert says in line, line
    return line


def volume(rig: PoolRig, name: str) -> Any:
    """Return a volume as `list --json` has it; None when there is none."""
    return rig.volumes().get(name)


def of_the_pool(volume: Any) -> Any:
    """Return a volume without what only the machine can tell, and no pool: where it is attached."""
    return {key: value for key, value in volume.items() if key != "attached"}


def fill(rig: PoolRig, name: str, count: int, offset: int = 0, byte: bytes = b"x") -> None:
    """Write `count` bytes into a volume of a running pool, flushed, and be seen off."""
    with rig.rpc() as rpc:
        admin = Admin(rpc)
        clients = admin.volumes()[name]["clients"]
        with rig.connect(name) as client:
            client.write(offset, byte * count)
            client.flush()
        admin.await_released(name, clients)
