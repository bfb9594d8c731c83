"""Serving with TLS: what nbdkit is told, and where clients find what they need to come in.

Looks at a directory that `tls_files` made, or one made by hand in the same form: nbdkit's names for
certificates (nbdkit-tls(1)), or `keys.psk`.

Invariants

1. TLS is required, never offered: nothing but STARTTLS is answered in plain text.
2. With certificates, a client must show one that this authority signed.
3. What cannot be served safely is refused before nbdkit starts: a file that is missing, or a key
   that other users can read.

No state; nothing is changed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from thinpoold.errors import UserError
from thinpoold.tls_files import CA_CERT, CLIENTS, PSK_FILE, SERVER_CERT, SERVER_KEY

_OTHERS = 0o007


@dataclass(frozen=True)
class Tls:
    """A directory of TLS files, absolute. `psk`: with pre-shared keys, not certificates."""

    directory: Path
    psk: bool

    def options(self) -> list[str]:
        """Return what nbdkit is told."""
        if self.psk:
            return ["--tls=require", f"--tls-psk={self.directory / PSK_FILE}"]
        return ["--tls=require", f"--tls-certificates={self.directory}", "--tls-verify-peer"]

    def uri(self, plain: str) -> str:
        """Return the TLS form of a server's URI, with the files of the first client here.

        For a client elsewhere the path is another, and so may be the name. Without a client's
        files here, what is known of the server is all there is to say.

        >>> Tls(Path("/t"), psk=False).uri("nbd://h:1/")
        'nbds://h:1/'
        """
        scheme, _, rest = plain.partition("://")
        place, mark, query = rest.partition("?")
        parts = [query] if mark else []
        client = self._first_client()
        if client is not None:
            file = client / PSK_FILE if self.psk else client
            key = "tls-psk-file" if self.psk else "tls-certificates"
            parts.append(f"{key}={quote(os.fsencode(file), safe='/')}")
            if self.psk:
                place = f"{quote(client.name, safe='')}@{place}"
        return f"nbds{scheme.removeprefix('nbd')}://{place}{'?' if parts else ''}{'&'.join(parts)}"

    def _first_client(self) -> Path | None:
        try:
            found = sorted(one for one in (self.directory / CLIENTS).iterdir() if one.is_dir())
        except OSError:
            return None
        return found[0] if found else None


def load(directory: Path) -> Tls:
    """Return what is in a directory, once it will do. Raises UserError."""
    directory = directory.absolute()
    psk = (directory / PSK_FILE).exists()
    needed = (PSK_FILE,) if psk else (CA_CERT, SERVER_CERT, SERVER_KEY)
    if psk and (directory / SERVER_CERT).exists():
        raise UserError(
            f"{directory} has certificates and {PSK_FILE} too: nbdkit serves one kind; keep them "
            "in two directories"
        )
    for name in needed:
        _check_readable(directory / name)
    private = directory / (PSK_FILE if psk else SERVER_KEY)
    if private.stat().st_mode & _OTHERS:
        raise UserError(f"{private} is open to other users: run 'chmod 600 {private}'")
    if psk and not _keys(private):
        raise UserError(f"{private} has no keys: add one with 'thinpool tls add {directory} NAME'")
    return Tls(directory, psk)


def _check_readable(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"no file {path}: 'thinpool tls init' makes a directory for --tls")
    if not os.access(path, os.R_OK):
        raise UserError(f"cannot read {path}: have it given to the user that the daemon runs as")


def _keys(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if ":" in line]
