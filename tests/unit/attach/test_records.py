"""Records of what is attached: believed only while it is."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from thinpoold.attach import records
from thinpoold.attach.devices import NbdDevice
from thinpoold.attach.errors import AttachFailed
from thinpoold.attach.records import Attachment

MINE = Attachment(
    kind=records.NBD,
    device="/dev/nbd3",
    pool="/pools/p",
    volume="disk",
    uuid="u-1",
    read_only=False,
    pid=os.getpid(),
    started=records.start_time(os.getpid()),
    connector=77,
    clients=(77,),
)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(records, "ROOTS", tmp_path / "records")
    monkeypatch.setattr(records, "directory", lambda: tmp_path / "records")
    return tmp_path / "records"


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NbdDevice, "connector", 77)


@pytest.mark.usefixtures("connected")
def test_what_is_saved_is_found_by_its_pool() -> None:
    records.make_directory()
    records.save(MINE)
    other = replace(MINE, device="/dev/nbd1", pool="/pools/q")
    records.save(other)
    assert records.attachments() == [other, MINE]
    assert records.attachments(Path("/pools/p")) == [MINE]
    renewed = MINE.renewed_by(5, "renamed")
    records.save(renewed)
    assert records.reread(MINE) == renewed
    assert (renewed.renewed, renewed.clients, renewed.volume) == (1, (5,), "renamed")
    records.remove(MINE)
    assert records.attachments() == [other]


def test_a_device_that_is_gone_or_another_s_is_not_ours(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records.make_directory()
    records.save(MINE)
    for connector in (None, 78):
        monkeypatch.setattr(NbdDevice, "connector", connector)
        assert records.attachments() == []
    assert list(place.glob("*.json"))
    records.clear_stale()
    assert not list(place.glob("*.json"))


@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"kind": 3}'])
def test_what_is_no_record_is_passed_over(place: Path, text: str) -> None:
    records.make_directory()
    (place / "nbd9.json").write_text(text)
    assert records.attachments() == []


@pytest.mark.usefixtures("connected")
def test_fields_of_a_newer_version_are_passed_over(place: Path) -> None:
    records.make_directory()
    records.save(MINE)
    path = place / "nbd3.json"
    path.write_text(path.read_text().replace('{"kind"', '{"colour": "red", "kind"'))
    assert records.attachments() == [MINE]


def test_processes_are_told_by_when_they_started() -> None:
    assert MINE.is_kept
    assert not replace(MINE, started=1).is_kept
    assert records.start_time(0) == 0


def test_a_directory_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "records").symlink_to(tmp_path)
    with pytest.raises(AttachFailed):
        records.make_directory()


@pytest.mark.usefixtures("connected")
def test_records_that_somebody_else_could_have_made_are_not_believed(place: Path) -> None:
    records.make_directory()
    records.save(MINE)
    assert records.attachments() == [MINE]
    for mode in (0o775, 0o757):
        place.chmod(mode)
        assert records.attachments() == []
        with pytest.raises(AttachFailed, match="can be written by others"):
            records.make_directory()
    place.chmod(0o755)
    assert records.attachments() == [MINE]
    place.rename(place.with_name("elsewhere"))
    place.symlink_to(place.with_name("elsewhere"))
    assert records.attachments() == []


@pytest.mark.usefixtures("connected")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_nor_are_another_user_s(place: Path) -> None:
    records.make_directory()
    records.save(MINE)
    os.chown(place, 4711, -1)
    assert records.attachments() == []


def test_another_command_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    with records.locked():
        monkeypatch.setattr(records, "LOCK_SECONDS", 0.05)
        with pytest.raises(AttachFailed, match="another attach or detach"), records.locked():
            pytest.fail("it was let in")
    with records.locked():
        pass
