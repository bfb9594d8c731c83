"""Many requests at once to the same blocks of a volume and of its snapshot.

A *generation*: a snapshot is taken, and connections to both volumes write disjoint pieces of the
same few blocks, until both have broken the sharing of all of them; meanwhile others read, commits
follow one another, snapshots of both are taken, and deleted. Then every sector is compared.

All requests go out from one thread; what runs side by side is in the daemon. What is drawn is a
function of the seed, but for the order in which answers come.

Invariants:
1. A connection is closed when all its requests are answered.
2. What an administrator's verb changes is known before the next request is drawn.

Thread-safety: none; one thread.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.oracle.pieces import Clock, Finding, Pieces, Wrong
from tests.oracle.stamps import SECTOR, filled, stamp
from tests.support import admin
from tests.support.admin import Admin
from tests.support.client import FUA, NO_HOLE
from tests.support.inflight import InflightClient, Pump
from tests.support.rpc import Rpc
from tests.support.served import Served

PIECE = 8
"""Sectors of most writes: 4 KiB."""

MOST_IDLE = 4
# What is read, or written, at once.
_LARGEST = 2048


@dataclass(frozen=True)
class Shape:
    """What a load looks like. Block 0 is never written: reading it has the table filled."""

    block_sectors: int
    hot_blocks: int
    connections: int = 4
    depth: int = 3
    # Requests for each hot block, of all connections, before the load moves on.
    requests_each: int = 40
    # How many blocks are written at a time.
    width: int = 2

    @property
    def blocks(self) -> int:
        return self.hot_blocks + 4

    @property
    def sectors(self) -> int:
        return self.blocks * self.block_sectors


@dataclass
class Member:
    """A volume that is being written, by all its connections."""

    pieces: Pieces
    clients: list[InflightClient]


@dataclass
class Counts:
    """What was done, and found."""

    generations: int = 0
    writes: int = 0
    reads: int = 0
    verbs: dict[str, int] = field(default_factory=dict)


class Load:
    """The volumes of one pool and who works on them."""

    def __init__(self, pool: Served, seed: int, shape: Shape) -> None:
        self.pool = pool
        self.shape = shape
        self.rng = random.Random(seed)
        self.clock = Clock()
        self.pump = Pump()
        self.counts = Counts()
        self.findings: list[Finding] = []
        # Those without clients, which an administrator may delete at any time.
        self.idle: dict[str, Pieces] = {}
        self._writers = 0
        self._focus, self._step = 0, 1
        self._ahead: Member | None = None
        # Two connections: one commits, one does all else.
        self._committer = pool.rpc()
        self._commit: int | None = None
        self._changer = pool.rpc()
        self._verb: tuple[int, Callable[[], None]] | None = None
        self.main = self._create()

    # --- volumes --------------------------------------------------------------------------------

    def _named(self) -> tuple[str, int]:
        self._writers += 1
        return f"v{self._writers}", self._writers

    def _create(self) -> Member:
        name, writer = self._named()
        Admin(self._changer).do(admin.create(name, self.shape.sectors * SECTOR))
        member = self._open(Pieces(name, writer, self.shape.sectors, self.clock))
        size = self.shape.block_sectors
        for first in range(size, (self.shape.blocks - 1) * size, _LARGEST):
            count = min(_LARGEST, (self.shape.blocks - 1) * size - first)
            self._write(member, member.clients[0], first, count, 0)
        self.pump.drain()
        return member

    def _open(self, pieces: Pieces) -> Member:
        clients = [
            InflightClient(self.pool.socket, pieces.name) for _ in range(self.shape.connections)
        ]
        self.pump.clients += clients
        return Member(pieces, clients)

    def _close(self, member: Member) -> None:
        for client in member.clients:
            self.pump.clients.remove(client)
            client.close()
        Admin(self._changer).await_released(member.pieces.name)

    def close(self) -> None:
        """Let go of everything, whatever the daemon does."""
        for client in self.pump.clients:
            if not client.waiting and not client.dead:
                client.close()
            client.raw = None
        self.pump.clients.clear()
        self._committer.close()
        self._changer.close()

    # --- a generation ---------------------------------------------------------------------------

    def generation(self) -> None:
        """One generation. Raises `Wrong`."""
        snap = self._snapshot_of(self.main)
        both = [self.main, snap]
        self._draw_way(both)
        for number in range(1, self.shape.hot_blocks + 1):
            self._focus = number if self._step > 0 else self.shape.hot_blocks + 1 - number
            self._run(both)
        self._finish()
        for member in both:
            member.pieces.settle()
        self._compare(both)
        self._part(snap)
        self.counts.generations += 1

    def _draw_way(self, both: list[Member]) -> None:
        """Up or down, side by side or one ahead: who follows finds blocks that are its alone."""
        self._step = self.rng.choice([1, -1])
        self._ahead = self.rng.choice([None, *both])

    def _block(self, member: Member) -> int:
        """A block that the member writes now."""
        away = self.rng.randrange(self.shape.width)
        if self._ahead is not None and member is not self._ahead:
            away -= 1
        return min(max(self._focus + away * self._step, 1), self.shape.hot_blocks)

    def _run(self, members: list[Member]) -> None:
        """The requests of one focus; what is under way in the end stays so."""
        shape, rng = self.shape, self.rng
        connections = [(one, client) for one in members for client in one.clients]
        left = shape.requests_each
        if rng.random() < 0.15:
            self._change(members)
        while left > 0:
            rng.shuffle(connections)
            for member, client in connections:
                while client.waiting < shape.depth and left > 0:
                    self._request(member, client)
                    left -= 1
            self._turn()
        self._raise()

    def _turn(self) -> None:
        """Take what is answered, waiting for something, and keep commits going."""
        if self._commit is None:
            self._commit = self._committer.send("commit")
        others = [self._committer.fileno()]
        if self._verb is not None:
            others.append(self._changer.fileno())
        ready = self.pump.turn(*others)
        if self._committer.fileno() in ready:
            self._committer.finish(self._commit)
            self._commit = None
        if self._verb is not None and self._changer.fileno() in ready:
            self._end_verb()

    def _finish(self) -> None:
        """Until everything is answered."""
        self.pump.drain()
        if self._verb is not None:
            self._end_verb()
        if self._commit is not None:
            self._committer.finish(self._commit)
            self._commit = None
        self._raise()

    def _raise(self) -> None:
        if self.findings:
            raise Wrong(self.findings)

    # --- an administrator's verbs ---------------------------------------------------------------

    def _count(self, verb: str) -> None:
        self.counts.verbs[verb] = self.counts.verbs.get(verb, 0) + 1

    def _ask(self, call: admin.Call, done: Callable[[], None]) -> None:
        method, params = call
        self._count(method)
        self._verb = (self._changer.send(method, **params), done)

    def _end_verb(self) -> None:
        assert self._verb is not None
        serial, done = self._verb
        self._changer.finish(serial)
        self._verb = None
        done()

    def _change(self, members: list[Member]) -> None:
        """Snapshot all at one instant, or delete what nobody has open; at their own pace."""
        if self._verb is not None:
            return
        if len(self.idle) < MOST_IDLE and self.rng.random() < 0.5:
            since = self.clock.now
            made = [(member.pieces, *self._named()) for member in members]

            def snapshots() -> None:
                for pieces, name, writer in made:
                    self.idle[name] = pieces.snapshot(name, writer, since)

            self._ask(admin.snapshot([(pieces.name, name) for pieces, name, _ in made]), snapshots)
        elif self.idle:
            name = self.rng.choice(sorted(self.idle))
            del self.idle[name]
            self._ask(admin.delete(name), lambda: None)

    def _snapshot_of(self, member: Member) -> Member:
        name, writer = self._named()
        Admin(self._changer).do(admin.snapshot([(member.pieces.name, name)]))
        self._count("snapshot")
        return self._open(member.pieces.snapshot(name, writer, self.clock.now))

    def _part(self, snap: Member) -> None:
        """The end of a generation: one of the two stays, perhaps rolled back."""
        rng = self.rng
        if rng.random() < 0.2:
            self.main, snap = snap, self.main
        self._close(snap)
        self.idle[snap.pieces.name] = snap.pieces
        if rng.random() < 0.15:
            self._roll_back(rng.choice(sorted(self.idle)))
        while len(self.idle) > MOST_IDLE + 1:
            name = rng.choice(sorted(self.idle))
            del self.idle[name]
            Admin(self._changer).do(admin.delete(name))
            self._count("delete")

    def _roll_back(self, to: str) -> None:
        pieces = self.main.pieces
        self._close(self.main)
        discard = self.rng.random() < 0.5
        call = admin.rollback(pieces.name, to, discard=discard)
        kept = Admin(self._changer).do(call)["kept"]
        self._count("rollback")
        if kept is not None:
            _, writer = self._named()
            self.idle[kept] = pieces.snapshot(kept, writer, self.clock.now)
        pieces.inherit(self.idle[to], self.clock.now)
        self.main = self._open(pieces)

    # --- requests -------------------------------------------------------------------------------

    def _request(self, member: Member, client: InflightClient) -> None:
        rng, shape = self.rng, self.shape
        kind = rng.random()
        size = shape.block_sectors
        block = self._block(member)
        if kind < 0.62:
            count, step = (PIECE, PIECE) if kind < 0.5 else (1, 1)
            first = block * size + rng.randrange(size // step) * step
            flags = FUA if rng.random() < 0.03 else 0
            if self._try(member, client, first, count, flags):
                return
        elif kind < 0.70:
            # Over the end of a block, into the next; one of them may not have been come to yet.
            first = (max(block, 2) + rng.randrange(2)) * size - rng.randrange(
                1, 64 // PIECE + 1
            ) * PIECE
            if self._try(member, client, first, rng.randrange(2, 17) * PIECE, 0):
                return
        elif kind < 0.72:
            first = block * size + rng.randrange(size // PIECE) * PIECE
            if member.pieces.is_free(first, PIECE):
                self._zero(member, client, first, PIECE, NO_HOLE if rng.random() < 0.5 else 0)
                return
        elif kind < 0.74:
            # A whole block, of those that are written now or of those behind.
            block = rng.choice([block, rng.randrange(1, shape.hot_blocks + 1)])
            if member.pieces.is_free(block * size, size):
                self._whole(member, client, block * size)
                return
        elif kind < 0.76:
            client.flush(self._flushed)
            return
        elif kind < 0.88:
            self._read(member, client, rng.choice([0, 0, shape.blocks - 2]) * size, PIECE)
            return
        count = rng.choice([1, PIECE, PIECE, min(size, 128)])
        self._read(member, client, block * size + rng.randrange(size - count + 1), count)

    def _try(
        self, member: Member, client: InflightClient, first: int, count: int, flags: int
    ) -> bool:
        count = min(count, self.shape.sectors - first)
        if not member.pieces.is_free(first, count):
            return False
        self._write(member, client, first, count, flags)
        return True

    def _whole(self, member: Member, client: InflightClient, first: int) -> None:
        size = self.shape.block_sectors
        kind = self.rng.randrange(4)
        if kind == 0:
            self._write(member, client, first, min(size, _LARGEST), 0)
        elif kind == 3:
            member.pieces.begin(first, [0] * size)
            client.trim(first * SECTOR, size * SECTOR, 0, self._written(member, first, size))
        else:
            self._zero(member, client, first, size, NO_HOLE if kind == 1 else 0)

    def _write(
        self, member: Member, client: InflightClient, first: int, count: int, flags: int
    ) -> None:
        pieces, serial = member.pieces, self.clock.tick()
        values = [stamp(pieces.writer, first + n, serial) for n in range(count)]
        pieces.begin(first, values)
        data = b"".join(map(filled, values))
        client.write(first * SECTOR, data, flags, self._written(member, first, count))

    def _zero(
        self, member: Member, client: InflightClient, first: int, count: int, flags: int
    ) -> None:
        member.pieces.begin(first, [0] * count)
        done = self._written(member, first, count)
        client.zero(first * SECTOR, count * SECTOR, flags, done)

    def _written(self, member: Member, first: int, count: int) -> Callable[[int], None]:
        def done(error: int) -> None:
            _check(error, "a write", member)
            member.pieces.end(first, count)
            self.counts.writes += 1

        return done

    def _read(
        self, member: Member, client: InflightClient, first: int, count: int, when: str = "read"
    ) -> None:
        pieces, since = member.pieces, self.clock.now

        def done(error: int, data: bytes) -> None:
            _check(error, "a read", member)
            self.findings += pieces.judge(first, data, since, when)
            self.counts.reads += 1

        client.read(first * SECTOR, count * SECTOR, done)

    def _flushed(self, error: int) -> None:
        assert not error, f"a flush failed with errno {error}"

    # --- comparing ------------------------------------------------------------------------------

    def _compare(self, members: list[Member]) -> None:
        """Every sector of the members, and of one snapshot that nobody has open."""
        looked = list(members)
        if self.idle:
            looked.append(self._open(self.idle[self.rng.choice(sorted(self.idle))]))
        self._look_through(looked)
        if len(looked) > len(members):
            self._close(looked[-1])
        self._raise()

    def compare_all(self) -> None:
        """Every sector of every volume. Raises `Wrong`."""
        self._look_through([self.main])
        for pieces in self.idle.values():
            member = self._open(pieces)
            self._look_through([member])
            self._close(member)
        self._raise()

    def _look_through(self, members: list[Member]) -> None:
        for member in members:
            for first in range(0, self.shape.sectors, _LARGEST):
                count = min(_LARGEST, self.shape.sectors - first)
                client = self.rng.choice(member.clients)
                self._read(member, client, first, count, "all compared")
        self.pump.drain()


def _check(error: int, what: str, member: Member) -> None:
    assert not error, f"{what} of {member.pieces.name} failed with errno {error}"


__all__ = ["Counts", "Load", "Rpc", "Shape"]
