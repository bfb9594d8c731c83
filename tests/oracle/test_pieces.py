"""The oracle's own judgement: silent about all that may be, loud about all that must not."""

from tests.oracle.pieces import Clock, Finding, Pieces
from tests.oracle.stamps import SECTOR, filled, stamp, value_of

SECTORS = 8


class Written:
    """A volume whose sector 3 holds a first write, by now answered."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.pieces = Pieces("v", 1, SECTORS, self.clock)
        self.first = self.write()
        self.pieces.end(3, 1)

    def write(self) -> int:
        value = stamp(1, 3, self.clock.tick())
        self.pieces.begin(3, [value])
        return value

    def read(self, value: int, since: int | None = None) -> list[Finding]:
        asked = self.clock.now if since is None else since
        return self.pieces.judge(3, filled(value), asked, "read")


def test_what_was_answered_last_must_be_there() -> None:
    written = Written()
    assert written.read(written.first) == []
    second = written.write()
    written.pieces.end(3, 1)
    assert written.read(second) == []
    assert [one.kind for one in written.read(written.first)] == ["lost"]
    assert [one.kind for one in written.read(0)] == ["lost"]


def test_what_is_under_way_may_be_there() -> None:
    written = Written()
    since = written.clock.now
    second = written.write()
    assert written.read(second) == written.read(written.first) == []
    written.pieces.end(3, 1)
    # Of one that was asked for before.
    assert written.read(written.first, since) == []
    assert written.read(0, since) != []


def test_a_read_that_races_with_a_write_may_see_some_of_it() -> None:
    written = Written()
    second = written.write()
    mixed = filled(written.first)[: SECTOR // 2] + filled(second)[SECTOR // 2 :]
    assert written.pieces.judge(3, mixed, written.clock.now, "read") == []
    written.pieces.end(3, 1)
    assert written.pieces.judge(3, mixed, written.clock.now, "read") != []


def test_a_race_within_a_stamp_is_no_other_write() -> None:
    """Two serials mixed byte by byte are the serial of a third, but the digests are mixed, too."""
    first, third, second = (stamp(1, 3, serial) for serial in (0x10F4, 0x1104, 0x11F4))
    clock = Clock()
    clock.now = 0x2000
    pieces = Pieces("v", 1, SECTORS, clock)
    pieces.begin(3, [first])
    pieces.end(3, 1)
    since = clock.now
    pieces.begin(3, [third])
    old, new = filled(first), filled(third)
    mixed = old[:1] + new[1:]
    assert value_of(mixed) == second
    assert pieces.judge(3, mixed, since, "read") == []
    assert [one.kind for one in pieces.judge(3, filled(second), since, "read")] == ["lost"]
    pieces.end(3, 1)
    # Of one that was asked for when all was answered.
    assert [one.kind for one in pieces.judge(3, mixed, clock.now, "read")] == ["lost"]


def test_what_another_wrote_must_not_be_there() -> None:
    written = Written()
    now = written.clock.tick()
    for value in (stamp(2, 3, now), stamp(1, 4, 1)):
        assert [one.kind for one in written.read(value)] == ["crossed"]


def test_a_snapshot_holds_what_was_answered_before_and_perhaps_what_was_under_way() -> None:
    written = Written()
    second = written.write()
    snap = written.pieces.snapshot("s", 2, written.clock.now)
    other = written.pieces.snapshot("t", 3, written.clock.now)
    written.pieces.end(3, 1)
    now = written.clock.now
    assert snap.judge(3, filled(0), now, "read") != []
    # The first read settles it.
    assert snap.judge(3, filled(second), now, "read") == []
    assert snap.judge(3, filled(written.first), now, "read") != []
    assert other.judge(3, filled(written.first), now, "read") == []
    third = written.write()
    written.pieces.end(3, 1)
    assert [one.kind for one in snap.judge(3, filled(third), now, "read")] == ["crossed"]
