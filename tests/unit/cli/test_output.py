"""Tables, figures and progress as a terminal shows them."""

import io
import os
import sys

import pytest

from thinpoold import progress
from thinpoold.cli import output
from thinpoold.progress import Progress


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_columns_are_aligned_by_cells_not_characters() -> None:
    text = output.table(("NAME", "SIZE"), [("磁盘", "1G"), ("größe", "100G")], right=(1,))
    assert text.splitlines() == ["NAME   SIZE", "磁盘     1G", "größe  100G"]


def test_no_line_ends_in_blanks() -> None:
    text = output.table(("NAME", "ORIGIN"), [("a", "long-origin"), ("b", "-")])
    assert all(line == line.rstrip() for line in text.splitlines())


@pytest.mark.parametrize(("columns", "wide"), [(40, False), (200, True)])
def test_on_a_narrow_terminal_the_widest_column_is_cut(
    monkeypatch: pytest.MonkeyPatch, columns: int, wide: bool
) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", str(columns))
    name = "n" * 60
    text = output.table(("NAME", "SIZE", "X"), [(name, "1G", "x" * 14)], right=(1,))
    assert max(map(len, text.splitlines())) <= columns
    assert (name in text) == wide
    assert ("…" in text) == (not wide)
    assert "1G" in text


def test_in_a_pipe_nothing_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    assert "n" * 500 in output.table(("NAME",), [("n" * 500,)])


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 10, "0%"),
        (1, 1000, "1%"),
        (999, 1000, "99%"),
        (10, 10, "100%"),
        (5, 10, "50%"),
        (1, 0, "-"),
    ],
)
def test_percent(part: int, whole: int, text: str) -> None:
    assert output.percent(part, whole) == text


def test_moments_are_local_and_unknown_ones_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    assert output.moment(None) == "-"
    assert output.moment("whenever") == "whenever"
    assert len(output.moment("2026-01-02T03:04:05+00:00")) == len("2026-01-02 03:04")


def test_plural() -> None:
    assert [output.plural(count, "client") for count in (0, 1, 2)] == [
        "0 clients",
        "1 client",
        "2 clients",
    ]


def test_progress_says_nothing_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "DELAY", 0.0)
    stream = io.StringIO()
    with Progress("working", stream) as running:
        running.update(1, 2)
    assert stream.getvalue() == ""


def test_progress_says_nothing_of_what_is_short() -> None:
    stream = Terminal()
    with Progress("working", stream):
        pass
    assert stream.getvalue() == ""


def test_progress_draws_and_wipes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "DELAY", 0.0)
    read_end, write_end = os.pipe()

    class Pipe(Terminal):
        def flush(self) -> None:
            os.write(write_end, b".")

    stream = Pipe()
    with Progress("working", stream) as running:
        os.read(read_end, 1)
        running.update(3, 4)
    os.close(read_end)
    os.close(write_end)
    assert stream.getvalue().startswith("\r| working\x1b[K")
    assert stream.getvalue().endswith("\r\x1b[K")


def test_progress_lines() -> None:
    running = Progress("working", io.StringIO())
    assert running.line(0) == "| working"
    running.update(1234)
    assert running.line(1) == "/ working: 1,234"
    running.update(1, 3)
    assert running.line(2) == "- working: 33%"
    running.update(5, 3)
    assert running.line(3) == "\\ working: 100%"
