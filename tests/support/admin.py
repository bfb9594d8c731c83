"""The admin verbs over the control socket, with their parameters in one place.

Sizes are bytes. Every verb raises RpcError when refused and RpcGone when the daemon goes away.
Thread-safety: as `Rpc`.
"""

import time
from typing import Any

from tests.support.rpc import Rpc
from tests.support.tools import PATIENCE

Call = tuple[str, dict[str, Any]]


def create(name: str, size: int) -> Call:
    return "create", {"name": name, "size": size}


def snapshot(pairs: list[tuple[str, str]]) -> Call:
    return "snapshot", {"pairs": [list(pair) for pair in pairs]}


def delete(name: str) -> Call:
    return "delete", {"names": [name]}


def rename(old: str, new: str) -> Call:
    return "rename", {"old": old, "new": new}


def resize(name: str, size: int, *, shrink: bool) -> Call:
    return "resize", {"name": name, "size": size, "shrink": shrink}


def rollback(name: str, snap: str, *, discard: bool) -> Call:
    return "rollback", {"name": name, "snapshot": snap, "discard_current": discard}


class Admin:
    """The verbs as calls."""

    def __init__(self, rpc: Rpc) -> None:
        self.rpc = rpc

    def do(self, call: Call) -> Any:
        method, params = call
        return self.rpc.call(method, **params)

    def volumes(self) -> dict[str, Any]:
        """`list`, by name."""
        return {entry["name"]: entry for entry in self.rpc.call("list")["volumes"]}

    def await_released(self, name: str, clients: int = 0) -> None:
        """Waits until the daemon has seen every client of a volume off, but for `clients`.

        A client that said goodbye is gone for itself, a moment before it is gone for the server.
        """
        deadline = time.monotonic() + PATIENCE
        while self.volumes()[name]["clients"] > clients:
            assert time.monotonic() < deadline, f"{name} is still open"
