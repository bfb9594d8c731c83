"""An open pool: its parts put together, its volumes, who has them open.

Opening a pool checks everything that can be refused before anything is touched: the lock, the
format, the data device. Its threads start with `start`, which a process calls after its last fork;
a command that only looks at, or changes, a stopped pool does without them.

Invariants

1. The pool's lock is held from before the metadata is opened to after it is closed.
2. An open volume is one `Volume` for all its clients, so they share gate, cells and table.
3. What `changing` covers is one transaction with the gates of the volumes it names closed; the
   volumes that are open are the same from the closing of the gates to the end.
4. What an administrator changed is shown, and lets clients in or keeps them out, when it is
   durable: whoever opens a volume, is about to be refused one, or looks, has it committed first.
   A pool that has failed, and cannot even read its last commit, shows what it has in memory.

Thread-safety: any thread. The core's lock guards the registry, `record` and clients' counts.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from thinmeta.errors import Corrupt, ThinMetaError
from thinmeta.store.overlay import OverlayStore
from thinmeta.store.protocol import BlockStore
from thinmeta.thin import ThinMetadata
from thinpoold import boot, identity, lives, lock, pool_record, poolfiles
from thinpoold.core import Core
from thinpoold.deletion import Deletion
from thinpoold.device import DataDevice
from thinpoold.direct import DirectDevice
from thinpoold.errors import (
    ContentJumped,
    DeviceError,
    LossNotAccepted,
    NameHeld,
    NoSuchVolume,
    ThinPoolError,
    VolumeInUse,
)
from thinpoold.ledger import Guest, Ledger, State, other_commit
from thinpoold.losses import Losses
from thinpoold.make import create_pool
from thinpoold.mapping_table import MappingTable
from thinpoold.metadata_file import open_store
from thinpoold.modes import Mode
from thinpoold.openers import Openers
from thinpoold.paths import PoolPaths, pool_paths
from thinpoold.pool_record import PoolRecord
from thinpoold.recent import RecentChanges
from thinpoold.reclaim import Ranges
from thinpoold.recovery import doubt_data, recover
from thinpoold.settings import Settings
from thinpoold.sizes import exact_size
from thinpoold.volume import Volume
from thinpoold.volumes import Registry, VolumeRecord

__all__ = ["DEFAULT_CACHE_BYTES", "Pool", "create_pool"]

log = logging.getLogger(__name__)

DEFAULT_CACHE_BYTES = 64 << 20
_SERVED_READ_ONLY = "it was started with --read-only"


class Pool:
    """An open pool. Use `open`; tests put one together from parts."""

    def __init__(
        self,
        store: BlockStore,
        metadata: ThinMetadata,
        device: DataDevice,
        record: PoolRecord,
        *,
        paths: PoolPaths | None = None,
        recent: RecentChanges | None = None,
        ledger: Ledger | None = None,
        losses: Losses | None = None,
        read_only: bool = False,
    ) -> None:
        self.store = store
        self.metadata = metadata
        self.device = device
        self.record = record
        self.paths = paths
        self.core = Core(
            metadata,
            device,
            record.settings,
            recent=recent,
            ledger=ledger,
            losses=losses,
            read_only=read_only,
        )
        self.registry = Registry(metadata, self.core.check_begun)
        self.deletion = Deletion(self.core)
        self.openers = Openers()
        self.core.on_abandon = self._load
        self.core.on_resume = self.deletion.timer.kick
        self.core.recount = self._count_reservations
        self.core.sizes = lambda: self.registry.sizes(self.core.block_size)
        # Each for one command of its kind, commits included; nothing else waits for them.
        self.growing = threading.Lock()
        self.accepting = threading.Lock()
        # Whether it was opened to be served, and to be read alone.
        self.served_read_only = False
        self._own_lock: int | None = None
        self._closed = False
        self._count_reservations()

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        lock_fd: int | None = None,
        read_only: bool = False,
        cache_bytes: int | None = None,
        serving: bool = False,
        checked: bool = False,
        looking: bool = False,
        accepting: bool = False,
    ) -> Pool:
        """Open the pool in `directory`.

        `lock_fd` holds the pool's lock already, and stays the caller's; without it the lock is
        taken. `cache_bytes` bounds the metadata cache. `serving` opens the data device as the
        setting `cache` says; a command does without a cache. `checked`: the metadata, if it was
        marked as in need of a check, is so no more, from the next commit on. `read_only`: nothing
        is written anywhere, and the lock is shared; what a daemon left that died is made good in
        memory. `looking`: likewise, but with the last commit as it is; the mode is the one that the
        pool would be opened in. `accepting`: the data device is the pool's, whatever its mark says.
        Raises `PoolLocked`, `NoSuchPool`, `DeviceError`, `NotRecovered`, errors of the metadata.
        """
        paths = pool_paths(directory).require_pool()
        read_only = read_only or looking
        with ExitStack() as undo:
            own_lock = None
            if lock_fd is None:
                own_lock = lock.share(paths) if read_only else lock.acquire(paths, "thinpoold")
                undo.callback(os.close, own_lock)
            # The pool's lock keeps all others from writing, shared or not.
            store: BlockStore = open_store(paths.metadata, read_only=read_only, alone=read_only)
            if read_only and not looking:
                store = OverlayStore(store)
            undo.callback(store.close)
            metadata = ThinMetadata.open(store, cache_bytes=cache_bytes or DEFAULT_CACHE_BYTES)
            undo.callback(metadata.close)
            record = pool_record.load(metadata)
            data = record.data_file(paths.directory)
            with poolfiles.opening_device(paths.directory) as reach:
                settings = record.settings if serving else None
                device = _open_device(reach(data), settings, read_only=read_only)
            device.path = data
            undo.callback(device.close)
            _check_device(device, metadata, record, accepting=accepting)
            ledger = Ledger(paths.ledger, record.uuid)
            losses = Losses(paths.losses, read_only=read_only)
            recent = RecentChanges(paths.recent, record.uuid, lambda: _note(ledger, State.UNNOTED))
            if checked:
                metadata.set_needs_check(False)
            freed: Ranges = []
            older = other_commit(metadata.generation, ledger.found)
            if not older and not looking:
                device.ledger = ledger
                ledger.open(read_only=read_only)
                undo.callback(ledger.end, clean=False)
                if not read_only:
                    metadata.on_durable = lambda generation: _committed(ledger, generation)
                freed = recover(metadata, device, recent, ledger, losses, record.block_size)
                if read_only:
                    # Nobody uses them again.
                    freed = []
                elif (serving or accepting) and not metadata.needs_check:
                    record = lives.advance(metadata, device, record, accepting=accepting)
                if accepting:
                    doubt_data(metadata, ledger, losses, record.block_size)
                ledger.begin(boot.current(), metadata.generation)
                if not read_only:
                    recent.begin(metadata.generation)
                    undo.callback(recent.close)
            pool = cls(
                store,
                metadata,
                device,
                record,
                paths=paths,
                recent=recent,
                ledger=ledger,
                losses=losses,
                read_only=read_only or bool(older),
            )
            pool.core.reclaimer.add(freed)
            if not pool.core.read_only:
                pool.core.make_metadata_room()
            if looking:
                pool.core.modes.look()
                pool.core.check_marked()
                try:
                    lock.check_writable(paths)
                except DeviceError as error:
                    pool.core.modes.begin_read_only(str(error))
            elif read_only:
                pool.served_read_only = True
                pool.core.modes.begin_read_only(_SERVED_READ_ONLY)
            if older:
                # Whoever flushes must know.
                pool.core.modes.begin_read_only(older, lost_data=True)
            pool._own_lock = own_lock
            undo.pop_all()
            return pool

    def start(self) -> None:
        """Start the threads that commit each second, reclaim what was freed, and delete."""
        self.core.start()
        self.deletion.start()

    def commit(self) -> None:
        """Make everything durable, and reclaim what that frees. Raises as `Core.flush`."""
        self.core.flush()
        self.core.reclaimer.drain()
        self.core.end_sharing(wait=False)

    def close(self) -> None:
        """Commit and close. What a commit raises is raised when all is closed."""
        if self._closed:
            return
        self._closed = True
        with ExitStack() as last:
            if self._own_lock is not None:
                last.callback(os.close, self._own_lock)
            last.callback(self.store.close)
            last.callback(self.metadata.close)
            last.callback(self.device.close)
            with self.core.lock:
                # Those that clients had open to the last: the device's descriptor goes.
                for volume in self.core.volumes.values():
                    volume.withdraw()
            self.deletion.stop()
            self.core.stop()
            if self.core.read_only:
                return
            last.callback(self._end)
            self.core.resume()
            if not self.core.modes.lost_data:
                self.commit()

    def _end(self) -> None:
        core = self.core
        clean = not core.metadata.dirty and not core.modes.lost_data and core.suspended is None
        core.recent.erase()
        core.ledger.end(clean=clean)

    # --- volumes --------------------------------------------------------------------------------

    def open_volume(
        self,
        name: str,
        admit: Callable[[VolumeRecord, int], None] | None = None,
        guest: Guest | None = None,
    ) -> Volume:
        """Open a volume, by its name or stable name, for one client more.

        That is `guest`, or this process itself.

        `admit` is asked first, with the lock held, about the volume and how many clients the pool
        has. Raises `NoSuchVolume`, `ContentJumped`, `NoSpace`, `Stopped`, `LossNotAccepted`,
        `DeviceError`, and what `admit` does.
        """
        ledger, covered = self.core.ledger, 0
        while True:
            room_for: bytes | None = None
            with self.core.lock:
                self.core.modes.check_readable()
                try:
                    record = self.registry.exported(name)
                except (NoSuchVolume, ContentJumped):
                    # A volume that is gone, or another, only until a crash is neither.
                    if self.registry.pending() <= covered:
                        raise
                else:
                    durable = self.registry.pending(record.uuid, pool_record.KEY) <= covered
                    if durable and ledger.has_room(record.uuid):
                        absent = ledger.absent(record.uuid) is not None
                        volume, to_sync = self._open(record, admit, guest, absent=absent)
                        break
                    room_for = record.uuid
            # With no lock held, for the disk may be slow.
            if room_for is not None:
                ledger.make_room(room_for)
            # A crash would take back what the client is to rely on.
            covered = self._commit_pending()
        if to_sync:
            # Before the client is answered.
            try:
                ledger.sync_opened()
            except BaseException:
                # Who had it open before may still come back.
                self.close_volume(volume, comes_back=absent)
                raise
        return volume

    def _commit_pending(self) -> int:
        """Commit what is pending, or go back to the last commit; the changes that this covers."""
        with self.core.lock:
            last = self.registry.number
        try:
            self.core.flush()
        except (ThinPoolError, ThinMetaError):
            with self.core.lock:
                # Else it went back to the last commit, or could not.
                failed = self.core.modes.mode is Mode.FAILED
                if 0 < self.registry.pending() <= last and not failed:
                    raise
        return last

    def _open(
        self,
        record: VolumeRecord,
        admit: Callable[[VolumeRecord, int], None] | None,
        guest: Guest | None,
        *,
        absent: bool,
    ) -> tuple[Volume, bool]:
        """Open a volume; and whether the ledger is to be synced before that is answered.

        `absent`: who had it open before may come back, also where this fails.
        """
        if admit is not None:
            admit(record, sum(one.clients for one in self.core.volumes.values()))
        if guest is not None and self.core.ledger.lost(record.uuid):
            raise self._not_accepted(record.name)
        # Before it is answered: from here on it may be written.
        to_sync = self.core.ledger.mark_opened(record.uuid, guest)
        volume = self.core.volumes.get(record.uuid)
        if volume is None:
            try:
                volume = Volume(self.core, record, self.registry.by_uuid)
            except BaseException:
                self.core.ledger.closed(record.uuid, comes_back=absent)
                raise
            self.core.volumes[record.uuid] = volume
        volume.clients += 1
        return volume, to_sync

    def _not_accepted(self, name: str) -> LossNotAccepted:
        if self.served_read_only:
            return LossNotAccepted(
                f"volume {name!r} is not served read-only: something that was answered may be "
                f"lost, and 'thinpool accept-loss --dry-run {name}' says what; a start without "
                "--read-only can find out, or have it accepted"
            )
        return LossNotAccepted(
            f"volume {name!r} is not served: something that was answered is lost, and whoever uses "
            f"it must know; 'thinpool accept-loss {name}' says what, and lets clients open it again"
        )

    @contextmanager
    def looking(self) -> Iterator[None]:
        """The core's lock, with nothing in the registry or the settings that a crash takes back."""
        covered = 0
        while True:
            with self.core.lock:
                failed = self.core.modes.mode is Mode.FAILED
                if failed or self.registry.pending() <= covered:
                    yield
                    return
            covered = self._commit_pending()

    def commit_to_look(self) -> None:
        """Commit for whoever looks at the last commit; if that fails, the one before will do."""
        try:
            self.core.flush()
        except (ThinPoolError, ThinMetaError) as error:
            # The round has dealt with it, and whoever waits for what it drops is told.
            log.info("the last commit is shown: %s", error)

    def close_volume(self, volume: Volume, *, comes_back: bool = False) -> None:
        """One client less; it has no request under way. The last one's table goes.

        One that `comes_back` was hung up on, and is expected to connect again.
        """
        with self.core.lock:
            volume.clients -= 1
            if not volume.clients:
                del self.core.volumes[volume.uuid]
                volume.close()
                self.core.ledger.closed(volume.uuid, comes_back=comes_back)

    def clients(self, uuid: bytes) -> int:
        """How many clients have a volume open. The core's lock is held."""
        volume = self.core.volumes.get(uuid)
        return volume.clients if volume is not None else 0

    # --- clients that are not there ---------------------------------------------------------------

    def check_absent(self, record: VolumeRecord, *, force: bool) -> None:
        """Raise `VolumeInUse` if a client may come back to a volume whose content is to change.

        One that had it open when the daemon ended: it goes on with what it knows of the content.
        """
        entry = self.core.ledger.absent(record.uuid)
        if entry is not None and not force:
            raise VolumeInUse(
                f"volume {record.name!r} was open by {entry.client} when the daemon ended, which "
                "may connect again and go on as if nothing had changed: see that it is gone, and "
                "say --force"
            )

    def check_name(self, name: str, *, force: bool, uuid: bytes = b"") -> None:
        """Raise unless a volume can be given that name: `InvalidName`, `VolumeExists`, `NameHeld`.

        The volume with `uuid`, or a new one. A client that has another open by this name would find
        this one when it connects again.
        """
        self.registry.check_free(name, uuid)
        entry = self.core.ledger.holder(name)
        if entry is not None and entry.uuid != uuid and not force:
            raise NameHeld(
                f"{entry.client} has another volume open by the name {name!r}, and would find this "
                "one when it connects again: disconnect it, choose another name, or say --force"
            )

    # --- changes --------------------------------------------------------------------------------

    @contextmanager
    def changing(self, quiet: Sequence[str] = ()) -> Iterator[Callable[[], None]]:
        """One transaction of an administrator's operation, durable when the context ends.

        The core's lock is held inside, and the gates of the volumes named in `quiet` are closed. It
        yields what begins the change: before that all is judged that can be refused. Without it,
        nothing was changed. Raises `Stopped` when the pool takes no writes, `NoSuchVolume`, and
        what a commit raises.
        """
        with self.core.settled(), self._quiet(quiet):
            yield self._begin
            if not self.core.begun:
                return
            self.metadata.set_transaction_id(self.metadata.transaction_id + 1)
            number, gone_back = self.registry.number, self.core.times_gone_back
        self.core.flush_since(gone_back)
        with self.core.lock:
            self.registry.committed(number)

    def _begin(self) -> None:
        self.core.begin_change()
        self.registry.begin_change()

    @contextmanager
    def _quiet(self, names: Sequence[str]) -> Iterator[None]:
        while True:
            with self.core.lock:
                volumes = self._opened(names)
            with ExitStack() as gates:
                # In one order for everybody, so two operations never wait for each other.
                for volume in volumes:
                    gates.enter_context(volume.gate.closed())
                with self.core.changing():
                    if self._opened(names) == volumes:
                        yield
                        return

    def _opened(self, names: Sequence[str]) -> list[Volume]:
        """Those of the named volumes that are open, by uuid. Raises `NoSuchVolume`."""
        found = []
        for uuid in sorted({self.registry.get(name).uuid for name in names}):
            volume = self.core.volumes.get(uuid)
            if volume is not None:
                found.append(volume)
        return found

    def put_record(self, record: PoolRecord) -> None:
        """Change what the pool remembers of itself. In a change that has begun."""
        self.core.check_begun()
        self.registry.mark_pending(pool_record.KEY)
        pool_record.store(self.metadata, record)
        self._take(record)

    def put_volume(self, record: VolumeRecord, table: MappingTable | None = None) -> None:
        """Add or change a volume; if it is open it becomes what the record says.

        In a change that has begun. A larger size needs the open volume's `table_for` it.
        """
        self.core.check_begun()
        self.registry.put(record)
        volume = self.core.volumes.get(record.uuid)
        if volume is not None:
            volume.reload(table)

    def grow_data(self, blocks: int) -> None:
        """The data device has so many blocks now. In a change that has begun."""
        self.core.check_begun()
        self.registry.mark_pending(pool_record.KEY)
        self.metadata.resize_data(blocks)

    def remove_volume(self, record: VolumeRecord) -> None:
        """Take a volume out, and have its device deleted. In a change that has begun."""
        self.core.check_begun()
        self.registry.remove(record)
        self.deletion.add(record.dev_id)
        self.core.reservations.promise(record.uuid, 0)

    def _take(self, record: PoolRecord) -> None:
        self.record = record
        self.core.settings = record.settings
        self.core.modes.settings_changed()

    def reload(self) -> None:
        """Take the settings from the metadata again. Raises as `looking`."""
        with self.looking():
            self._take(pool_record.load(self.metadata))

    def _load(self) -> None:
        """Look again at what was committed last."""
        self._take(pool_record.load(self.metadata))
        self.registry.load()

    def _count_reservations(self) -> None:
        size = self.core.block_size
        self.core.reservations.clear()
        for record in self.registry.unordered():
            if record.reserve:
                own = self.metadata.exclusive_blocks(record.dev_id)
                self.core.reservations.promise(record.uuid, -(-record.reserve // size), own)


def _open_device(path: Path, settings: Settings | None, *, read_only: bool) -> DataDevice:
    """Open the data device, as the settings say if there are some. Raises `DeviceError`."""
    if settings is not None and settings.cache == "bufio":
        try:
            return DirectDevice.open_direct(path, settings.data_cache, read_only=read_only)
        except DeviceError as error:
            # Where the pool cannot be written the setting cannot be changed.
            if not read_only or error.errno != errno.EINVAL:
                raise
            log.warning("%s; the page cache is used", error)
    return DataDevice.open(path, read_only=read_only)


def _note(ledger: Ledger, state: State) -> None:
    try:
        ledger.note(state, on=True)
    except ThinPoolError as error:
        log.critical("that changes are not noted cannot be noted: %s", error)


def _committed(ledger: Ledger, generation: int) -> None:
    try:
        ledger.committed(generation)
    except ThinPoolError as error:
        log.error("which commit was the last cannot be noted: %s", error)


def _check_device(
    device: DataDevice, metadata: ThinMetadata, record: PoolRecord, *, accepting: bool
) -> None:
    """Raise unless the data device is the pool's, and large enough."""
    block_size = metadata.data_block_sectors * 512
    if block_size != record.block_size:
        raise Corrupt(
            "record", "pool", f"blocks of {record.block_size} bytes, the metadata says {block_size}"
        )
    needed = metadata.data_blocks * block_size
    check = identity.check_acceptable if accepting else identity.check_ours
    check(device, record, needed)
    if device.size < needed:
        raise DeviceError(
            f"data device {device.path} has {exact_size(device.size)}, but the pool's metadata "
            f"says {exact_size(needed)}: it was cut short, or is another"
        )
