"""What each sector of a volume may hold, while many requests of many connections are under way.

Invariants:
1. A sector has one writer at a time: `begin` refuses a second. So what was answered last is there.
2. A read may see what a sector held when the read was asked for, and whatever was asked for since,
   answered or not, or some bytes of each; nothing older, and nothing of another volume.
3. A snapshot is like a read of every sector, between its request and its answer: where that leaves
   a choice the first read makes it, and it stays.

Thread-safety: none; one thread.
"""

# An outcome, not always an error.
# ruff: noqa: N818

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.oracle.stamps import (
    SECTOR,
    described,
    filled,
    is_mixed,
    sector_of,
    serial_of,
    value_of,
    values_of,
    writer_of,
)

Values = tuple[int, ...]

_ZERO: Values = (0,)


@dataclass(frozen=True)
class Finding:
    """A sector that holds what it must not: an older write (lost) or somebody else's (crossed)."""

    kind: str
    volume: str
    sector: int
    seen: str
    may: str
    when: str

    def __str__(self) -> str:
        return (
            f"{self.kind}: {self.volume} sector {self.sector}, {self.when}: "
            f"{self.seen}; it may hold {self.may}"
        )


class Wrong(AssertionError):
    """What the daemon served was not what it had answered."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        shown = [str(one) for one in findings[:10]]
        if len(findings) > len(shown):
            shown.append(f"and {len(findings) - len(shown)} more")
        super().__init__("\n".join(shown))
        self.findings = list(findings)

    def count(self, kind: str) -> int:
        return sum(one.kind == kind for one in self.findings)


class Clock:
    """Orders requests and answers; the serials of writes are its times."""

    def __init__(self) -> None:
        self.now = 0

    def tick(self) -> int:
        self.now += 1
        return self.now


class Pieces:
    """The sectors of one volume, which stamps what it writes with `writer`."""

    def __init__(self, name: str, writer: int, sectors: int, clock: Clock) -> None:
        self.name = name
        self.writer = writer
        self.sectors = sectors
        self.clock = clock
        # What it holds when nothing is under way; what is being written, or None.
        self._rest: list[Values] = [_ZERO] * sectors
        self._coming: list[int | None] = [None] * sectors
        # What it held before, and when an answer made that outdated.
        self._past: dict[int, list[tuple[int, Values]]] = {}
        # Whose writes it may show, and up to which serial: its own, and its origins'.
        self._heirs: dict[int, int] = {writer: 1 << 32}

    # --- writing --------------------------------------------------------------------------------

    def is_free(self, first: int, count: int) -> bool:
        """Whether nobody is writing any of these sectors."""
        return all(one is None for one in self._coming[first : first + count])

    def begin(self, first: int, values: Sequence[int]) -> None:
        """A request to write these values, or zeroes, from sector `first` on is being sent."""
        assert self.is_free(first, len(values)), "two writers"
        self._coming[first : first + len(values)] = values

    def end(self, first: int, count: int) -> None:
        """It was answered."""
        now = self.clock.tick()
        for sector in range(first, first + count):
            value = self._coming[sector]
            assert value is not None
            self._past.setdefault(sector, []).append((now, self._rest[sector]))
            self._rest[sector] = (value,)
            self._coming[sector] = None

    def settle(self) -> None:
        """Nothing is under way: what was before matters no more."""
        self._past.clear()

    # --- reading --------------------------------------------------------------------------------

    def allowed(self, sector: int, since: int) -> Values:
        """What the sector may hold for a request sent at `since`, and answered now."""
        coming = self._coming[sector]
        past = self._past.get(sector)
        if coming is None and past is None:
            return self._rest[sector]
        found = list(self._rest[sector])
        if coming is not None:
            found.append(coming)
        for when, values in past or ():
            if when > since:
                found += values
        return tuple(dict.fromkeys(found))

    def judge(self, first: int, data: bytes, since: int, when: str) -> list[Finding]:
        """What is wrong with `data`, read from sector `first` on by a request sent at `since`."""
        findings = []
        for at in range(0, len(data), SECTOR):
            sector = first + at // SECTOR
            may = self.allowed(sector, since)
            whole = data[at : at + SECTOR]
            value = value_of(whole)
            if value in may and whole == filled(value):
                if len(may) > 1 and not self._races(sector, since):
                    self._rest[sector] = (value,)
            elif not (self._races(sector, since) and is_mixed(whole, may)):
                findings.append(self._finding(sector, values_of(whole), may, when))
        return findings

    def _races(self, sector: int, since: int) -> bool:
        """Whether a request sent at `since`, and answered now, was under way beside a write."""
        past = self._past.get(sector, ())
        return self._coming[sector] is not None or any(when > since for when, _ in past)

    def _finding(self, sector: int, seen: Iterable[int], may: Values, when: str) -> Finding:
        kind = "lost" if all(self._is_older(sector, value) for value in seen) else "crossed"
        return Finding(
            kind,
            self.name,
            sector,
            ", ".join(map(described, sorted(seen))),
            " or ".join(map(described, may)),
            when,
        )

    def _is_older(self, sector: int, value: int) -> bool:
        """Whether the sector may have held this once."""
        if not value:
            return True
        last = self._heirs.get(writer_of(value), 0)
        return sector_of(value) == sector and serial_of(value) <= last

    # --- copies ---------------------------------------------------------------------------------

    def snapshot(self, name: str, writer: int, since: int) -> Pieces:
        """A snapshot that was asked for at `since` and has been answered now."""
        copy = Pieces(name, writer, self.sectors, self.clock)
        copy.inherit(self, since)
        return copy

    def inherit(self, other: Pieces, since: int) -> None:
        """Become what `other` was at an instant between `since` and now."""
        self._rest = [other.allowed(sector, since) for sector in range(other.sectors)]
        self._past.clear()
        now = self.clock.now
        for writer, last in other._heirs.items():
            self._heirs[writer] = max(self._heirs.get(writer, 0), min(last, now))
