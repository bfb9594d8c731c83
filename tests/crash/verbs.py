"""Admin verbs under way while the daemon may die: what each leaves when it is or is not done.

A verb that was answered is durable, and so is every write completed before it was asked: a commit
takes in everything. One that was not answered is either wholly done or not at all.

Thread-safety: none; one thread.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from tests.crash.sectors import SECTOR, Lost, VolumeStates
from tests.support import admin

Volumes = dict[str, VolumeStates]
Listed = Mapping[str, Any]


class Verb(Protocol):
    """One verb: the call, its effect on the model, and how to tell whether it was done."""

    call: admin.Call

    def done_in(self, listed: Listed) -> bool | None:
        """Whether `list` shows the verb as done; None when it cannot tell."""

    def begin(self, volumes: Volumes, since: int) -> None:
        """The verb is asked at `since`: from now on, any instant may be the one it takes."""

    def apply(self, volumes: Volumes, listed: Listed) -> None:
        """The verb was done."""

    def end(self, volumes: Volumes) -> None:
        """Done or not, it is over."""


class Plain:
    """A verb that takes no copy of anything."""

    def begin(self, volumes: Volumes, since: int) -> None:
        pass

    def end(self, volumes: Volumes) -> None:
        pass


class Copying:
    """A verb that makes copies of volumes at one instant. `copies`: origin and copy."""

    def __init__(self) -> None:
        self.copies: list[tuple[VolumeStates, VolumeStates]] = []

    def copy(self, origin: VolumeStates, name: str, since: int) -> VolumeStates:
        shadow = origin.shadow(name, since)
        self.copies.append((origin, shadow))
        return shadow

    def end(self, volumes: Volumes) -> None:
        for origin, shadow in self.copies:
            origin.unshadow(shadow)
        self.copies.clear()


class Create(Plain):
    def __init__(self, name: str, sectors: int) -> None:
        self.name, self.sectors = name, sectors
        self.call = admin.create(name, sectors * SECTOR)

    def done_in(self, listed: Listed) -> bool | None:
        return self.name in listed

    def apply(self, volumes: Volumes, listed: Listed) -> None:
        volumes[self.name] = VolumeStates(self.name, self.sectors)


class Snapshot(Copying):
    """One or several at one instant: all of them or none."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        super().__init__()
        self.pairs = pairs
        self.call = admin.snapshot(pairs)

    def done_in(self, listed: Listed) -> bool | None:
        found = [snap in listed for _, snap in self.pairs]
        if any(found) != all(found):
            raise Lost(f"half of a group snapshot is there: {self.pairs}: {found}")
        return all(found)

    def begin(self, volumes: Volumes, since: int) -> None:
        for origin, snap in self.pairs:
            self.copy(volumes[origin], snap, since)

    def apply(self, volumes: Volumes, listed: Listed) -> None:
        for _, copy in self.copies:
            volumes[copy.name] = copy


class Delete(Plain):
    def __init__(self, name: str) -> None:
        self.name = name
        self.call = admin.delete(name)

    def done_in(self, listed: Listed) -> bool | None:
        return self.name not in listed

    def apply(self, volumes: Volumes, listed: Listed) -> None:
        del volumes[self.name]


class Resize(Plain):
    def __init__(self, name: str, old: int, sectors: int) -> None:
        self.name, self.sectors = name, sectors
        self.call = admin.resize(name, sectors * SECTOR, shrink=sectors < old)

    def done_in(self, listed: Listed) -> bool | None:
        return int(listed[self.name]["size"]) == self.sectors * SECTOR

    def apply(self, volumes: Volumes, listed: Listed) -> None:
        volumes[self.name].resized(self.sectors)


class Rename(Plain):
    def __init__(self, name: str, new: str) -> None:
        self.name, self.new = name, new
        self.call = admin.rename(name, new)

    def done_in(self, listed: Listed) -> bool | None:
        return self.new in listed

    def apply(self, volumes: Volumes, listed: Listed) -> None:
        states = volumes.pop(self.name)
        states.name = self.new
        volumes[self.new] = states


class Rollback(Copying):
    """Keeps what the volume held as a snapshot whose name the pool chooses."""

    def __init__(self, name: str, snap: str, before: set[str]) -> None:
        super().__init__()
        self.name, self.snap, self.before = name, snap, before
        self.call = admin.rollback(name, snap, discard=False)

    def _kept(self, listed: Listed) -> set[str]:
        return set(listed) - self.before

    def done_in(self, listed: Listed) -> bool | None:
        return bool(self._kept(listed))

    def begin(self, volumes: Volumes, since: int) -> None:
        self.copy(volumes[self.name], "kept", since)
        self.copy(volumes[self.snap], self.name, since)

    def apply(self, volumes: Volumes, listed: Listed) -> None:
        kept = self._kept(listed)
        if len(kept) != 1:
            raise Lost(f"rollback of {self.name} kept {sorted(kept)}")
        (_, held), (_, taken) = self.copies
        held.name = kept.pop()
        volumes[held.name] = held
        volumes[self.name] = taken
