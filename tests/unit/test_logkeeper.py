"""What becomes of a daemon's lines on their way to its log."""

import os
import re
import threading
from pathlib import Path

import pytest

from thinpoold.logkeeper import (
    MAX_ENTRY,
    MAX_LINE,
    WINDOW,
    Bucket,
    Condenser,
    Log,
    introduction,
    keep,
)

STAMP = "2026-12-01 03:38:21,123 "
REFUSED = "nbdkit: python[7]: error: invalid request: NBD_CMD_WRITE: write request on readonly"


def taken(condenser: Condenser, *lines: str, now: float = 0.0) -> list[str]:
    return [entry for line in lines for entry in condenser.take(line.encode(), now)]


def test_what_is_alike_is_written_once_and_counted() -> None:
    condenser = Condenser()
    assert len(taken(condenser, *[REFUSED] * 1000)) == 1
    assert list(condenser.count(WINDOW - 1)) == []
    (counted,) = condenser.count(WINDOW)
    assert counted.endswith("(999 more like it in 60 s)")
    # It was silent for as long again: the next is the first once more.
    assert list(condenser.count(2 * WINDOW)) == []
    assert not condenser.waits
    assert len(taken(condenser, REFUSED, now=2 * WINDOW)) == 1


def test_counted_at_the_end_as_well() -> None:
    condenser = Condenser()
    taken(condenser, *[REFUSED] * 3)
    (counted,) = condenser.count(1.0, last=True)
    assert "(2 more like it in 1 s)" in counted


@pytest.mark.parametrize(
    "form",
    [
        "nbdkit: python[7]: error: invalid request: out of range: offset={} count=512",
        "nbdkit: python[7]: error: /x/thinpool.py: pwrite: error: me: write of 512 bytes at {}: no",
        "nbdkit: python[7]: error: /x/thinpool.py: pread: error: me: read of {} bytes at 0: no",
    ],
)
def test_offsets_and_counts_make_no_difference(form: str) -> None:
    condenser = Condenser()
    assert len(taken(condenser, *(form.format(at) for at in range(0, 51200, 512)))) == 1


def test_volumes_and_clients_do() -> None:
    condenser = Condenser()
    for number, who in ((1, "volume 'a1', me"), (2, "volume 'a2', me"), (3, "volume 'a1', you")):
        said = f"nbdkit: python[{number}]: error: {introduction(who)}"
        assert taken(condenser, said) == []
    entries = taken(condenser, *(REFUSED.replace("[7]", f"[{at}]") for at in (1, 2, 3, 1, 2, 3)))
    assert [entry.split(": invalid")[0] for entry in entries] == [
        "nbdkit: volume 'a1', me",
        "nbdkit: volume 'a2', me",
        "nbdkit: volume 'a1', you",
    ]


def test_who_was_never_introduced_has_opened_nothing() -> None:
    assert "a client that has opened no volume: invalid" in taken(Condenser(), REFUSED)[0]


def test_the_plugins_line_loses_what_says_nothing() -> None:
    said = "nbdkit: python[7]: error: /a/thinpool.py: open: error: me: no volume 'b'"
    assert taken(Condenser(), said) == ["nbdkit: open: me: no volume 'b'"]


def test_a_client_that_varies_what_it_does_is_bounded_and_crowds_nobody_out() -> None:
    condenser = Condenser()
    form = "nbdkit: python[7]: error: /a/thinpool.py: open: error: me: no volume 'x{}'"
    written = taken(condenser, *(form.format(at) for at in range(5000)))
    assert len(written) == 200
    own = f"{STAMP}thinpoold: ERROR: pool mode: write -> read-only: Input/output error"
    assert taken(condenser, own) == [own]
    assert "thinpoold: 4800 other messages of nbdkit left out" in list(condenser.count(WINDOW))


def test_the_daemons_own_are_written_some_times() -> None:
    condenser = Condenser()
    own = "thinpoold: ERROR: pool mode: write -> out-of-data-space"
    lines = [f"2026-12-01 03:38:2{at},000 {own}" for at in range(8)]
    assert taken(condenser, *lines) == lines[:5]
    assert list(condenser.count(WINDOW)) == [f"{own} (3 more like it in 60 s)"]


def test_lines_go_with_their_message() -> None:
    condenser = Condenser()
    bug = f"{STAMP}thinpoold: ERROR: a request failed, which is a bug: KeyError('x')"
    trace = ["Traceback (most recent call last):", '  File "x.py", line 1, in f', "KeyError: 'x'"]
    assert taken(condenser, bug, *trace, "") == [bug, *("    " + line for line in trace)]
    taken(condenser, *[bug] * 4)
    # Counted with it; what does not tell that it belongs there is bounded by itself.
    assert taken(condenser, bug, trace[1]) == []


def test_words_without_a_head_are_not_lost() -> None:
    said = ["Exception in thread x:", '  File "x.py", line 1', "Fatal Python error: Aborted"]
    written = taken(Condenser(), *said)
    assert [entry.strip() for entry in written] == [entry.strip() for entry in said]


def test_neither_lines_nor_messages_are_without_end() -> None:
    condenser = Condenser()
    (line,) = taken(condenser, "nbdkit: error: " + "x" * 100000)
    assert len(line) == MAX_LINE
    written = taken(condenser, *(f" {at} {'y' * 1000}" for at in range(1000)))
    assert sum(map(len, written)) < MAX_ENTRY + 2 * MAX_LINE


def test_nobody_controls_a_terminal() -> None:
    assert taken(Condenser(), "nbdkit: error: \x1b[2J\x07\u202e") == ["nbdkit: error: ?[2J??"]
    assert list(Condenser().take(b"nbdkit: error: \xff\xfe", 0.0))


def test_a_bucket_fills_again() -> None:
    bucket = Bucket(2, 0.5)
    assert [bucket.takes(0.0) for _ in range(3)] == [True, True, False]
    assert [bucket.takes(now) for now in (1.0, 2.0, 2.0, 100.0, 100.0, 100.0)] == [
        *(False, True, False),
        *(True, True, False),
    ]


# --- the file -------------------------------------------------------------------------------------


def kept(log: Log, *pieces: bytes, raw: bool = False) -> None:
    """Has `keep` read these pieces, as a daemon would write them."""
    pipe, end = os.pipe()
    thread = threading.Thread(target=keep, args=(pipe, log, None if raw else Condenser()))
    thread.start()
    for piece in pieces:
        os.write(end, piece)
    os.close(end)
    thread.join()
    os.close(pipe)


def test_the_log_is_bounded_while_it_is_kept(tmp_path: Path) -> None:
    path, old = tmp_path / "log", tmp_path / "log.1"
    log = Log(str(path), str(old), most=10000)
    for at in range(200):
        log.write([f"thinpoold: {at} {'x' * 200}"])
        assert path.stat().st_size <= 10000
    assert old.stat().st_size <= 10000
    assert sorted(os.listdir(tmp_path)) == ["log", "log.1"]
    # None is lost between the two.
    numbers = [int(line.split()[3]) for one in (old, path) for line in one.read_text().splitlines()]
    assert numbers == list(range(numbers[0], 200))


def test_a_log_that_was_moved_away_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = Log(str(path), str(tmp_path / "log.1"))
    log.write(["thinpoold: one"])
    path.rename(tmp_path / "mine")
    log.write(["thinpoold: two"])
    assert path.read_text().endswith("thinpoold: two\n")
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("spoil", ["link", "directory gone"])
def test_a_log_that_cannot_be_written_ends_nothing(tmp_path: Path, spoil: str) -> None:
    path = tmp_path / "log"
    if spoil == "link":
        path.symlink_to(tmp_path / "other")
    else:
        path = tmp_path / "none" / "log"
    kept(Log(str(path), str(tmp_path / "log.1")), b"nbdkit: error: x\n")
    assert not (tmp_path / "other").exists()


def test_every_entry_has_its_time_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    kept(Log(str(path), ""), b"nbdkit: error: a\n  more\n", f"{STAMP}thinpoold: INFO: b".encode())
    first, second, third = path.read_text().splitlines()
    assert re.fullmatch(r"[-\d]{10} [:\d]{8},\d{3} nbdkit: error: a", first)
    assert second == "      more"
    assert third == f"{STAMP}thinpoold: INFO: b"


def test_lines_come_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "log"
    kept(Log(str(path), ""), b"nbdkit: err", b"or: one\nnbdk", b"it: error: two\n", b"thinpoold: 3")
    said = [line.split(" ", 2)[2] for line in path.read_text().splitlines()]
    assert said == ["nbdkit: error: one", "nbdkit: error: two", "thinpoold: 3"]


def test_all_of_it_for_who_looks_for_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "log"
    kept(Log(str(path), ""), b"nbdkit: debug: a\n" * 50, raw=True)
    assert len(path.read_text().splitlines()) == 50
