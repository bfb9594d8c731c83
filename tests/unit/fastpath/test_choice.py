"""Which filter is taken, and which is refused without being loaded."""

from pathlib import Path

import pytest

from tests.support.fastpath import FILTER
from thinpoold import daemon, fastpath
from thinpoold.errors import UserError
from thinpoold.fastpath import INTERFACE, Unsuitable, choose

NBDKIT = "1.32.5"


@pytest.fixture(autouse=True)
def nothing_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(fastpath.VARIABLE)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """nbdkit's script in a folder where no filter was built."""
    return tmp_path / "plugins" / "thinpool.py"


def filter_for(script: Path, *, interface: int = INTERFACE, nbdkit: str = NBDKIT) -> Path:
    """A file that says it is a filter; nothing of it could be loaded."""
    path = fastpath.place(script)
    path.parent.mkdir(parents=True)
    words = f"thinpoold-fastpath interface={interface} nbdkit={nbdkit};"
    path.write_bytes(b"\x7fELF" + bytes(5000) + words.encode() + bytes(5000))
    return path


def test_one_that_suits(script: Path) -> None:
    path = filter_for(script)
    for wanted in (None, "auto", "on"):
        assert choose(wanted, script, NBDKIT).filter == path


def test_one_that_was_built_for_another_nbdkit(script: Path) -> None:
    filter_for(script, nbdkit="1.30.1")
    choice = choose("auto", script, NBDKIT)
    assert choice.filter is None
    assert "built for nbdkit 1.30.1, and this is 1.32.5: build it again" in choice.reason
    with pytest.raises(Unsuitable, match="built for nbdkit"):
        choose("on", script, NBDKIT)


def test_one_that_was_built_for_another_thinpoold(script: Path) -> None:
    filter_for(script, interface=INTERFACE + 1)
    assert "another version of thinpoold" in choose("auto", script, NBDKIT).reason


def test_none_was_built(script: Path) -> None:
    choice = choose(None, script, NBDKIT)
    assert choice.filter is None
    assert f"make -C {script.parent / 'fastpath'}" in choice.reason
    with pytest.raises(Unsuitable, match="was not built"):
        choose("on", script, NBDKIT)


@pytest.mark.parametrize("content", [b"", b"\x7fELF and so on", bytes(1 << 20)])
def test_something_else_lies_there(script: Path, content: bytes) -> None:
    filter_for(script).write_bytes(content)
    assert "is no filter of thinpoold's" in choose("auto", script, NBDKIT).reason


def test_it_is_switched_off(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filter_for(script)
    assert choose("off", script, NBDKIT) == fastpath.Choice(None, "switched off")
    monkeypatch.setenv(fastpath.VARIABLE, "off")
    assert choose(None, script, NBDKIT).filter is None
    # What is said beats the environment.
    assert choose("on", script, NBDKIT).filter is not None


def test_the_environment_names_another(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = filter_for(tmp_path / "other" / "thinpool.py")
    monkeypatch.setenv(fastpath.VARIABLE, str(other))
    assert choose(None, script, NBDKIT).filter == other
    # Who names one wants it.
    other.unlink()
    with pytest.raises(Unsuitable):
        choose(None, script, NBDKIT)


def test_the_environment_says_nonsense(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fastpath.VARIABLE, "maybe")
    with pytest.raises(UserError, match="'maybe'"):
        choose(None, script, NBDKIT)


def test_the_checkout_has_one_that_suits() -> None:
    script = daemon.find_plugin()
    assert fastpath.place(script) == FILTER
    fastpath.check(FILTER, daemon.nbdkit_version(daemon.find_nbdkit()))
