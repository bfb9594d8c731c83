"""What a command waits for is said, when it has waited for a while, and not before."""

import io
import threading

import pytest

from tests.support.tools import PATIENCE
from thinpoold import waiting
from thinpoold.waiting import Waiting


class Told(io.StringIO):
    """Tells when something was written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = threading.Event()

    def flush(self) -> None:
        self.written.set()


def test_it_says_for_what_and_until_when(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "AFTER", 0.0)
    stream = Told()
    with Waiting("process 7 to end", "for at most 30 s", stream):
        assert stream.written.wait(PATIENCE)
    assert stream.getvalue() == "thinpool: waiting for process 7 to end; for at most 30 s\n"


def test_nothing_is_said_of_what_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "AFTER", PATIENCE)
    stream = Told()
    with Waiting("a moment", "soon", stream):
        pass
    assert stream.getvalue() == ""
