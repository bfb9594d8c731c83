"""Export names, and NBD URIs as the NBD project's uri.md defines them. Pure functions.

A volume is an export by its name, and by a stable one that no other content will ever have:

    UUID/GENERATION      3f2a1c5e-5c1b-4f0e-9a39-2d6f0a4c7b11/1

The generation goes up whenever the volume's content becomes another under its clients: by a
rollback, a smaller size, a loss. A client that connects again by a name may find another volume, or
another content; by a stable name it finds what it had open, or nothing. A name has no `/`, so the
two are never mistaken for each other.
"""

import os
import re
import uuid as uuids
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote

_STABLE: Final = re.compile(
    r"([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})/([1-9][0-9]{0,17})"
)


class StableName(NamedTuple):
    """What a stable export name says."""

    uuid: bytes
    generation: int


def stable_name(uuid: bytes, generation: int) -> str:
    """Return the stable export name of a volume.

    >>> stable_name(bytes(15) + b"!", 3)
    '00000000-0000-0000-0000-000000000021/3'
    """
    return f"{uuids.UUID(bytes=uuid)}/{generation}"


def parse_stable_name(export: str) -> StableName | None:
    """Return what a stable export name says, None for what is none."""
    match = _STABLE.fullmatch(export)
    return StableName(uuids.UUID(match[1]).bytes, int(match[2])) if match else None


def unix_uri(socket: Path) -> str:
    """Return the URI of the server behind a UNIX socket, without an export."""
    return f"nbd+unix:///?socket={quote(os.fsencode(socket), safe='/')}"


def tcp_uri(address: str, port: int) -> str:
    """Return the URI of the server at an address and port, without an export."""
    host = f"[{address}]" if ":" in address else address
    return f"nbd://{host}:{port}/"


def volume_uri(server: str, volume: str) -> str:
    """Return the URI of one volume (an export name) of `server`, a URI without an export.

    >>> volume_uri("nbd+unix:///?socket=/run/p/nbd.sock", "my disk")
    'nbd+unix:///my%20disk?socket=/run/p/nbd.sock'
    """
    base, mark, query = server.partition("?")
    # '?' and '/' in a name must not end the path; a name has no '/', but quote it all the same.
    return f"{base}{quote(volume, safe='')}{mark}{query}"
