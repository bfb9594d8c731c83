"""TLS: who has a certificate or key of the pool's comes in, and nobody else learns anything.

Each way in is tried with libnbd's nbdinfo, with QEMU's qemu-img, and with bare bytes.
"""

import shutil
import socket
import ssl
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from tests.support.libnbd import nbd
from tests.support.pools import PoolRig
from tests.support.tools import free_port, run

SECRET = "volume-nobody-should-hear-of"
SIZE = 1 << 20

_OPTION_MAGIC = b"IHAVEOPT"
_REPLY_MAGIC = 0x3E889045565A9
_STARTTLS = 5
_ERR_TLS_REQUIRED = (1 << 31) + 5
_ACK = 1


@dataclass(frozen=True)
class Served:
    """A pool served with TLS at a port of loopback, and strangers' files of the same kind."""

    rig: PoolRig
    files: Path
    strangers: Path
    port: int

    def uri(self, query: str, *, user: str = "", host: str = "127.0.0.1") -> str:
        at = f"{user}@" if user else ""
        return f"nbds://{at}{host}:{self.port}/{SECRET}{query}"


def served(base: Path, kind: str) -> Iterator[Served]:
    rig = PoolRig(base / kind)
    files, strangers = base / f"{kind}-tls", base / f"{kind}-strangers"
    words = ("--psk", "client") if kind == "psk" else ("--host", "127.0.0.1")
    for directory in (files, strangers):
        rig.cli("tls", "init", str(directory), *words)
    rig.init("256M")
    rig.create(SECRET, str(SIZE))
    port = free_port()
    rig.start("--listen", f"127.0.0.1:{port}", "--tls", str(files))
    yield Served(rig, files, strangers, port)
    complaints = rig.dispose()
    if complaints:
        pytest.fail("\n".join(complaints))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from served(tmp_path_factory.mktemp("s"), "x509")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from served(tmp_path_factory.mktemp("s"), "psk")


@pytest.fixture(params=["certificates", "keys"])
def either(request: pytest.FixtureRequest) -> Served:
    found: Served = request.getfixturevalue(request.param)
    return found


def read_nothing(uri: str) -> None:
    """Tries to look and to read with libnbd's clients, which must fail."""
    for command in (["nbdinfo", uri], ["nbdinfo", "--list", uri], ["nbdcopy", uri, "null:"]):
        done = run(*command, check=False)
        assert done.returncode != 0, f"{command} got in"
        assert str(SIZE) not in done.stdout


def qemu(at: Served, credentials: str) -> subprocess.CompletedProcess[str]:
    image = f"driver=nbd,host=127.0.0.1,port={at.port},export={SECRET},tls-creds=t"
    return run("qemu-img", "info", "--object", credentials, "--image-opts", image, check=False)


# --- those who may ------------------------------------------------------------------------------


def test_the_uri_is_all_a_client_needs(either: Served) -> None:
    uri = either.rig.uri(SECRET)
    assert urlsplit(uri).scheme == "nbds"
    assert f"{SIZE}\n" in run("nbdinfo", "--size", uri).stdout
    assert "with TLS" in run("nbdinfo", uri).stdout


def test_bytes_come_back(either: Served) -> None:
    client = nbd.NBD()
    client.set_uri_allow_local_file(True)
    client.connect_uri(either.rig.uri(SECRET))
    data = bytes(range(256)) * 256
    client.pwrite(data, 4096)
    client.flush()
    assert bytes(client.pread(len(data), 4096)) == data
    assert client.get_tls_negotiated()
    client.shutdown()


def test_what_is_for_tls_is_listed_and_the_log_keeps_silent(either: Served) -> None:
    rig, log = either.rig, either.rig.directory / "thinpoold.log"
    rig.cli("set", "--volume", SECRET, "allow=tls")
    before = len(log.read_text())
    listed = run("nbdinfo", "--list", rig.uri(SECRET)).stdout
    assert f'export="{SECRET}"' in listed
    # The default export, as there is no other.
    assert f"{SIZE}\n" in run("nbdinfo", "--size", rig.status()["uri"]).stdout
    assert "error" not in log.read_text()[before:]
    rig.cli("set", "--volume", SECRET, "allow=anyone")


def test_qemu_with_a_certificate(certificates: Served) -> None:
    # QEMU wants these names, which are nbdkit's too.
    client = certificates.files / "clients" / "client"
    done = qemu(certificates, f"tls-creds-x509,id=t,endpoint=client,dir={client}")
    assert done.returncode == 0, done.stderr
    assert f"{SIZE} bytes" in done.stdout


def test_qemu_with_a_key(keys: Served) -> None:
    client = keys.files / "clients" / "client"
    done = qemu(keys, f"tls-creds-psk,id=t,endpoint=client,username=client,dir={client}")
    assert done.returncode == 0, done.stderr
    assert f"{SIZE} bytes" in done.stdout


def test_a_client_made_later_comes_in_too(certificates: Served) -> None:
    certificates.rig.cli("tls", "add", str(certificates.files), "late")
    where = certificates.files / "clients" / "late"
    run("nbdinfo", certificates.uri(f"?tls-certificates={quote(str(where))}"))


# --- those who may not --------------------------------------------------------------------------


def test_plain_text(either: Served) -> None:
    read_nothing(f"nbd://127.0.0.1:{either.port}/{SECRET}")
    image = f"driver=nbd,host=127.0.0.1,port={either.port},export={SECRET}"
    assert run("qemu-img", "info", "--image-opts", image, check=False).returncode != 0


@pytest.mark.parametrize("option", [1, 3, 6, 7, 8, 9, 10, 11, 77])
def test_no_option_is_answered_before_tls(either: Served, option: int) -> None:
    name = SECRET.encode()
    payloads = {1: name, 6: struct.pack(">I", len(name)) + name + b"\0\0"}
    payloads[7] = payloads[6]
    payloads[9] = payloads[10] = struct.pack(">I", len(name)) + name + b"\0\0\0\0"
    data = payloads.get(option, b"")
    with socket.create_connection(("127.0.0.1", either.port)) as bare:
        bare.settimeout(60)
        assert receive(bare, 18)[:16] == b"NBDMAGIC" + _OPTION_MAGIC
        bare.sendall(struct.pack(">I", 3))
        bare.sendall(_OPTION_MAGIC + struct.pack(">II", option, len(data)) + data)
        answer = receive(bare, 20)
        if not answer:
            return
        magic, of, kind, length = struct.unpack(">QIII", answer)
        assert (magic, of) == (_REPLY_MAGIC, option)
        assert kind == _ERR_TLS_REQUIRED
        said = receive(bare, length)
        assert SECRET.encode() not in said
        # And it stays so: a request is no request here.
        bare.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, 1, 0, 512))
        assert len(receive(bare, 1 << 16)) < 512


def receive(bare: socket.socket, count: int) -> bytes:
    """Up to `count` bytes; fewer when the other side hangs up."""
    got = b""
    try:
        while len(got) < count:
            piece = bare.recv(count - len(got))
            if not piece:
                break
            got += piece
    except ConnectionError:
        pass
    return got


def test_no_certificate(certificates: Served, tmp_path: Path) -> None:
    shutil.copy(certificates.files / "ca-cert.pem", tmp_path)
    read_nothing(certificates.uri(f"?tls-certificates={quote(str(tmp_path))}"))
    done = qemu(certificates, f"tls-creds-x509,id=t,endpoint=client,dir={tmp_path}")
    assert done.returncode != 0


def test_a_certificate_of_another_authority(certificates: Served, tmp_path: Path) -> None:
    # It trusts the server, as a stranger may; it is the server that must not trust it.
    theirs = certificates.strangers / "clients" / "client"
    for name in ("client-cert.pem", "client-key.pem"):
        shutil.copy(theirs / name, tmp_path)
    shutil.copy(certificates.files / "ca-cert.pem", tmp_path)
    read_nothing(certificates.uri(f"?tls-certificates={quote(str(tmp_path))}"))
    done = qemu(certificates, f"tls-creds-x509,id=t,endpoint=client,dir={tmp_path}")
    assert done.returncode != 0


def test_a_certificate_that_has_run_out(certificates: Served, tmp_path: Path) -> None:
    # As from the authority itself, but good for no time at all.
    template = tmp_path / "t.info"
    template.write_text(
        'cn = "late"\ntls_www_client\nsigning_key\nactivation_date = "2001-01-01 00:00:00"\n'
        'expiration_date = "2001-02-01 00:00:00"\n'
    )
    mine = certificates.files / "clients" / "client"
    shutil.copy(mine / "client-key.pem", tmp_path)
    shutil.copy(mine / "ca-cert.pem", tmp_path)
    run(
        *("certtool", "--generate-certificate", "--template", str(template)),
        *("--load-privkey", str(tmp_path / "client-key.pem")),
        *("--load-ca-certificate", str(certificates.files / "ca-cert.pem")),
        *("--load-ca-privkey", str(certificates.files / "ca-key.pem")),
        *("--outfile", str(tmp_path / "client-cert.pem")),
    )
    read_nothing(certificates.uri(f"?tls-certificates={quote(str(tmp_path))}"))


def test_the_server_of_another_authority_is_not_believed(certificates: Served) -> None:
    theirs = certificates.strangers / "clients" / "client"
    read_nothing(certificates.uri(f"?tls-certificates={quote(str(theirs))}"))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_not_a_byte_of_nbd_without_a_certificate(
    certificates: Served, version: ssl.TLSVersion
) -> None:
    """In TLS 1.3 the client is through before the server has looked: what does it hear then?"""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    name = SECRET.encode()
    go = struct.pack(">I", len(name)) + name + b"\0\0"
    with socket.create_connection(("127.0.0.1", certificates.port)) as bare:
        bare.settimeout(60)
        start_tls(bare)
        heard = b""
        try:
            with context.wrap_socket(bare) as inside:
                inside.sendall(_OPTION_MAGIC + struct.pack(">II", 3, 0))
                inside.sendall(_OPTION_MAGIC + struct.pack(">II", 7, len(go)) + go)
                heard = inside.recv(65536)
        except (ssl.SSLError, ConnectionError):
            pass
    assert heard == b""


def start_tls(bare: socket.socket) -> None:
    receive(bare, 18)
    bare.sendall(struct.pack(">I", 3) + _OPTION_MAGIC + struct.pack(">II", _STARTTLS, 0))
    _, _, kind, length = struct.unpack(">QIII", receive(bare, 20))
    assert (kind, length) == (_ACK, 0)


def test_a_wrong_key(keys: Served) -> None:
    theirs = keys.strangers / "clients" / "client"
    query = f"?tls-psk-file={quote(str(theirs / 'keys.psk'))}"
    read_nothing(keys.uri(query, user="client"))
    done = qemu(keys, f"tls-creds-psk,id=t,endpoint=client,username=client,dir={theirs}")
    assert done.returncode != 0


def test_a_certificate_that_was_revoked(tmp_path: Path) -> None:
    # As docs/network.md says.
    rig, files = PoolRig(tmp_path / "p"), tmp_path / "tls"
    rig.cli("tls", "init", str(files), "--host", "127.0.0.1", "--client", "good", "--client", "bad")
    rig.init("64M")
    rig.create(SECRET, str(SIZE))
    (tmp_path / "template").write_text("crl_next_update = 3650\ncrl_number = 1\n")
    command = ["certtool", "--generate-crl"]
    command += ["--load-ca-privkey", str(files / "ca-key.pem")]
    command += ["--load-ca-certificate", str(files / "ca-cert.pem")]
    command += ["--load-certificate", str(files / "clients/bad/client-cert.pem")]
    command += ["--template", str(tmp_path / "template"), "--outfile", str(files / "ca-crl.pem")]
    port = free_port()
    served = Served(rig, files, files, port)
    good, bad = (
        served.uri(f"?tls-certificates={quote(str(files / 'clients' / name))}")
        for name in ("good", "bad")
    )
    where = ("--listen", f"127.0.0.1:{port}", "--tls", str(files))
    rig.start(*where)
    try:
        assert f"{SIZE}\n" in run("nbdinfo", "--size", bad).stdout
        rig.stop()
        run(*command)
        rig.start(*where)
        read_nothing(bad)
        assert f"{SIZE}\n" in run("nbdinfo", "--size", good).stdout
    finally:
        complaints = rig.dispose()
    assert complaints == []


def test_a_name_without_a_key(keys: Served, tmp_path: Path) -> None:
    key = (keys.files / "keys.psk").read_text().partition(":")[2]
    (tmp_path / "keys.psk").write_text(f"nobody:{key}")
    query = f"?tls-psk-file={quote(str(tmp_path / 'keys.psk'))}"
    read_nothing(keys.uri(query, user="nobody"))


def test_a_certificate_where_keys_are_wanted(keys: Served, certificates: Served) -> None:
    mine = certificates.files / "clients" / "client"
    read_nothing(keys.uri(f"?tls-certificates={quote(str(mine))}"))


def test_a_key_where_certificates_are_wanted(keys: Served, certificates: Served) -> None:
    mine = keys.files / "clients" / "client" / "keys.psk"
    read_nothing(certificates.uri(f"?tls-psk-file={quote(str(mine))}", user="client"))


def test_attach_does_not_do_tls_and_says_so_before_it_begins(either: Served) -> None:
    done = either.rig.run("attach", SECRET, "--user", "--timeout", "0")
    assert (done.returncode, done.stdout) == (1, "")
    assert "thinpool attach does not do TLS" in done.stderr
    assert done.stderr.count("\n") == 1


def test_it_serves_on_after_all_that(either: Served) -> None:
    assert f"{SIZE}\n" in run("nbdinfo", "--size", either.rig.uri(SECRET)).stdout
