"""The operations of the model test: each done to a real pool and to the model, then compared.

A Hypothesis state machine (`machine.py`) and a long seeded run (`longrun.py`) both drive this.

Thread-safety: none; one thread.
"""

import errno

from tests.model.contents import Mismatch, PoolModel, VolumeModel
from tests.support import admin
from tests.support.client import FAST_ZERO, FUA, NO_HOLE, NbdClient, NbdError
from tests.support.served import Served

__all__ = ["FAST_ZERO", "FUA", "NO_HOLE", "Exercise"]


class Exercise:
    """A pool, its model, and the connections held open between operations."""

    def __init__(self, pool: Served, *, connections: int = 2) -> None:
        self.pool = pool
        self.model = PoolModel()
        self.connections = connections
        self._rpc = pool.rpc()
        self.admin = admin.Admin(self._rpc)
        self._clients: dict[str, list[NbdClient]] = {}
        self._turn = 0
        self._serial = 0

    # Names and connections

    @property
    def names(self) -> list[str]:
        return sorted(self.model.volumes)

    def fresh_name(self) -> str:
        self._serial += 1
        return f"vol-{self._serial}"

    def client(self, name: str) -> NbdClient:
        """One of a volume's connections, in turn: what one wrote, the next must read."""
        clients = self._clients.setdefault(name, [])
        self._turn += 1
        if len(clients) < self.connections:
            clients.append(self.pool.connect(name))
            if clients[-1].size != self.model.volumes[name].size:
                raise Mismatch(
                    f"{name}: size {clients[-1].size}, not {self.model.volumes[name].size}"
                )
            return clients[-1]
        return clients[self._turn % len(clients)]

    def release(self, name: str) -> None:
        """Closes a volume's connections and waits until the daemon knows."""
        for client in self._clients.pop(name, []):
            client.close()
        self.admin.await_released(name)

    def fit(self, name: str, offset: int, count: int) -> tuple[int, int]:
        """The nearest range inside the volume that the server's block size allows."""
        size, unit = self.model.volumes[name].size, self.client(name).minimum_block
        offset = min(offset, size - unit) // unit * unit
        count = max(unit, min(count, size - offset) // unit * unit)
        return offset, count

    # Data

    def read(self, name: str, offset: int, count: int) -> None:
        offset, count = self.fit(name, offset, count)
        self.model.volumes[name].compare(offset, self.client(name).read(offset, count))

    def write(self, name: str, offset: int, data: bytes, *, fua: bool = False) -> None:
        offset, count = self.fit(name, offset, len(data))
        data = data[:count].ljust(count, b"\xa5")
        self.client(name).write(offset, data, FUA if fua else 0)
        self.model.volumes[name].write(offset, data)

    def zero(self, name: str, offset: int, count: int, flags: int) -> bool:
        """A zero with any flags; False when a fast one was declined, which changes nothing."""
        offset, count = self.fit(name, offset, count)
        try:
            self.client(name).zero(offset, count, flags)
        except NbdError as error:
            if flags & FAST_ZERO and error.errno in (errno.ENOTSUP, errno.EOPNOTSUPP):
                self.read(name, offset, count)
                return False
            raise
        self.model.volumes[name].zero(offset, count)
        return True

    def trim(self, name: str, offset: int, count: int, *, fua: bool = False) -> None:
        if not self.client(name).raw.can_trim():
            return
        offset, count = self.fit(name, offset, count)
        self.client(name).trim(offset, count, FUA if fua else 0)
        self.model.volumes[name].settle(offset, self.client(name).read(offset, count))

    def flush(self, name: str) -> None:
        self.client(name).flush()

    def cache(self, name: str, offset: int, count: int) -> None:
        self.client(name).cache(*self.fit(name, offset, count))

    def extents(self, name: str, offset: int, count: int) -> None:
        """What block status calls zero must be zero in the model."""
        offset, count = self.fit(name, offset, count)
        self._compare_extents(self.model.volumes[name], self.client(name), offset, count)

    @staticmethod
    def _compare_extents(volume: VolumeModel, client: NbdClient, offset: int, count: int) -> None:
        for extent in client.extents(offset, count):
            if extent.hole and not extent.zero:
                raise Mismatch(f"{volume.name}: a hole that is not zero at {extent.offset}")
            if extent.zero and any(volume.data[extent.offset : extent.end]):
                raise Mismatch(
                    f"{volume.name}: block status says zero for [{extent.offset}, {extent.end})"
                )

    # Volumes

    def create(self, size: int) -> str:
        name = self.fresh_name()
        self.admin.do(admin.create(name, size))
        self.model.create(name, size)
        return name

    def snapshot(self, origins: list[str]) -> list[str]:
        """Snapshots of several volumes at one instant."""
        pairs = [(origin, self.fresh_name()) for origin in origins]
        self.admin.do(admin.snapshot(pairs))
        for origin, snap in pairs:
            self.model.snapshot(origin, snap)
        return [snap for _, snap in pairs]

    def delete(self, name: str) -> None:
        self.release(name)
        self.admin.do(admin.delete(name))
        del self.model.volumes[name]

    def rename(self, name: str) -> None:
        self.release(name)
        new = self.fresh_name()
        self.admin.do(admin.rename(name, new))
        self.model.rename(name, new)

    def resize(self, name: str, size: int) -> None:
        self.release(name)
        shrink = size < self.model.volumes[name].size
        self.admin.do(admin.resize(name, size, shrink=shrink))
        self.model.volumes[name].resize(size)

    def rollback(self, name: str, snap: str, *, discard: bool) -> None:
        """The volume becomes the snapshot; what it held appears as a new one, unless discarded."""
        self.release(name)
        before = set(self.admin.volumes())
        self.admin.do(admin.rollback(name, snap, discard=discard))
        new = set(self.admin.volumes()) - before
        if len(new) != (0 if discard else 1):
            raise Mismatch(f"rollback of {name} to {snap} left new volumes {sorted(new)}")
        for kept in new:
            self.model.snapshot(name, kept)
        self.model.rollback(name, snap)

    # The whole

    def restart(self) -> None:
        """A clean stop and start: nothing may be lost, flushed or not."""
        for name in list(self._clients):
            self.release(name)
        self._rpc.close()
        self.pool.stop()
        self.pool.start()
        self._rpc = self.pool.rpc()
        self.admin.rpc = self._rpc

    def verify(self) -> None:
        """Every byte of every volume, and every extent."""
        listed = self.admin.volumes()
        sizes = {name: int(entry["size"]) for name, entry in listed.items()}
        expected = {name: volume.size for name, volume in self.model.volumes.items()}
        if sizes != expected:
            raise Mismatch(f"volumes are {sizes}, expected {expected}")
        for name, volume in self.model.volumes.items():
            client = self.client(name)
            volume.compare(0, client.read_all())
            self._compare_extents(volume, client, 0, volume.size)

    def clear(self) -> None:
        """Deletes every volume: the pool must then hold nothing."""
        for name in self.names:
            self.delete(name)

    def close(self) -> None:
        for clients in self._clients.values():
            for client in clients:
                client.close()
        self._clients.clear()
        self._rpc.close()
