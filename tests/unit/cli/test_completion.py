"""What a word may become, and how bash is told; the shells themselves are tried elsewhere."""

from pathlib import Path

import click
import pytest
from click.shell_completion import CompletionItem

from thinpoold.cli import candidates
from thinpoold.cli.app import GROUPS, thinpool
from thinpoold.cli.shells import CarefulBash, raw_word, script, variable
from thinpoold.settings import Settings


@pytest.fixture(autouse=True)
def volumes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools with three volumes each, whose names tell the pool's."""
    monkeypatch.setattr(
        candidates, "volume_names", lambda pool: [f"{pool}-{end}" for end in ("1", "2", "a:b")]
    )
    monkeypatch.setenv("THINPOOL_POOL", "env")


def complete(line: str, monkeypatch: pytest.MonkeyPatch, rest: str = "") -> list[str]:
    monkeypatch.setenv("COMP_LINE", line + rest)
    monkeypatch.setenv("COMP_POINT", str(len(line.encode())))
    return CarefulBash(thinpool, {}, "thinpool", variable("thinpool")).complete().split("\n")


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("thinpool i", ["plain,init", "plain,info"]),
        ("thinpool info ", ["plain,env-1", "plain,env-2", "plain,env-a:b"]),
        ("thinpool -p x info ", ["plain,x-1", "plain,x-2", "plain,x-a:b"]),
        ("thinpool info -p x ", ["plain,x-1", "plain,x-2", "plain,x-a:b"]),
        ("thinpool --pool=x info x-2", ["plain,x-2"]),
        ("thinpool info env-a:", ["plain,b"]),
        ("thinpool info env-a\\:", ["plain,env-a:b"]),
        ("thinpool info 'env-a:", ["plain,env-a:b"]),
        ("thinpool delete env-1 env-2 ", ["plain,env-a:b"]),
        ("thinpool snapshot env-1 ", [""]),
        ("thinpool snapshot env-1 new env-2", ["plain,env-2"]),
        ("thinpool create env", [""]),
        ("thinpool rename env-2", ["plain,env-2"]),
        ("thinpool rename env-2 env", [""]),
        ("thinpool set on", ["plain,on-full=queue", "plain,on-full=error"]),
        ("thinpool set cache", ["plain,cache=page", "plain,cache=bufio"]),
        ("thinpool set low", ["part,low-water="]),
        ("thinpool set skip-zeroing=", ["plain,yes", "plain,no"]),
        ("thinpool set --volume env-1 io", ["part,iops="]),
        ("thinpool set --volume ", ["plain,env-1", "plain,env-2", "plain,env-a:b"]),
        ("thinpool export-metadata x", ["file,"]),
        ("thinpool start --listen u", ["plain,unix"]),
        ("A=1 B=2 thinpool uri env-2", ["plain,env-2"]),
        ("thinpool completion f", ["plain,fish"]),
    ],
)
def test_bash(line: str, answer: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert complete(line, monkeypatch) == answer


def test_only_what_stands_before_the_cursor_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert complete("thinpool info env-2", monkeypatch, rest=" --json") == ["plain,env-2"]


def test_verbs_are_completed_without_loading_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: click.Group, ctx: click.Context, name: str) -> None:
        raise AssertionError(f"loaded {name}")

    monkeypatch.setattr(type(thinpool), "get_command", load)
    verbs = [name for verbs in GROUPS.values() for name in verbs]
    assert complete("thinpool ", monkeypatch) == [f"plain,{name}" for name in verbs]


def test_a_pool_that_cannot_be_read_has_no_volumes(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(pool: str) -> list[str]:
        raise OSError("gone")

    monkeypatch.setattr(candidates, "volume_names", fail)
    assert complete("thinpool info ", monkeypatch) == [""]


def test_pools_of_the_default_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("tank", "tub", "no-pool"):
        (tmp_path / name).mkdir()
    for name in ("tank", "tub"):
        (tmp_path / name / "metadata.lmdb").touch()
    monkeypatch.setattr(candidates, "default_directory", lambda: tmp_path)
    assert complete("thinpool -p t", monkeypatch) == ["plain,tank", "plain,tub", "dir,"]
    assert complete("thinpool status ta", monkeypatch) == ["plain,tank", "dir,"]


def test_every_setting_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    offered = {line.split(",")[1].split("=")[0] for line in complete("thinpool set ", monkeypatch)}
    assert offered == {name.replace("_", "-") for name in Settings().as_json()}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("thinpool info ", ""),
        ("thinpool info a", "a"),
        ("thinpool info a\\ b", "a\\ b"),
        ("thinpool info 'a b", "'a b"),
        ('thinpool info "a \\" b', '"a \\" b'),
        ("thinpool info 'a b'c", "'a b'c"),
        ("thinpool info a\\", "a\\"),
    ],
)
def test_the_last_word_as_it_was_typed(text: str, word: str) -> None:
    assert raw_word(text) == word


@pytest.mark.parametrize(
    ("name", "shown"), [("a b", "a\\ b"), ("$x;'", "\\$x\\;\\'"), ("*", "\\*"), ("ä", "ä")]
)
def test_a_name_is_quoted(name: str, shown: str) -> None:
    bash = CarefulBash(thinpool, {}, "thinpool", variable("thinpool"))
    assert bash.format_completion(CompletionItem(name)) == f"plain,{shown}"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_names_program_and_variable(shell: str) -> None:
    text = script(shell, thinpool, "thinpool")
    assert f"_THINPOOL_COMPLETE={shell}_complete" in text
    assert "%(" not in text
