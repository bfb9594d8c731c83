"""What each check says of a machine that lacks what it looks for."""

import fcntl
import os
import resource
import sys
from pathlib import Path

import pytest

from tests.unit.doctor.machines import machine
from thinpoold import buffers, daemon, fallocate, fastpath
from thinpoold.doctor import filesystem, kernel, limits, programs
from thinpoold.doctor.examination import can_serve, examine
from thinpoold.doctor.finding import Finding
from thinpoold.doctor.machine import Machine

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def nbdkit(
    python: str = PYTHON, *, plugin: bool = True, serves: str = "exit 0", version: str = "1.32.5"
) -> str:
    """A script that answers as nbdkit does."""
    dump = f"echo version={version}; echo python_version={python}.1"
    return (
        'case "$*" in\n'
        f"  --version) echo nbdkit {version} ;;\n"
        f"  *--dump-plugin) {dump if plugin else 'exit 1'} ;;\n"
        f"  *) {serves} ;;\n"
        "esac"
    )


def named(findings: list[Finding], name: str) -> Finding:
    [found] = [finding for finding in findings if finding.name == name]
    return found


def lacking(findings: list[Finding]) -> set[str]:
    return {finding.name for finding in findings if not finding.ok}


def test_all_is_well_with_nbdkit(tmp_path: Path) -> None:
    findings = list(programs.nbdkit(machine(tmp_path, {"nbdkit": nbdkit()})))
    assert lacking(findings) == set()
    assert named(findings, "nbdkit").found == "1.32.5"
    assert can_serve(findings)


def test_no_nbdkit(tmp_path: Path) -> None:
    findings = list(programs.nbdkit(machine(tmp_path)))
    assert [finding.remedy for finding in findings] == [
        "apt-get install nbdkit nbdkit-plugin-python"
    ]
    assert not can_serve(findings)


def test_nbdkit_without_python(tmp_path: Path) -> None:
    findings = list(programs.nbdkit(machine(tmp_path, {"nbdkit": nbdkit(plugin=False)})))
    assert lacking(findings) == {"nbdkit's Python plugin"}
    assert findings[-1].remedy == "apt-get install nbdkit-plugin-python"
    assert not can_serve(findings)


def test_another_python_inside_nbdkit(tmp_path: Path) -> None:
    findings = list(programs.nbdkit(machine(tmp_path, {"nbdkit": nbdkit("3.99")})))
    found = named(findings, "the same Python")
    assert found.found == f"thinpoold runs in {PYTHON}, nbdkit embeds 3.99"
    assert "python3.99 -m venv" in found.remedy
    assert not can_serve(findings)


def test_libraries_that_do_not_load_inside_nbdkit(tmp_path: Path) -> None:
    said = "echo \"nbdkit: error: ModuleNotFoundError: No module named 'lmdb'\" >&2; exit 1"
    findings = list(programs.nbdkit(machine(tmp_path, {"nbdkit": nbdkit(serves=said)})))
    found = named(findings, "thinpoold inside nbdkit")
    assert found.found == "ModuleNotFoundError: No module named 'lmdb'"
    assert "pip install" in found.remedy
    assert not can_serve(findings)


def test_the_fast_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "plugins" / "thinpool.py"
    monkeypatch.setattr(daemon, "find_plugin", lambda: script)
    there = machine(tmp_path, {"nbdkit": nbdkit()})
    [finding] = programs.fast_path(there)
    assert "was not built" in finding.found
    assert finding.remedy == f"make -C {script.parent / 'fastpath'}"
    built = fastpath.place(script)
    built.parent.mkdir(parents=True)
    words = f"thinpoold-fastpath interface={fastpath.INTERFACE} nbdkit=%s;"
    built.write_text(words % "1.30.1")
    [finding] = programs.fast_path(there)
    assert "was built for nbdkit 1.30.1, and this is 1.32.5" in finding.found
    assert finding.remedy == f"make -B -C {script.parent / 'fastpath'}"
    built.write_text(words % "1.32.5")
    [finding] = programs.fast_path(there)
    assert (finding.ok, finding.remedy) == (True, "")
    (tmp_path / "without").mkdir()
    assert list(programs.fast_path(machine(tmp_path / "without"))) == []


def test_the_version_is_what_the_daemon_takes_it_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The filter's file names all of it, with what a distribution added."""
    script = tmp_path / "plugins" / "thinpool.py"
    monkeypatch.setattr(daemon, "find_plugin", lambda: script)
    there = machine(tmp_path, {"nbdkit": nbdkit(version="1.47.1-2+b1")})
    version = daemon.nbdkit_version(str(tmp_path / "bin" / "nbdkit"))
    built = fastpath.place(script)
    built.parent.mkdir(parents=True)
    words = f"thinpoold-fastpath interface={fastpath.INTERFACE} nbdkit={version};"
    built.write_text(words)
    [finding] = programs.fast_path(there)
    assert finding.ok
    assert named(list(programs.nbdkit(there)), "nbdkit").found == version == "1.47.1-2+b1"


def test_a_program_that_cannot_be_run(tmp_path: Path) -> None:
    there = machine(tmp_path, {"nbdkit": nbdkit()})
    (tmp_path / "bin" / "nbdkit").write_bytes(b"\x7fELF rubbish")
    assert not can_serve(list(programs.nbdkit(there)))


def test_tools_that_are_missing_name_their_packages(tmp_path: Path) -> None:
    findings = list(programs.tools(machine(tmp_path)))
    assert all(not finding.ok and not finding.needed for finding in findings)
    assert named(findings, "nbd-client").remedy == "apt-get install nbd-client"
    assert named(findings, "nbdfuse").remedy == "apt-get install libnbd-bin"
    assert named(findings, "nbdkit's headers").remedy == "apt-get install nbdkit-plugin-dev"
    assert can_serve(findings)


def test_tools_that_are_there_tell_their_version(tmp_path: Path) -> None:
    there = machine(
        tmp_path,
        {"nbd-client": "echo This is nbd-client, from nbd 3.24", "thin_check": "echo 0.9.0"},
        {"/usr/include/nbdkit-filter.h": ""},
    )
    findings = list(programs.tools(there))
    assert named(findings, "nbd-client").found == "3.24"
    assert named(findings, "thin-provisioning-tools").found == "0.9.0"
    assert named(findings, "nbdkit's headers").ok


@pytest.mark.parametrize(
    ("modprobe", "loaded", "ok", "remedy"),
    [
        ("exit 1", True, True, ""),
        ("exit 0", False, False, "modprobe nbd"),
        ("exit 1", False, False, "apt-get install linux-image-amd64"),
    ],
)
def test_the_nbd_module(modprobe: str, loaded: bool, ok: bool, remedy: str, tmp_path: Path) -> None:
    files = {"/sys/module/nbd/refcnt": "0"} if loaded else {}
    found = kernel.nbd(machine(tmp_path, {"modprobe": modprobe}, files))
    assert found.ok is ok
    assert found.remedy.startswith(remedy)
    assert bool(found.remedy) is not ok


def test_no_fuse_and_no_loop_devices(tmp_path: Path) -> None:
    there = machine(tmp_path)
    findings = [*kernel.fuse(there), kernel.loop(there)]
    remedies = [finding.remedy for finding in findings]
    assert remedies == ["modprobe fuse", "apt-get install fuse3", "modprobe loop"]


def test_fuse_and_loop_devices(tmp_path: Path) -> None:
    there = machine(tmp_path, {"fusermount3": ""}, {"/dev/fuse": "", "/dev/loop-control": ""})
    assert lacking([*kernel.fuse(there), kernel.loop(there)]) == set()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open them whatever their mode is")
def test_devices_of_another_user(tmp_path: Path) -> None:
    there = machine(tmp_path, {"fusermount3": ""}, {"/dev/fuse": "", "/dev/loop-control": ""})
    for name in ("fuse", "loop-control"):
        (tmp_path / "root/dev" / name).chmod(0)
    assert lacking([*kernel.fuse(there), kernel.loop(there)]) == {"/dev/fuse", "loop devices"}


@pytest.mark.parametrize(
    ("files", "ok", "serves"), [(-1, True, True), (4096, True, True), (512, False, True)]
)
def test_open_files(files: int, ok: bool, serves: bool, tmp_path: Path) -> None:
    findings = list(limits.limits(machine(tmp_path, limits={"files": files})))
    assert (named(findings, "open files").ok, can_serve(findings)) == (ok, serves)


def test_the_limit_that_counts_is_the_one_the_daemon_goes_up_to() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 512), hard))
    try:
        assert Machine().limits["files"] == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_so_few_files_that_nothing_works(tmp_path: Path) -> None:
    findings = list(limits.limits(machine(tmp_path, limits={"files": 64})))
    assert not can_serve(findings)
    assert "ulimit -n 1024" in named(findings, "open files").remedy


def test_too_little_address_space(tmp_path: Path) -> None:
    findings = list(limits.limits(machine(tmp_path, limits={"address space": 8 << 30})))
    found = named(findings, "address space")
    assert (found.ok, found.found) == (False, "8G")
    assert not can_serve(findings)


@pytest.mark.parametrize(("mode", "ok"), [("0", True), ("1", True), ("2", False), ("", True)])
def test_overcommit(mode: str, ok: bool, tmp_path: Path) -> None:
    there = machine(tmp_path, {}, {"/proc/sys/vm/overcommit_memory": mode + "\n"})
    findings = list(limits.limits(there))
    assert named(findings, "memory overcommit").ok is ok
    assert can_serve(findings)


def test_a_file_system_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    findings = list(filesystem.filesystem(tmp_path / "not" / "yet"))
    assert named(findings, "punching holes").ok
    assert named(findings, "extended attributes").ok
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_that_can_do_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fallocate, "punch_hole", lambda *arguments: False)
    monkeypatch.setattr(os, "setxattr", refuse)
    monkeypatch.setattr(fcntl, "ioctl", refuse)
    findings = list(filesystem.filesystem(tmp_path))
    assert {"punching holes", "extended attributes", "reflinks"} <= lacking(findings)
    assert can_serve(findings)


def test_a_directory_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *arguments: False)
    [found] = filesystem.filesystem(tmp_path / "pools")
    assert (found.ok, found.needed) == (False, False)
    assert f"mkdir -p {tmp_path}/pools" in found.remedy


def test_what_is_lacking_has_a_remedy_and_what_is_there_has_none(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    bare = machine(tmp_path / "bare", limits={"files": 1, "address space": 1 << 20})
    for there in (bare, Machine()):
        for finding in examine(there, tmp_path):
            assert bool(finding.remedy) is not finding.ok, finding
            assert finding.purpose
            assert "\n" not in finding.found + finding.purpose + finding.remedy


def test_bounded_buffers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = machine(tmp_path, {"nbdkit": nbdkit()})
    script = tmp_path / "plugins" / "thinpool.py"
    monkeypatch.setattr(daemon, "find_plugin", lambda: script)
    [finding] = programs.bounded_buffers(there)
    assert not finding.ok
    assert finding.remedy == f"make -C {tmp_path}/plugins/fastpath"
    library = buffers.place(script)
    library.parent.mkdir(parents=True)
    library.touch()
    [finding] = programs.bounded_buffers(there)
    assert finding.ok
    (tmp_path / "without").mkdir()
    assert list(programs.bounded_buffers(machine(tmp_path / "without"))) == []
