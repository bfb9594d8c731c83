"""Programs: nbdkit and the Python inside it, NBD clients, the kernel's tools, a compiler."""

import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from thinpoold.doctor.finding import Finding
from thinpoold.doctor.machine import Machine

INSTALL = "apt-get install"
_VERSION = re.compile(r"\d+\.\d+[\w.]*")
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

# Loads all that the daemon's process does, and serves half a kilobyte of nothing.
_PLUGIN = """\
import thinpoold.nbd
def open(readonly): return 1
def get_size(h): return 512
def pread(h, buf, offset, flags): pass
"""


@dataclass(frozen=True)
class _Tool:
    """A program that some commands, or users, want."""

    title: str
    names: tuple[str, ...]
    package: str
    purpose: str
    flag: str = "--version"


_TOOLS = (
    _Tool("nbd-client", ("nbd-client",), "nbd-client", "makes volumes block devices: attach"),
    _Tool("nbdfuse", ("nbdfuse",), "libnbd-bin", "makes volumes files without root: attach --user"),
    _Tool("nbdinfo", ("nbdinfo",), "libnbd-bin", "shows what is served; nbdcopy fills and saves"),
    _Tool("qemu-img", ("qemu-img",), "qemu-utils", "turns disk images into volumes and back"),
    _Tool(
        "thin-provisioning-tools",
        ("thin_check",),
        "thin-provisioning-tools",
        "the kernel's own checkers, for metadata that was exported",
    ),
    _Tool("blkid", ("blkid",), "util-linux", "tells init whose data a block device holds"),
    _Tool("compiler", ("cc", "gcc", "clang"), "gcc", "builds the fast path, a filter in C"),
    _Tool("certtool", ("certtool",), "gnutls-bin", "makes certificates: tls init"),
)
_HEADER = "/usr/include/nbdkit-filter.h"


def nbdkit(machine: Machine) -> Iterator[Finding]:
    """Look for nbdkit, its Python plugin, and thinpoold inside it."""
    program = machine.program("nbdkit")
    serves = "serves pools over NBD"
    if program is None:
        remedy = f"{INSTALL} nbdkit nbdkit-plugin-python"
        yield Finding("nbdkit", False, "not installed", serves, remedy, needed=True)
        return
    yield Finding("nbdkit", True, _nbdkit_version(machine, program) or program, serves, needed=True)
    yield from _python_plugin(machine, program)


def _python_plugin(machine: Machine, program: str) -> Iterator[Finding]:
    name, purpose = "nbdkit's Python plugin", "runs thinpoold inside nbdkit"
    status, said = machine.run(program, "python", "--dump-plugin")
    facts = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    embedded = ".".join(facts.get("python_version", "").split(".")[:2])
    if status != 0 or not embedded:
        remedy = f"{INSTALL} nbdkit-plugin-python"
        yield Finding(name, False, "not installed", purpose, remedy, needed=True)
        return
    version = f"{facts.get('version', '?')}, Python {embedded}"
    yield Finding(name, True, version, purpose, needed=True)
    same = embedded == _PYTHON
    yield Finding(
        "the same Python",
        same,
        f"thinpoold runs in {_PYTHON}" + ("" if same else f", nbdkit embeds {embedded}"),
        "nbdkit finds thinpoold and its libraries only where the versions agree",
        ""
        if same
        else f"install thinpoold again, with python{embedded}: python{embedded} -m venv DIR",
        needed=True,
    )
    if same:
        yield _inside(machine, program)


def _inside(machine: Machine, program: str) -> Finding:
    """Load thinpoold where the daemon will."""
    name, purpose = "thinpoold inside nbdkit", "the daemon's process loads all that it needs"
    with tempfile.TemporaryDirectory(prefix="thinpool-doctor-") as directory:
        script = Path(directory) / "plugin.py"
        script.write_text(_PLUGIN)
        command = (
            program,
            "-U",
            f"{directory}/sock",
            "python",
            f"script={script}",
            "--run",
            "true",
        )
        status, said = machine.run(*command)
    if status == 0:
        return Finding(name, True, "loads", purpose, needed=True)
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    told = [line for line in lines if re.match(r"nbdkit: error: .|\w*Error: ", line)]
    reason = (told or lines or ["it says nothing"])[-1].removeprefix("nbdkit: error: ")
    remedy = f"{sys.executable} -m pip install --force-reinstall thinpoold"
    return Finding(name, False, reason, purpose, remedy, needed=True)


def tools(machine: Machine) -> Iterator[Finding]:
    """Look for the programs that not everybody needs, and for nbdkit's headers."""
    for tool in _TOOLS:
        program = machine.program(*tool.names)
        if program is None:
            remedy = f"{INSTALL} {tool.package}"
            yield Finding(tool.title, False, "not installed", tool.purpose, remedy)
        else:
            yield Finding(tool.title, True, _version(machine, program, tool.flag), tool.purpose)
    header = machine.file(_HEADER).exists()
    yield Finding(
        "nbdkit's headers",
        header,
        _HEADER if header else "not installed",
        "what the fast path is built against",
        "" if header else f"{INSTALL} nbdkit-plugin-dev",
    )


def fast_path(machine: Machine) -> Iterator[Finding]:
    """Look for the filter that serves mapped blocks without Python, and whether it suits nbdkit."""
    from thinpoold import daemon, fastpath

    program = machine.program("nbdkit")
    if program is None:
        return
    name, purpose = "fast path", "serves mapped blocks without Python, several times as fast"
    script = daemon.find_plugin()
    version = _nbdkit_version(machine, program)
    try:
        fastpath.check(fastpath.place(script), version)
    except fastpath.Unsuitable as error:
        yield Finding(name, False, str(error), purpose, fastpath.how_to_build(script))
    else:
        yield Finding(name, True, f"built for nbdkit {version}", purpose)


def bounded_buffers(machine: Machine) -> Iterator[Finding]:
    """Look for the library that bounds what clients' requests take of memory."""
    from thinpoold import buffers, daemon, fastpath

    if machine.program("nbdkit") is None:
        return
    script = daemon.find_plugin()
    built = buffers.place(script).exists()
    yield Finding(
        "bounded buffers",
        built,
        "built" if built else f"{buffers.place(script)} was not built",
        "keeps clients' requests small in the daemon's memory",
        "" if built else fastpath.how_to_build(script),
    )


def service_manager(machine: Machine) -> Iterator[Finding]:
    """Look for systemd, and whether it runs."""
    name, purpose = "systemd", "starts pools and attaches volumes at boot"
    program = machine.program("systemctl")
    if program is None:
        yield Finding(name, False, "not installed", purpose, f"{INSTALL} systemd")
        return
    runs = machine.file("/run/systemd/system").is_dir()
    version = _version(machine, program, pattern=r"systemd (\d+)")
    yield Finding(
        name,
        runs,
        version if runs else f"{version}, but it did not boot this machine",
        purpose,
        "" if runs else "thinpool start POOL",
    )


def _nbdkit_version(machine: Machine, program: str) -> str:
    """The version as the daemon understands it, '' when it does not say."""
    from thinpoold import daemon

    return daemon.version_said(machine.run(program, "--version")[1])


def _version(
    machine: Machine, program: str, flag: str = "--version", pattern: str | None = None
) -> str:
    _, said = machine.run(program, flag)
    if pattern is not None and (match := re.search(pattern, said)):
        return match[1]
    first = next(iter(_VERSION.findall(said)), "")
    return first or program
