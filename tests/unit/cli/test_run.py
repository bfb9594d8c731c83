"""Exit statuses and the one line on stderr, whatever a command ends with."""

import importlib
from collections.abc import Callable

import click
import pytest

from thinmeta.errors import Corrupt
from thinpoold.cli import main
from thinpoold.cli.app import GROUPS, thinpool
from thinpoold.cli.run import run
from thinpoold.errors import VolumeInUse


def outcome(
    capsys: pytest.CaptureFixture[str], function: Callable[[], None]
) -> tuple[int, str, str]:
    @click.command("thinpool")
    def command() -> None:
        function()

    with pytest.raises(SystemExit) as ended:
        run(command, [])
    out, err = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, out, err


def raising(error: BaseException) -> Callable[[], None]:
    def function() -> None:
        raise error

    return function


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (VolumeInUse("disk is in use:\n2 clients"), 1, "disk is in use: 2 clients"),
        (
            FileNotFoundError(2, "No such file or directory", "/x"),
            1,
            "/x: No such file or directory",
        ),
        (Corrupt("checksum", "block 7", "bad checksum"), 1, "block 7: bad checksum"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ZeroDivisionError("oops"), 1, "internal error: ZeroDivisionError: oops;"),
        (click.UsageError("Which pool? "), 2, "which pool?; see 'thinpool --help'"),
        (click.FileError("f", "no"), 1, "no"),
    ],
)
def test_an_error_is_one_line(
    capsys: pytest.CaptureFixture[str], error: BaseException, status: int, line: str
) -> None:
    code, out, err = outcome(capsys, raising(error))
    assert (code, out) == (status, "")
    err = err.removeprefix("\n")  # After ^C, click ends the line of the terminal.
    assert err.startswith("thinpool: ")
    assert line in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_debug_shows_where(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THINPOOL_DEBUG", "1")
    _, _, err = outcome(capsys, raising(ZeroDivisionError("oops")))
    assert "Traceback" in err


def test_done_and_exit(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(capsys, lambda: None) == (0, "", "")
    assert outcome(capsys, lambda: click.get_current_context().exit(1)) == (1, "", "")


@pytest.mark.parametrize("verb", [name for verbs in GROUPS.values() for name in verbs])
def test_every_verb_has_help_with_an_example_and_exit_statuses(verb: str) -> None:
    context = click.Context(thinpool)
    command = thinpool.get_command(context, verb)
    assert command is not None
    assert command.name == verb
    text = command.get_help(click.Context(command, info_name=verb))
    assert "Example" in text
    assert f"thinpool {verb}" in text or f"mypool {verb}" in text
    assert "Exit status: 0 " in text
    # The others are for any pool.
    assert "--pool" in text or verb in ("tls", "doctor", "completion")


def test_the_list_of_verbs_is_shown_by_group(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    out, _ = capsys.readouterr()
    for title, verbs in GROUPS.items():
        assert f"{title}:" in out
        for name, verb in verbs.items():
            assert f"  {name} " in out
            assert verb.summary in out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["frobnicate"], "no such command 'frobnicate'"),
        (["create", "x", "1G", "--nope"], "create: no such option '--nope'"),
        (["create", "x"], "create: missing argument 'SIZE'"),
        (["create", "x", "1G", "more"], "create: got unexpected extra argument (more)"),
        (["list"], "list: which pool?"),
        (["-p", "a", "list", "-p", "b"], "which pool, a or b?"),
        (["status", "a", "-p", "b"], "which pool, a or b?"),
        (["-p", "/p", "snapshot", "a"], "'a' has no snapshot name"),
        (["-p", "/p", "snapshot", "a", "b", "c"], "'c' has no snapshot name"),
        (["start", "/p", "--threads", "0"], "invalid value for '--threads'"),
    ],
)
def test_wrong_usage(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    line: str,
) -> None:
    monkeypatch.delenv("THINPOOL_POOL", raising=False)
    with pytest.raises(SystemExit) as ended:
        main(words)
    _, err = capsys.readouterr()
    assert ended.value.code == 2
    assert line in err.lower() if line.islower() else line in err
    assert err.count("\n") == 1


def test_no_words_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert out == ""
    assert err.startswith("Usage: thinpool")


def test_verbs_are_loaded_late() -> None:
    for verbs in GROUPS.values():
        for verb in verbs.values():
            assert hasattr(importlib.import_module(f"thinpoold.cli.{verb.module}"), verb.function)
