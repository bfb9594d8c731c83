"""scripts/install-systemd."""

import os
import shutil
from pathlib import Path

import pytest

from tests.integration.systemd.units import install_systemd
from tests.support.pools import BIN

INSTALLED = {
    "lib/systemd/system/thinpoold@.service",
    "lib/systemd/system/thinpoold@.socket",
    "lib/systemd/system/thinpoold.target",
    "lib/systemd/system/thinpool-attach@.service",
    "lib/sysusers.d/thinpoold.conf",
    "lib/tmpfiles.d/thinpoold.conf",
}


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_installed_below_destdir_and_prefix(tmp_path: Path) -> None:
    install_systemd("--destdir", str(tmp_path), "--prefix", "/opt/thin", "--bindir", "/opt/thin/x")
    assert files(tmp_path / "opt/thin") == INSTALLED
    for name in INSTALLED:
        path = tmp_path / "opt/thin" / name
        assert path.stat().st_mode & 0o777 == 0o644
        assert "@bindir@" not in path.read_text()
    service = tmp_path / "opt/thin/lib/systemd/system/thinpoold@.service"
    assert "ExecStart=/opt/thin/x/thinpoold " in service.read_text()


def test_destdir_comes_from_the_environment_too(tmp_path: Path) -> None:
    done = install_systemd("--bindir=/usr/bin", DESTDIR=str(tmp_path))
    assert files(tmp_path) == {f"usr/local/{name}" for name in INSTALLED}
    assert done.stdout.count("installed ") == len(INSTALLED)


def test_again_changes_nothing_and_another_bindir_does(tmp_path: Path) -> None:
    words = ("--destdir", str(tmp_path), "--bindir")
    install_systemd(*words, "/a")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert install_systemd(*words, "/a").stdout == ""
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    changed = install_systemd(*words, "/b").stdout.splitlines()
    assert [Path(line).name for line in changed] == [
        "thinpoold@.service",
        "thinpool-attach@.service",
    ]


def test_what_was_edited_is_put_right(tmp_path: Path) -> None:
    words = ("--destdir", str(tmp_path), "--bindir", "/a")
    install_systemd(*words)
    socket = tmp_path / "usr/local/lib/systemd/system/thinpoold@.socket"
    original = socket.read_text()
    socket.write_text("[Socket]\n")
    assert install_systemd(*words).stdout == f"installed {socket}\n"
    assert socket.read_text() == original


def test_remove_takes_its_own_away_and_no_more(tmp_path: Path) -> None:
    words = ("--destdir", str(tmp_path))
    install_systemd(*words, "--bindir", "/a")
    other = tmp_path / "usr/local/lib/systemd/system/other.service"
    other.touch()
    assert install_systemd(*words, "--remove").stdout.count("removed ") == len(INSTALLED)
    assert files(tmp_path) == {"usr/local/lib/systemd/system/other.service"}
    other.unlink()
    assert install_systemd(*words, "--remove").stdout == ""
    assert not (tmp_path / "usr/local/lib/systemd").exists()


def test_the_programs_are_found_on_path(tmp_path: Path) -> None:
    path = f"{BIN}:{os.environ['PATH']}"
    install_systemd("--destdir", str(tmp_path), "--prefix", "/none", PATH=path)
    service = tmp_path / "none/lib/systemd/system/thinpoold@.service"
    assert f"ExecStart={BIN}/thinpoold " in service.read_text()


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (("--nonsense",), 2, "no such option: --nonsense"),
        (("--prefix",), 2, "--prefix needs a directory"),
        (("--prefix", "usr"), 2, "must be an absolute path"),
        (("--bindir", "bin"), 2, "must be an absolute path"),
        (("--bindir", "/a b"), 1, "systemd cannot take the path"),
        (("--bindir", "/a%b"), 1, "systemd cannot take the path"),
    ],
)
def test_refusals(tmp_path: Path, words: tuple[str, ...], status: int, says: str) -> None:
    done = install_systemd("--destdir", str(tmp_path), *words, check=False)
    assert done.returncode == status
    assert says in done.stderr
    assert files(tmp_path) == set()


def test_without_the_programs_nothing_is_installed(tmp_path: Path) -> None:
    prefix = str(tmp_path / "p")
    done = install_systemd("--prefix", prefix, "--bindir", str(tmp_path), check=False)
    assert done.returncode == 1
    assert "no thinpoold in" in done.stderr
    assert files(tmp_path) == set()


def test_where_the_programs_are_must_be_known(tmp_path: Path) -> None:
    prefix, tools = tmp_path / "p", tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "dirname"):
        (tools / name).symlink_to(str(shutil.which(name)))
    done = install_systemd("--prefix", str(prefix), check=False, PATH=str(tools))
    assert done.returncode == 1
    assert "thinpoold is not on PATH" in done.stderr
    assert not prefix.exists()


def test_help() -> None:
    assert "--destdir DIR" in install_systemd("--help").stdout
