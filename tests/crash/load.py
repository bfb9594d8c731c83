"""A load that may be killed at any moment, and the memory of what it may leave.

One thread keeps requests in flight over several connections of several volumes, together with at
most one admin verb, and notes for each when it was asked and answered.

Thread-safety: none; one thread.
"""

import random
from collections.abc import Callable

from tests.crash import verbs
from tests.crash.sectors import SECTOR, Clock, Lost, Op, VolumeStates, stamped
from tests.support.admin import Admin
from tests.support.client import FUA, NO_HOLE
from tests.support.inflight import InflightClient, Pump
from tests.support.rpc import Rpc, RpcGone
from tests.support.served import Served

MOST_SECTORS = 6144
MOST_VOLUMES = 6
DEPTH = 12
BLOCK = 128  # Sectors in a data block of 64 KiB.


class Load:
    """Volumes, their connections, and what each sector may hold. One `Load` spans all rounds.

    `remembers`: the machine outlives the daemon, so what was answered is there, flushed or not.
    """

    def __init__(self, pool: Served, rng: random.Random, *, remembers: bool) -> None:
        self.pool = pool
        self.rng = rng
        self.remembers = remembers
        self.clock = Clock()
        self.volumes: verbs.Volumes = {}
        self.pump = Pump()
        self.killed = False
        self.counts: dict[str, int] = {}
        self._clients: dict[str, list[InflightClient]] = {}
        self._rpc: Rpc | None = None
        self._verb: tuple[verbs.Verb, int, int] | None = None
        self._serial = 0

    # Connections

    @property
    def rpc(self) -> Rpc:
        if self._rpc is None:
            self._rpc = self.pool.rpc()
        return self._rpc

    def _client(self, name: str) -> InflightClient:
        clients = self._clients.setdefault(name, [])
        if len(clients) < 2:
            client = InflightClient(self.pool.socket, name)
            clients.append(client)
            self.pump.clients.append(client)
            return client
        return self.rng.choice(clients)

    def _release(self, name: str) -> None:
        """Waits for a volume's requests and closes its connections."""
        clients = self._clients.pop(name, [])
        while any(client.waiting for client in clients):
            self.pump.turn()
        for client in clients:
            self.pump.clients.remove(client)
            client.close()
        if clients:
            Admin(self.rpc).await_released(name)

    # Requests

    def _note(self, kind: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1

    def _range(self, states: VolumeStates) -> range | None:
        """A range that no request in flight touches, often at the edges of blocks."""
        rng = self.rng
        kind = rng.random()
        if kind < 0.5:
            length = rng.randrange(1, 17)
        elif kind < 0.8:
            length = rng.choice([BLOCK, 2 * BLOCK, BLOCK - 1, BLOCK + 3])
        else:
            length = rng.randrange(1, 4 * BLOCK)
        length = min(length, states.sectors)
        first = rng.randrange(states.sectors - length + 1)
        if rng.random() < 0.5:
            first = min(first // BLOCK * BLOCK, states.sectors - length)
        wanted = range(first, first + length)
        return wanted if states.free(wanted) else None

    def _change(self, states: VolumeStates, where: range, op: Op, *, fua: bool) -> "Answer":
        states.begin(where, op)
        return Answer(self, states, where, op, fua)

    def submit(self) -> None:
        """Sends one request, unless the draw falls on a range that is busy."""
        rng = self.rng
        name = rng.choice(sorted(self.volumes))
        states = self.volumes[name]
        kind = rng.choices(["write", "read", "zero", "trim", "flush"], [60, 12, 8, 12, 4])[0]
        if kind == "flush":
            self._flush(name)
            return
        where = self._range(states)
        if where is None:
            return
        client = self._client(name)
        self._note(kind)
        offset, count = where.start * SECTOR, len(where) * SECTOR
        fua = rng.random() < 0.06
        flags = FUA if fua else 0
        if kind == "write":
            number = next(self.clock.numbers)
            answer = self._change(states, where, Op((number,)), fua=fua)
            client.write(offset, stamped(number, where.start, len(where)), flags, answer)
        elif kind == "zero":
            answer = self._change(states, where, Op((0,)), fua=fua)
            client.zero(offset, count, flags | (NO_HOLE if rng.random() < 0.4 else 0), answer)
        elif kind == "trim":
            answer = self._change(states, where, Op((0,), strong=False), fua=fua)
            client.trim(offset, count, flags, answer)
        else:
            states.busy.append(where)
            client.read(offset, count, self._read_done(states, where))

    def _read_done(self, states: VolumeStates, where: range) -> Callable[[int, bytes], None]:
        def done(error: int, data: bytes) -> None:
            if error:
                self.failed("read", error)
                return
            states.busy.remove(where)
            states.check_read(where.start, data, self.clock.tick())

        return done

    def _flush(self, name: str) -> None:
        """A flush of one volume covers that volume, whatever connection wrote."""
        states = self.volumes[name]
        since = self.clock.tick()

        def done(error: int) -> None:
            if error:
                self.failed("flush", error)
            else:
                states.flushed(since)

        self._note("flush")
        self._client(name).flush(done)

    def failed(self, what: str, error: int) -> None:
        """Requests fail when the daemon was killed, and for no other reason."""
        if not self.killed:
            raise Lost(f"{what} failed with errno {error} while the daemon lived")

    # Admin verbs

    def fresh_name(self) -> str:
        self._serial += 1
        return f"v{self._serial}"

    def draw_verb(self) -> verbs.Verb:
        rng = self.rng
        names = sorted(self.volumes)
        room = len(names) < MOST_VOLUMES
        kind = rng.choices(
            ["create", "snapshot", "delete", "resize", "rename", "rollback"],
            [2 * room, 8 * room, 5 * (len(names) > 2), 2, 1, 3 * (room and len(names) > 1)],
        )[0]
        name = rng.choice(names)
        self._note(kind)
        if kind == "create":
            return verbs.Create(self.fresh_name(), rng.randrange(1, MOST_SECTORS))
        if kind == "snapshot":
            origins = rng.sample(names, min(len(names), rng.choice([1, 1, 2, 3])))
            return verbs.Snapshot([(origin, self.fresh_name()) for origin in origins])
        self._release(name)
        if kind == "delete":
            return verbs.Delete(name)
        if kind == "resize":
            return verbs.Resize(name, self.volumes[name].sectors, rng.randrange(1, MOST_SECTORS))
        if kind == "rename":
            return verbs.Rename(name, self.fresh_name())
        other = rng.choice([each for each in names if each != name])
        return verbs.Rollback(name, other, set(names))

    def ask(self, verb: verbs.Verb) -> None:
        """Sends a verb; `turn` takes the answer."""
        assert self._verb is None
        method, params = verb.call
        since = self.clock.tick()
        verb.begin(self.volumes, since)
        self._verb = (verb, since, self.rpc.send(method, **params))

    def turn(self) -> None:
        """Handles what has been answered, waiting for something."""
        if self._verb is None:
            self.pump.turn()
            return
        descriptor = self.rpc.fileno()
        if descriptor not in self.pump.turn(descriptor):
            return
        verb, since, serial = self._verb
        self.rpc.finish(serial)
        self._verb = None
        listed = Admin(self.rpc).volumes() if isinstance(verb, verbs.Rollback) else {}
        self._done(verb, since, listed)

    def _done(self, verb: verbs.Verb, since: int, listed: verbs.Listed) -> None:
        """The verb was committed, and with it all that was completed before it was asked."""
        for states in self.volumes.values():
            states.flushed(since)
        verb.apply(self.volumes, listed)
        verb.end(self.volumes)

    @property
    def verb_in_flight(self) -> bool:
        return self._verb is not None

    def do(self, verb: verbs.Verb) -> None:
        """A verb from beginning to end."""
        self.ask(verb)
        while self._verb is not None:
            self.turn()

    def run(self, requests: int, *, verb_each: int = 40) -> None:
        """Sends `requests` and leaves up to DEPTH of them, and perhaps a verb, in flight."""
        for _ in range(requests):
            if self._verb is None and self.rng.randrange(verb_each) == 0:
                self.ask(self.draw_verb())
            self.submit_where_possible()
            while self.pump.waiting >= DEPTH:
                self.turn()

    def submit_where_possible(self) -> None:
        """A volume that an admin verb is about to change offline gets no new connections."""
        held = self._held()
        if held is None:
            self.submit()
            return
        states = self.volumes.pop(held)
        try:
            if self.volumes:
                self.submit()
        finally:
            self.volumes[held] = states

    def _held(self) -> str | None:
        if self._verb is None:
            return None
        verb = self._verb[0]
        if isinstance(verb, verbs.Delete | verbs.Resize | verbs.Rename | verbs.Rollback):
            return verb.name
        return None

    def settle(self) -> None:
        """Waits for every answer, then compares every sector of every volume, without a crash."""
        while self._verb is not None:
            self.turn()
        self.pump.drain()
        now = self.clock.tick()
        for name, states in self.volumes.items():
            with self.pool.connect(name) as client:
                states.check_read(0, client.read_all(), now)

    # Death and what comes after

    def kill(self, *, stopping: bool = False) -> None:
        """Kills the daemon with whatever is in flight, and takes every answer that still came.

        With `stopping` it has just been asked to stop.
        """
        self.killed = True
        if stopping:
            with self.pool.rpc() as other:
                other.send("stop")
        self.pool.kill()
        self.pump.drain()
        for client in self.pump.clients:
            client.close()
        self.pump.clients.clear()
        self._clients.clear()

    def close(self) -> None:
        """Lets go of every connection, whatever still waits."""
        for client in self.pump.clients:
            client.raw = None
        self.pump.clients.clear()
        self._clients.clear()
        if self._rpc is not None:
            self._rpc.close()
            self._rpc = None

    def recover(self) -> None:
        """After a new start: every sector of every volume, and the verb in flight, if any."""
        answered = self._last_answer()
        if self._rpc is not None:
            self._rpc.close()
            self._rpc = None
        self.killed = False
        now = self.clock.tick()
        for states in self.volumes.values():
            states.busy.clear()
            if self.remembers:
                states.flushed(now)
        listed = Admin(self.rpc).volumes()
        if self._verb is not None:
            verb, since, _ = self._verb
            self._verb = None
            done = verb.done_in(listed)
            if answered and not done:
                raise Lost(f"{type(verb).__name__} was answered and is not there")
            if done:
                self._done(verb, since, listed)
            else:
                verb.end(self.volumes)
        if set(listed) != set(self.volumes):
            raise Lost(f"volumes are {sorted(listed)}, not {sorted(self.volumes)}")
        for name, states in self.volumes.items():
            if int(listed[name]["size"]) != states.sectors * SECTOR:
                raise Lost(f"{name}: {listed[name]['size']} bytes, not {states.sectors} sectors")
            with self.pool.connect(name) as client:
                states.recover(client.read_all())
            Admin(self.rpc).await_released(name)

    def _last_answer(self) -> bool:
        """Whether the verb in flight was answered before the daemon died."""
        if self._verb is None or self._rpc is None:
            return False
        try:
            self._rpc.finish(self._verb[2])
        except RpcGone:
            return False
        return True


class Answer:
    """What happens when a request that changes sectors is answered."""

    def __init__(self, load: Load, states: VolumeStates, where: range, op: Op, fua: bool) -> None:
        self.load, self.states, self.where, self.op, self.fua = load, states, where, op, fua

    def __call__(self, error: int) -> None:
        if error:
            self.load.failed("a change", error)
            return
        self.states.end(self.where, self.op, self.load.clock.tick())
        if self.fua and self.op.strong:
            self.states.durable(self.where, self.op)
