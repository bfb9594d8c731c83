"""Thin devices: their roots and details, in memory while they are used.

Invariants

1. A device's root and details on disk may lag behind those in memory until `save`, which every
   commit calls first.  Devices are added and removed on disk at once.
2. What a new device costs does not grow with the number of devices.

Thread safety: the caller holds the metadata lock.
"""

from __future__ import annotations

from dataclasses import dataclass

from thinmeta.btree import Tree
from thinmeta.errors import AlreadyExists, Corrupt, NoMetadataSpace, NotFound
from thinmeta.format.values import MAX_DEVICE_ID, DeviceDetails
from thinmeta.thin.values import DetailsValues, RootValues
from thinmeta.transaction import TransactionManager


@dataclass(slots=True)
class Device:
    """A thin device in memory; the fields are those of `DeviceDetails`, and its tree's root."""

    dev_id: int
    root: int
    mapped_blocks: int
    transaction_id: int
    creation_time: int
    snapshotted_time: int

    def details(self) -> DeviceDetails:
        """The details as they are stored."""
        return DeviceDetails(
            self.mapped_blocks, self.transaction_id, self.creation_time, self.snapshotted_time
        )


class Devices:
    """All thin devices of a pool.  `roots` and `details` are the roots of the two trees."""

    def __init__(
        self, tm: TransactionManager, roots: int | None = None, details: int | None = None
    ) -> None:
        self._roots = Tree(tm, RootValues(tm))
        self._details = Tree(tm, DetailsValues())
        self.roots = self._roots.empty() if roots is None else roots
        self.details = self._details.empty() if details is None else details
        self._loaded: dict[int, Device] = {}
        self._own: set[int] = set()
        self._highest_removed = -1
        # How many devices there are, None until somebody asks; and an id below which none is free.
        self._count: int | None = None
        self._none_free_below = 0
        self._changed: set[int] = set()

    def ids(self) -> list[int]:
        """All device ids, ascending."""
        return list(self._details.keys(self.details))

    def check_room(self, count: int) -> None:
        """Raise `NoMetadataSpace` unless there are ids for so many devices more."""
        if self._highest() + count <= MAX_DEVICE_ID:
            # There is room above all of them: nobody need count.
            return
        if self._count is None:
            self._count = len(self.ids())
        if self._count + count > MAX_DEVICE_ID + 1:
            raise NoMetadataSpace(f"the format allows {MAX_DEVICE_ID + 1} volumes in a pool")

    def unused_id(self) -> int:
        """An id above all in use, or the first free one.  Raises `AlreadyExists` if none is.

        It is above those that were removed, too: until the commit an id may still mean its former
        device to whoever noted it.
        """
        highest = max(self._highest(), self._highest_removed)
        return highest + 1 if highest < MAX_DEVICE_ID else self._first_free()

    def _highest(self) -> int:
        """The highest id in use, or -1."""
        last = self._details.last_key(self.details)
        return -1 if last is None else last

    def _first_free(self) -> int:
        free = self._none_free_below
        for dev_id in self._details.keys(self.details, free):
            if dev_id != free:
                break
            free += 1
        self._none_free_below = free
        if free > MAX_DEVICE_ID:
            raise AlreadyExists("all device ids are in use")
        return free

    def get(self, dev_id: int) -> Device:
        """The device, for reading.  Raises `NotFound`."""
        device = self._loaded.get(dev_id)
        if device is None:
            device = self._loaded[dev_id] = self._load(dev_id)
        return device

    def for_change(self, dev_id: int) -> Device:
        """The device, whose root and details the caller will change.  Raises `NotFound`."""
        if dev_id in self._changed:
            return self._loaded[dev_id]
        device = self.get(dev_id)
        if dev_id not in self._own:
            self._take_over(device)
        self._changed.add(dev_id)
        return device

    def add(self, device: Device) -> None:
        """A new device; its root is the caller's, counted for it.  Raises `AlreadyExists`."""
        self.check_unused(device.dev_id)
        self.roots = self._roots.insert(self.roots, device.dev_id, device.root)
        self.details = self._details.insert(self.details, device.dev_id, device.details())
        self._count = self._count + 1 if self._count is not None else None
        self._loaded[device.dev_id] = device
        self._own.add(device.dev_id)

    def remove(self, dev_id: int) -> Device:
        """Take the device out; letting go of its tree is the caller's.  Raises `NotFound`."""
        device = self.for_change(dev_id)
        self.roots = self._roots.remove(self.roots, dev_id)
        self.details = self._details.remove(self.details, dev_id)
        self._highest_removed = max(self._highest_removed, dev_id)
        self._count = self._count - 1 if self._count is not None else None
        self._none_free_below = min(self._none_free_below, dev_id)
        self._loaded.pop(dev_id)
        self._own.discard(dev_id)
        self._changed.discard(dev_id)
        return device

    def check_unused(self, dev_id: int) -> None:
        """Raise `AlreadyExists` if the id is taken, `ValueError` if it cannot be one."""
        if not 0 <= dev_id <= MAX_DEVICE_ID:
            raise ValueError(f"device id {dev_id} is not within 0 and {MAX_DEVICE_ID}")
        if self._details.lookup(self.details, dev_id) is not None:
            raise AlreadyExists(f"device {dev_id} exists")

    def save(self) -> None:
        """Bring the trees up to the devices in memory."""
        for dev_id in sorted(self._changed):
            device = self._loaded[dev_id]
            self.roots = self._roots.insert(self.roots, dev_id, device.root)
            self.details = self._details.insert(self.details, dev_id, device.details())
        self._changed.clear()

    def _load(self, dev_id: int) -> Device:
        details = self._details.lookup(self.details, dev_id)
        if details is None:
            raise NotFound(f"no device {dev_id}")
        root = self._roots.lookup(self.roots, dev_id)
        if root is None:
            raise Corrupt("node", f"device {dev_id}", "has details, but no mapping tree")
        return Device(
            dev_id,
            root,
            details.mapped_blocks,
            details.transaction_id,
            details.creation_time,
            details.snapshotted_time,
        )

    def _take_over(self, device: Device) -> None:
        """Make the way to the device's root this tree's own.

        Where a metadata snapshot of the kernel's shares the upper tree, that counts the root once
        more, and so keeps the snapshot's devices from being changed in place.
        """
        self.roots = self._roots.insert(self.roots, device.dev_id, device.root)
        self._own.add(device.dev_id)
