"""NBD URIs, as the NBD project's uri.md defines them. Pure functions."""

from pathlib import Path
from urllib.parse import quote


def unix_uri(socket: Path) -> str:
    """Return the URI of the server behind a UNIX socket, without an export."""
    return f"nbd+unix:///?socket={quote(str(socket), safe='/')}"


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
