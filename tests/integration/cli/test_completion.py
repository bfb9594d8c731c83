"""thinpool completion: real shells, in which Tab is pressed."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.cli.outcomes import wrong_usage
from tests.support.pools import PoolRig
from tests.support.shells import COMMANDS, Shell

VOLUMES = ("disk", "db:1", "my own", "äpfel")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PoolRig]:
    """A pool with volumes of all sorts of names."""
    rig = PoolRig(tmp_path_factory.mktemp("s") / "p")
    rig.init("64M")
    for name in VOLUMES:
        rig.create(name, "1M")
    yield rig
    assert rig.dispose() == []


@pytest.fixture(scope="module", params=list(COMMANDS))
def shell(request: pytest.FixtureRequest, filled: PoolRig) -> Iterator[Shell]:
    name: str = request.param
    if name != "bash" and shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    home = filled.directory.parent / f"home-{name}"
    home.mkdir()
    with Shell(name, {**filled.env, "HOME": str(home)}) as shell:
        yield shell


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("thinpool inf", ["info"]),
        ("thinpool export", ["export-metadata"]),
        ("thinpool create x 1M --read", ["create", "x", "1M", "--read-only"]),
        ("thinpool init --on-full q", ["init", "--on-full", "queue"]),
        ("thinpool info di", ["info", "disk"]),
        ("thinpool info db", ["info", "db:1"]),
        ("thinpool info my", ["info", "my own"]),
        ("thinpool delete disk m", ["delete", "disk", "my own"]),
        ("thinpool rollback disk db", ["rollback", "disk", "db:1"]),
        ("thinpool snapshot disk a db", ["snapshot", "disk", "a", "db:1"]),
        ("thinpool snapshot disk d", ["snapshot", "disk", "d"]),
        ("thinpool create d", ["create", "d"]),
        ("thinpool rename disk m", ["rename", "disk", "m"]),
        ("thinpool get low", ["get", "low-water"]),
        ("thinpool info a/b", ["info", "a/b"]),
        ("thinpool nonsense d", ["nonsense", "d"]),
    ],
)
def test_tab(shell: Shell, line: str, words: list[str]) -> None:
    assert shell.complete(line) == ["thinpool", *words]


def test_the_daemon_s_own_options(shell: Shell) -> None:
    assert shell.complete("thinpoold --foreg") == ["thinpoold", "--foreground"]
    assert shell.complete("thinpoold --listen un") == ["thinpoold", "--listen", "unix"]


def test_no_blank_between_a_key_and_its_value(filled: PoolRig) -> None:
    for name in ("bash", "zsh"):
        if name == "bash" or shutil.which(name) is not None:
            with Shell(name, filled.env) as shell:
                assert shell.complete("thinpool set low", "5%") == [
                    "thinpool",
                    "set",
                    "low-water=5%",
                ]


def test_a_volume_of_the_pool_that_the_line_names(
    shell: Shell, filled: PoolRig, tmp_path: Path
) -> None:
    other = PoolRig(tmp_path / "o")
    other.init("64M")
    other.create("wanted", "1M")
    for words in (["-p", str(other.directory), "info"], ["info", "-p", str(other.directory)]):
        assert shell.complete(f"thinpool {' '.join(words)} w") == ["thinpool", *words, "wanted"]


def test_a_pools_directory(shell: Shell, filled: PoolRig) -> None:
    parent = filled.directory.parent
    words = shell.complete(f"thinpool status {parent}/p")
    assert words[:2] == ["thinpool", "status"]
    assert words[2].rstrip("/") == str(filled.directory)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("thinpool set on-full=q", ["set", "on-full=queue"]),
        ("thinpool set low", ["set", "low-water="]),
        ("thinpool info db:", ["info", "db:1"]),
        ("thinpool info 'my o", ["info", "my own"]),
        ("thinpool info my\\ ", ["info", "my own"]),
    ],
)
def test_where_bash_takes_words_apart(filled: PoolRig, line: str, words: list[str]) -> None:
    with Shell("bash", filled.env) as shell:
        assert shell.complete(line) == ["thinpool", *words]


def test_a_running_pool_is_not_asked(filled: PoolRig) -> None:
    """What its daemon does meanwhile does not hold up the prompt."""
    filled.start()
    try:
        filled.create("late", "1M")
        with Shell("bash", filled.env) as shell:
            assert shell.complete("thinpool info la") == ["thinpool", "info", "late"]
    finally:
        filled.stop()


def test_an_unknown_shell(filled: PoolRig) -> None:
    wrong_usage(filled, "completion", "csh", says="csh")
    wrong_usage(filled, "completion", says="bash|zsh|fish")
