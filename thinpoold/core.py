"""What all volumes of a pool share: metadata and its lock, data device, commit, mode.

What makes things durable is in `rounds`; what a crash leaves, in docs/crash-ordering.md.

A change is judged, then begun, then committed, then shown: what is refused has changed nothing, and
what a crash would take back nobody has relied on (`pool`).

Invariants

1. Every call of the metadata is made with `lock` held, but `write`, which the commit makes without;
   and no data I/O is done with `lock` held.
2. Only a round (`rounds`) abandons the open transaction, so nobody pulls it from under a commit
   that is being written. A change that failed half way marks it (`changing`), which stops
   everything until a round has abandoned it.
3. After the open transaction was abandoned the pool takes no more writes. Where something that was
   answered is lost, every flush fails, and the ledger knows the volumes that it may be of.
4. A table entry that may be written in place exists only while the mode takes writes.

Thread-safety: any thread. `lock` guards the metadata, `unshared`, `reservations`, `volumes` and
storing into mapping tables. Order: a gate, then a cell (the cell first, where `provision` fills a
block outside the gate), then `lock`, then the locks inside modes, committer and reclaimer.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from thinmeta.errors import Corrupt, NoDataSpace, NoMetadataSpace, StoreError, ThinMetaError
from thinmeta.thin import Run, ThinMetadata
from thinpoold.ahead import Taken
from thinpoold.committer import INTERVAL_SECONDS, Committer, Timer
from thinpoold.device import DataDevice
from thinpoold.errors import NoMetadataRoom, ThinPoolError
from thinpoold.fastlib import Library
from thinpoold.ledger import Ledger
from thinpoold.losses import Losses
from thinpoold.modes import Mode, Modes, Stopped
from thinpoold.motion import Motion
from thinpoold.pinned import Pinned
from thinpoold.recent import RecentChanges
from thinpoold.reclaim import Ranges, Reclaimer
from thinpoold.reservations import Reservations
from thinpoold.rounds import Rounds
from thinpoold.settings import Settings
from thinpoold.shares import Shares
from thinpoold.unshared import Unshared

if TYPE_CHECKING:
    from thinpoold.volume import Volume

log = logging.getLogger(__name__)

SECTOR = 512
_AGE_TICKS = 30
_READER_TICKS = 5
_IDLE_SECONDS = 300.0


class TransactionBroken(ThinPoolError):  # noqa: N818 - a state, not a mistake
    """The open transaction is half changed and waits to be abandoned; try again after that."""


class Core:
    """The shared part of one pool. `read_only` is for one that is only to be looked at."""

    def __init__(
        self,
        metadata: ThinMetadata,
        device: DataDevice,
        settings: Settings,
        *,
        recent: RecentChanges | None = None,
        ledger: Ledger | None = None,
        losses: Losses | None = None,
        read_only: bool = False,
    ) -> None:
        self.metadata = metadata
        self.recent = recent or RecentChanges()
        self.ledger = ledger or Ledger()
        self.losses = losses or Losses()
        self.device = device
        device.ledger = self.ledger
        device.on_failure = self._device_failed
        self.settings = settings
        self.read_only = read_only
        self.block_size = metadata.data_block_sectors * SECTOR
        self.lock = threading.Lock()
        self.modes = Modes(read_only=read_only)
        self.unshared = Unshared()
        self.reservations = Reservations()
        # Of Python's time, one for each volume that is open.
        self.shares = Shares()
        # Those that are open, by uuid.
        self.volumes: dict[bytes, Volume] = {}
        # The C filter's library, where nbdkit has it; set before the first volume is opened.
        self.fastpath: Library | None = None
        # Called with the lock held, after the open transaction was abandoned.
        self.on_abandon: Callable[[], None] = lambda: None
        # The virtual blocks of each device that is a volume, at the last commit.
        self.sizes: Callable[[], Mapping[int, int]] = dict
        # Called with the lock held before the pool takes writes again: what going back dropped may
        # have been promised, or not be promised any more. May raise what the metadata does.
        self.recount: Callable[[], None] = lambda: None
        # Called when the pool takes writes again.
        self.on_resume: Callable[[], None] = lambda: None
        # Why what is noted cannot be committed; None unless the pool waits for that (`rounds`).
        self.suspended: Exception | None = None
        # How often the open transaction was abandoned: a change from before is in no commit.
        self.times_gone_back = 0
        self.pinned = Pinned()
        self._resuming = _Patience()
        self._rounds = Rounds(self)
        self.committer = Committer(self._round)
        self.reclaimer = Reclaimer(
            device,
            self.block_size,
            synchronize=self._synchronize,
            passdown=lambda: self.settings.discard == "passdown",
            release=self._release,
        )
        self.timer = Timer("commit", self._tick, INTERVAL_SECONDS)
        self.reclaim_timer = Timer("reclaim", self._reclaim, None)
        self._change = _Change(self, noted=False)
        self._noted_change = _Change(self, noted=True)
        # What broke the open transaction, and whether it holds anything that `recent` does not
        # tell of. Both with the lock held.
        self.broken_by: Exception | None = None
        self.unnoted = False
        # Whether whoever holds the lock has begun to change the metadata.
        self.begun = False
        self._low = False
        # How often the timer has come round, and how many rounds have ended. While both stand
        # still, `motion` says whether what is under way moves.
        self.ticks = 0
        self.rounds = 0
        self.motion = Motion()
        if not read_only:
            self.check_marked()

    def check_marked(self) -> None:
        """Take no writes if the metadata is marked as in need of a check."""
        if self.metadata.needs_check:
            self.modes.begin_read_only(
                "its metadata needs a check: 'thinpool check --clear-needs-check'"
            )

    def start(self) -> None:
        """Start the threads that commit each second, reclaim what commits free, and write out."""
        if self.modes.reason:
            meant = self.read_only and not self.modes.lost_data
            level = logging.INFO if meant else logging.ERROR
            log.log(level, "pool mode: %s: %s", self.modes.mode.value, self.modes.reason)
        with suppress(ThinMetaError), self.lock:
            # Before there are clients. What is damaged, whoever needs it is told.
            self.metadata.warm()
        self.timer.start()
        self.reclaim_timer.start()
        self.device.writeout.start()

    def stop(self) -> None:
        """End the threads."""
        self.timer.stop()
        self.reclaim_timer.stop()
        self.device.writeout.stop()

    # --- commit ---------------------------------------------------------------------------------

    def flush(self) -> None:
        """Return when everything done before the call is committed.

        Raises `DeviceError`, an error of the store, or `PoolStopped`.
        """
        if self.read_only:
            self.modes.check_flushable()
        else:
            self.committer.flush()

    def flush_since(self, times_gone_back: int) -> None:
        """As `flush`, for a change that was made when `times_gone_back` was this.

        Raises `Stopped` when the open transaction was abandoned since: the change is dropped.
        """
        self.flush()
        if self.times_gone_back != times_gone_back:
            raise Stopped(
                "the change was dropped, for a commit has failed: see the log, and try again",
                errno.EROFS,
            )

    def sync(self) -> None:
        """Return when everything done before the call is durable: for clients' flushes.

        Where the notes of their changes say all there is to say, they are synced, and the timer
        commits later. Raises as `flush`.
        """
        if self.read_only:
            self.modes.check_flushable()
        else:
            self.committer.flush(whole=False)

    def commit_if_dirty(self) -> None:
        """Flush if there is anything of the metadata to commit."""
        if self.metadata.dirty or self.broken_by is not None:
            self.flush()

    def throttle(self) -> None:
        """Let the commit catch up with whoever changes a lot. Not inside a gate."""
        pressure = self.metadata.pressure
        if pressure > 1:
            self.flush()
        elif pressure:
            self.timer.kick()

    def _round(self, whole: bool) -> None:
        try:
            with self.motion.work():
                self._rounds.run(whole)
        finally:
            self.rounds += 1

    # --- failures -------------------------------------------------------------------------------

    def changing(self) -> _Change:
        """The lock, for a change of the metadata. Raises `Stopped` unless the pool takes writes.

        First what is asked for is judged: what is raised then has changed nothing. Then the change
        begins (`begin_change`): whatever is raised from there on breaks the transaction, and
        whoever gets it calls `settle`, outside gates. Until it is committed, every flush is a
        commit.
        """
        return self._change

    def noting(self) -> _Change:
        """As `changing`, for changes of mappings that are noted in `recent` within the context.

        Such a change begins with the context.
        """
        return self._noted_change

    def begin_change(self) -> None:
        """Inside `changing`: nothing is refused any more, and the metadata is changed."""
        self.begun = True
        self.unnoted = True

    def check_begun(self) -> None:
        """Raise `RuntimeError`, a bug, unless a change has begun. Lock held."""
        if not self.begun:
            raise RuntimeError("the metadata is changed before the change has begun")

    def broken(self, error: Exception) -> None:
        """A change failed half way. Lock held."""
        self.broken_by = error
        self.modes.degrade(Mode.READ_ONLY, str(error) or type(error).__name__)
        for volume in self.volumes.values():
            volume.forget()

    def check_whole(self) -> None:
        """Raise `TransactionBroken` while the open transaction waits to be abandoned. Lock held."""
        if self.broken_by is not None:
            raise TransactionBroken("the open transaction is being dropped")
        self.modes.check_readable()

    @contextmanager
    def looking(self) -> Iterator[None]:
        """The lock, for look-ups, with the open transaction whole. Outside gates.

        Raises `Stopped` when the pool has failed.
        """
        while self.broken_by is not None:
            self.settle()
        with self.lock:
            # Broken again by now is so unlikely that whoever looks may be told to try again.
            self.check_whole()
            yield

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Deal with failures of the metadata that pass through the context. Outside gates."""
        try:
            yield
        except BaseException as error:
            self.settle_after(error)
            raise

    def settle_after(self, error: BaseException) -> None:
        """Deal with an error that may be a failure of the metadata. Outside gates."""
        if self.broken_by is not None:
            self.settle()
        elif isinstance(error, Corrupt | StoreError):
            self.settle(error)

    def settle(self, error: Exception | None = None) -> None:
        """Deal with a look-up's failure, or with a change's that marked the transaction.

        Outside gates. Afterwards the open transaction is whole: abandoned if a change had failed,
        committed if only a look-up had; and the pool is read-only or failed.
        """
        if error is not None:
            with self.lock:
                if not self.modes.takes_writes:
                    return
                log.error("metadata: %s", error)
                # Before the commit: no write is answered that it would leave out.
                if isinstance(error, Corrupt):
                    self.unnoted = True
                    self.metadata.set_needs_check(True)
                self.modes.degrade(Mode.READ_ONLY, str(error), lost_data=False)
                for volume in self.volumes.values():
                    volume.forget()
        try:
            self.flush()
        except Exception as raised:
            log.error("commit: %s", raised)

    # --- data blocks ----------------------------------------------------------------------------

    def reserve(self, volume: Volume, count: int) -> Taken:
        """Take up to `count` consecutive data blocks for a volume. Lock held.

        Raises `NoDataSpace`, `NoMetadataRoom`, `Stopped`.
        """
        self.check_metadata_room()
        taken = volume.ahead.take(count)
        if taken is None:
            try:
                self._fill_ahead(volume, count)
            except NoDataSpace:
                if not self.give_back_ahead():
                    raise
                self._fill_ahead(volume, count)
            taken = volume.ahead.take(count)
            assert taken is not None
        return taken

    def _fill_ahead(self, volume: Volume, count: int) -> None:
        free = self.metadata.data_free
        count = volume.ahead.wanted(count, free)
        if self.reservations:
            room = free - self.reservations.owed(but_for=volume.uuid)
            if room <= 0:
                raise NoDataSpace("what is free is reserved for other volumes")
            count = min(count, room)
        volume.ahead.fill(*self.metadata.reserve(count))
        self._watch_low_water()

    def check_metadata_room(self) -> None:
        """Raise `NoMetadataRoom` unless the metadata may become larger. Lock held."""
        if self.modes.mode is Mode.OUT_OF_METADATA_SPACE:
            raise NoMetadataRoom(f"there is no room for more metadata: {self.modes.reason}")

    def make_metadata_room(self) -> None:
        """See to the room of coming commits. No round runs, or its leader calls this."""
        try:
            why = self.pinned.why()
            made = not why and self.metadata.make_room()
            why = why or (
                "its file system has no room; delete or discard something, or make room on it"
            )
        except StoreError as error:
            made, why = False, str(error)
        if made:
            self.modes.metadata_space_found()
        else:
            self.modes.out_of_metadata_space(f"metadata: {why}")

    def give_back_ahead(self) -> bool:
        """Give back what volumes have reserved ahead; whether that was anything. Lock held."""
        return True in [one.ahead.give_back(self.metadata) for one in self.volumes.values()]

    def unreserve(self, begin: int, count: int) -> None:
        """Give reserved blocks back that were not inserted."""
        with self.lock:
            self.metadata.unreserve(begin, count)

    def parts(self, run: Run) -> list[tuple[Run, bool]]:
        """Cut a run of mapped blocks into those that may be written in place and others. Lock held.

        Each block is judged by itself: one that may be written in place never needs another data
        block because of one beside it. A write of it may be under way.
        """
        if run.shared or not self.modes.takes_writes:
            return [(run, False)]
        return [
            (
                Run(run.begin + begin - run.data_begin, begin, count, False),
                not self.unshared.holds(begin, count),
            )
            for begin, count in self.unshared.alike(run.data_begin, run.length)
        ]

    def give_up(self, runs: list[Run]) -> None:
        """These mappings are being replaced or removed. Lock held."""
        for run in runs:
            if run.shared:
                self.unshared.add(run.data_begin, run.length)

    def _release(self, freed: Ranges) -> None:
        with self.lock:
            if self.modes.mode is not Mode.FAILED:
                self.metadata.release(freed)
                self._watch_low_water()
        self.modes.space_found()

    def _watch_low_water(self) -> None:
        free, total = self.metadata.data_free, self.metadata.data_blocks
        low = free * 100 < total * self.settings.low_water
        if low and not self._low:
            log.warning(
                "data space is low: %d of %d blocks are free, under %d%%; grow the pool, or delete "
                "or discard something",
                free,
                total,
                self.settings.low_water,
            )
        self._low = low

    # --- threads --------------------------------------------------------------------------------

    def end_sharing(self, *, wait: bool = True) -> None:
        """What commits have left to one owner may be written in place after a grace period.

        Without `wait`, only if none has to be waited for.
        """
        with self.lock:
            ended = self.unshared.durable
        if ended:
            self._synchronize(wait=wait)

    def _synchronize(self, *, wait: bool = True) -> None:
        """A grace period: all requests end that may have seen a mapping from before the call."""
        with self.lock:
            ended = self.unshared.durable
            volumes = list(self.volumes.values())
        if all(volume.gate.synchronize(wait=wait) for volume in volumes):
            with self.lock:
                self.unshared.release(ended)

    def _reclaim(self) -> None:
        self.reclaimer.drain()
        self.end_sharing()

    def _tick(self) -> None:
        with self.motion.work():
            self.ticks += 1
            self._commit_and_age()

    def _commit_and_age(self) -> None:
        if self.ticks % _AGE_TICKS == 0:
            with self.lock:
                self.metadata.age(_IDLE_SECONDS)
            self.device.age()
        if self.ticks % _READER_TICKS == 0:
            self._look_at_readers()
        if self.modes.mode is Mode.OUT_OF_METADATA_SPACE:
            self.committer.alone(self.make_metadata_room)
        if self.suspended is not None:
            self._resume()
        elif not self.modes.lost_data:
            if self.device.failed is not None:
                self.flush()
            if self.ledger.flushable:
                # A power cut must not take what a client was answered that has gone.
                self.sync()
            self.commit_if_dirty()

    def _look_at_readers(self) -> None:
        try:
            self.pinned.look(self.metadata)
        except StoreError as error:
            log.warning("readers of the metadata: %s", error)

    def _resume(self) -> None:
        """Take writes again, if what made that impossible has ended."""
        # What failed may have failed for good; only space comes back.
        if isinstance(self.suspended, NoMetadataSpace) and self._resuming.over(
            self.recent.free_bytes()
        ):
            self.resume()

    def resume(self) -> None:
        """Commit what waits for that, if there is any, and take writes again."""
        # Nobody takes part in a round meanwhile.
        if self.suspended is not None and self.committer.alone(self._rounds.resume):
            # What began before, and found the pool read-only, has ended then.
            self._synchronize()
            with self.lock:
                try:
                    self.recount()
                except ThinMetaError as error:
                    log.error("the pool stays read-only: its reservations: %s", error)
                    return
                self.modes.resume("there is room again")
            self.on_resume()

    def _device_failed(self) -> None:
        """The write-out was told of an error: have a round deal with it."""
        self.timer.kick()


class _Patience:
    """When to try again what failed: after 1, 2, 4, .. ticks, or when there is more room."""

    MOST = 32
    MORE_BYTES = 1 << 20

    def __init__(self) -> None:
        self._wait = self._left = 1
        self._free = 0

    def over(self, free: int) -> bool:
        """Another tick has passed, and so many bytes are free: whether to try."""
        if free >= self._free + self.MORE_BYTES:
            self._wait = self._left = 1
        self._left -= 1
        if self._left > 0:
            return False
        self._free = free
        self._wait = self._left = min(2 * self._wait, self.MOST)
        return True


class _Change:
    """The context of `Core.changing`. A class: a generator would take three times as long."""

    def __init__(self, core: Core, *, noted: bool) -> None:
        self._core = core
        self._noted = noted

    def __enter__(self) -> None:
        core = self._core
        core.lock.acquire()
        try:
            # Refuses when the transaction is broken, too.
            core.modes.check_writable()
        except BaseException:
            core.lock.release()
            raise
        core.begun = self._noted

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        core = self._core
        try:
            if error is not None and core.begun:
                # A command may be interrupted in the midst.
                core.broken(
                    error if isinstance(error, Exception) else TransactionBroken("interrupted")
                )
        finally:
            core.begun = False
            core.lock.release()
