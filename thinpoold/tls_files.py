"""Making the files of TLS: a certificate authority with certificates, or pre-shared keys.

Certificates are made by GnuTLS's `certtool`: nbdkit, libnbd, QEMU and nbd-client all use GnuTLS, so
one library decides what is sound at both ends, and nothing is needed where none are made. A
pre-shared key is 32 random bytes in hexadecimal, for which no tool is needed.

    DIR/ca-cert.pem, ca-key.pem             the authority; its key signs clients, and no more
    DIR/server-cert.pem, server-key.pem     what nbdkit shows
    DIR/keys.psk                            instead of all these: one NAME:KEY a line
    DIR/clients/NAME/                       what the client NAME is given, whole, and nothing else:
                                            ca-cert.pem, client-cert.pem, client-key.pem; or its
                                            own line of keys.psk

Invariants

1. Directories are mode 0700 and keys 0600 from the moment they exist.
2. `create` makes DIR whole or not at all; no file that exists is ever overwritten.
3. The last component of DIR/clients/NAME is a checked name: it cannot lead elsewhere.

Thread-safety: one process at a time a directory.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from thinpoold.errors import DeviceError, ThinPoolError, UserError

CA_CERT: Final = "ca-cert.pem"
CA_KEY: Final = "ca-key.pem"
SERVER_CERT: Final = "server-cert.pem"
SERVER_KEY: Final = "server-key.pem"
CLIENT_CERT: Final = "client-cert.pem"
CLIENT_KEY: Final = "client-key.pem"
PSK_FILE: Final = "keys.psk"
CLIENTS: Final = "clients"

DEFAULT_CLIENT: Final = "client"
DEFAULT_DAYS: Final = 3650
_PSK_BYTES: Final = 32

# What every reader of a PSK file, an NBD URI and a file name takes as it is.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}\Z")
# Labels of letters, digits and inner hyphens, dots between them, a star first at most.
_LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST: Final = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*\Z")


def create_certificates(
    directory: Path, hosts: Sequence[str], clients: Sequence[str], days: int = DEFAULT_DAYS
) -> None:
    """Make an authority, a certificate for a server called `hosts`, and one for each client.

    Raises UserError for a bad name or a directory with something in it, ThinPoolError when
    certtool is missing or fails.
    """
    names = [check_client(name) for name in clients]
    alternatives = [_alternative(host) for host in hosts]
    find_certtool()
    with _made_whole(directory) as made:
        _generate_key(made / CA_KEY)
        _certtool(
            ["--generate-self-signed", "--load-privkey", str(made / CA_KEY)],
            _template("thinpoold certificate authority", days, "ca", "cert_signing_key"),
            made / CA_CERT,
        )
        words = (*alternatives, "tls_www_server", "signing_key")
        _certificate(made, made / SERVER_KEY, made / SERVER_CERT, _template(hosts[0], days, *words))
        (made / CLIENTS).mkdir(mode=0o700)
        for name in names:
            _add_certificate(made, name, days)


def create_keys(directory: Path, clients: Sequence[str]) -> None:
    """Make a pre-shared key for each client. Raises UserError."""
    names = [check_client(name) for name in clients]
    with _made_whole(directory) as made:
        (made / CLIENTS).mkdir(mode=0o700)
        _write_private(made / PSK_FILE, "")
        for name in names:
            _add_key(made, name)


def add_client(directory: Path, name: str, days: int = DEFAULT_DAYS) -> Path:
    """Make what one client more needs, of the kind that `directory` has; return where it is.

    With keys, the daemon knows it from its next start. Raises UserError, ThinPoolError.
    """
    check_client(name)
    keys = (directory / PSK_FILE).exists()
    if not keys and not (directory / CA_KEY).exists():
        raise UserError(
            f"{directory} has neither {PSK_FILE} nor {CA_KEY}: make it with 'thinpool tls init'"
        )
    (directory / CLIENTS).mkdir(mode=0o700, exist_ok=True)
    target = directory / CLIENTS / name
    if os.path.lexists(target):
        raise UserError(f"client {name!r} is there already: {target}")
    try:
        if keys:
            _add_key(directory, name)
        else:
            find_certtool()
            _add_certificate(directory, name, days)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    return target


def check_client(name: str) -> str:
    """Return a client's name if it may be one. Raises UserError."""
    if not _NAME.match(name):
        raise UserError(
            f"a client cannot be called {name[:70]!r}: 1 to 63 letters, digits, '-', '_' and '.', "
            "the first a letter or digit"
        )
    return name


def find_certtool() -> str:
    """Return the path of certtool. Raises ThinPoolError when it is not installed."""
    found = shutil.which("certtool")
    if found is None:
        raise ThinPoolError(
            "certtool is not installed: install the package gnutls-bin, or make keys with --psk, "
            "which need no tool"
        )
    return found


# --- one client ---------------------------------------------------------------------------------


def _add_certificate(directory: Path, name: str, days: int) -> None:
    target = directory / CLIENTS / name
    target.mkdir(mode=0o700)
    template = _template(name, days, "tls_www_client", "signing_key")
    _certificate(directory, target / CLIENT_KEY, target / CLIENT_CERT, template)
    shutil.copyfile(directory / CA_CERT, target / CA_CERT)


def _add_key(directory: Path, name: str) -> None:
    file = directory / PSK_FILE
    known = [line.partition(":")[0] for line in file.read_text().splitlines()]
    if name in known:
        raise UserError(f"client {name!r} has a key already, in {file}")
    line = f"{name}:{secrets.token_hex(_PSK_BYTES)}\n"
    target = directory / CLIENTS / name
    target.mkdir(mode=0o700)
    _write_private(target / PSK_FILE, line)
    with file.open("a") as keys:
        keys.write(line)
        keys.flush()
        os.fsync(keys.fileno())


def _certificate(directory: Path, key: Path, target: Path, template: str) -> None:
    _generate_key(key)
    words = ["--generate-certificate", "--load-privkey", str(key)]
    words += ["--load-ca-certificate", str(directory / CA_CERT)]
    words += ["--load-ca-privkey", str(directory / CA_KEY)]
    _certtool(words, template, target)


def _generate_key(target: Path) -> None:
    # Made first, so that the key is never in a file that others can read.
    _write_private(target, "")
    _certtool(["--generate-privkey", "--key-type", "ecdsa", "--curve", "secp256r1"], None, target)


# --- certtool -----------------------------------------------------------------------------------


def _alternative(host: str) -> str:
    """Return a template's line for a name or address of the server. Raises UserError."""
    with contextlib.suppress(ValueError):
        return f"ip_address = {ipaddress.ip_address(host)}"
    if len(host) > 253 or not _HOST.match(host):
        raise UserError(f"{host[:70]!r} is neither a host name nor an IP address")
    return f"dns_name = {host}"


def _template(name: str, days: int, *lines: str) -> str:
    # A common name has at most 64 characters.
    head = (f"cn = {name[:64]}", "organization = thinpoold", f"expiration_days = {days}")
    return "\n".join((*head, *lines)) + "\n"


def _certtool(words: Sequence[str], template: str | None, target: Path) -> None:
    """Run certtool with a template, its result into `target`. Raises ThinPoolError."""
    with tempfile.NamedTemporaryFile("w", prefix="thinpool-", suffix=".info") as file:
        words = [*words, "--outfile", str(target)]
        if template is not None:
            file.write(template)
            file.flush()
            words += ["--template", file.name]
        done = subprocess.run(
            [find_certtool(), *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
    if done.returncode != 0 or not target.stat().st_size:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise ThinPoolError(f"certtool failed: {said[-1] if said else 'it said nothing'}")


# --- files --------------------------------------------------------------------------------------


@contextlib.contextmanager
def _made_whole(directory: Path) -> Iterator[Path]:
    """Give an empty private directory that becomes `directory` at the end, or goes on an error."""
    if os.path.lexists(directory) and not (directory.is_dir() and not any(directory.iterdir())):
        raise UserError(f"{directory} is there and not empty: name another, or remove it")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=".tls-", dir=directory.parent))
    except OSError as error:
        raise DeviceError(f"{directory.parent}: {error.strerror}", error.errno or 0) from None
    try:
        yield made
        made.rename(directory)
    except OSError as error:
        raise DeviceError(f"{directory}: {error.strerror}", error.errno or 0) from None
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _write_private(path: Path, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "w") as file:
        file.write(text)
