"""What a client did to a pool, when, and what a pool may hold that was cut off at some moment.

Times are positions in the recorder's log. The client is one thread, so its steps follow each other.
Contents are numbers, one for each sector: 0 is zeros, any other number is of the write that put it
there.

    a flush, or a verb, has returned      all that was done before is there
    a write with FUA has returned         it is there
    anything else                         each sector is old or new, by itself
    a verb under way                      all of it or nothing

Thread-safety: none; one thread.
"""

import struct
from dataclasses import dataclass, field

SECTOR = 512
_STAMP = struct.Struct("<QQ")


class Lost(Exception):  # noqa: N818 - what a pool did
    """A promise was broken."""


def stamped(number: int, first: int, count: int) -> bytes:
    """`count` sectors from sector `first` on, as the write with this number leaves them."""
    return b"".join(
        _STAMP.pack(number, sector) * (SECTOR // _STAMP.size)
        for sector in range(first, first + count)
    )


def stamps(octets: bytes) -> list[int]:
    """The number in each sector. Raises `Lost` for one that nobody wrote."""
    found = []
    for at in range(0, len(octets), SECTOR):
        sector = octets[at : at + SECTOR]
        number, place = _STAMP.unpack_from(sector)
        if sector == bytes(SECTOR):
            number = 0
        elif sector != stamped(number, at // SECTOR, 1) or place * SECTOR != at:
            raise Lost(f"sector {at // SECTOR} holds what was never written there: {sector[:32]!r}")
        found.append(number)
    return found


@dataclass
class Step:
    """One thing that the client did, and when; `end` is None while nobody answered."""

    begin: int
    end: int = 0


@dataclass
class Write(Step):
    """`count` sectors of a volume become `number`: 0 for a trim. `durably`: before the answer."""

    volume: str = ""
    first: int = 0
    count: int = 0
    number: int = 0
    durably: bool = False


@dataclass
class Flush(Step):
    """Of any volume, as a commit takes in all of them."""


@dataclass
class Verb(Step):
    """Volumes come, go, or become what others are: name -> whose content it gets, or None."""

    becomes: dict[str, str | None] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)


@dataclass
class Volume:
    """What a volume holds now, and, where that differs, what else a sector may hold."""

    now: list[int]
    maybe: dict[int, set[int]] = field(default_factory=dict)

    def complaint(self, found: list[int]) -> str | None:
        if len(found) != len(self.now):
            return f"has {len(found)} sectors, not {len(self.now)}"
        for sector, (number, expected) in enumerate(zip(found, self.now, strict=True)):
            if number != expected and number not in self.maybe.get(sector, ()):
                others = sorted(self.maybe.get(sector, ()))
                return f"sector {sector} holds {number}, not {expected} nor any of {others}"
        return None


Volumes = dict[str, Volume]


@dataclass
class History:
    """All steps, in their order."""

    steps: list[Step] = field(default_factory=list)

    def possible(self, cut: int) -> list[Volumes]:
        """What the pool may hold when the power went at `cut`: one, or two while a verb ran."""
        volumes: Volumes = {}
        for step in self.steps:
            if step.begin > cut:
                break
            answered = step.end <= cut
            if isinstance(step, Write):
                _write(volumes[step.volume], step, answered=answered)
            elif answered:
                for volume in volumes.values():
                    volume.maybe.clear()
                if isinstance(step, Verb):
                    volumes = _done(volumes, step)
            elif isinstance(step, Verb):
                return [volumes, _done(volumes, step)]
        return [volumes]


def _write(volume: Volume, step: Write, *, answered: bool) -> None:
    for sector in range(step.first, step.first + step.count):
        if step.durably and answered:
            volume.maybe.pop(sector, None)
        else:
            volume.maybe.setdefault(sector, set()).add(volume.now[sector])
        volume.now[sector] = step.number


def _done(volumes: Volumes, step: Verb) -> Volumes:
    """The pool after a verb; what it copies is of one instant, with all that came before."""
    after = dict(volumes)
    for name, origin in step.becomes.items():
        if origin is None:
            del after[name]
        elif origin:
            after[name] = Volume(list(volumes[origin].now))
        else:
            after[name] = Volume([0] * step.sizes[name])
    return after


def judge(possible: list[Volumes], found: dict[str, list[int]]) -> None:
    """Raise `Lost` unless what a pool holds is possible."""
    complaints = []
    for volumes in possible:
        told = _complaint(volumes, found)
        if told is None:
            return
        complaints.append(told)
    raise Lost("; or ".join(complaints))


def _complaint(volumes: Volumes, found: dict[str, list[int]]) -> str | None:
    if volumes.keys() != found.keys():
        return f"volumes {sorted(found)}, not {sorted(volumes)}"
    for name, volume in volumes.items():
        told = volume.complaint(found[name])
        if told is not None:
            return f"{name}: {told}"
    return None
