"""Thin devices: their details, their mappings, and the data blocks these point at.

Thread safety: belongs to the one thread that checks.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from thinmeta.check.counts import ReferenceCounts
from thinmeta.check.result import Findings
from thinmeta.check.trees import Summary, Tree, TreeWalker
from thinmeta.format.node import VALUES_WORD, values_at
from thinmeta.format.values import (
    DETAILS_SIZE,
    MAPPING_SIZE,
    MAX_DEVICE_ID,
    MAX_TIME,
    ROOT_SIZE,
    TIME_BITS,
    DeviceDetails,
    unpack_mapping,
)

_time_of: Final = MAX_TIME.__and__


class DevicesFound(NamedTuple):
    """How many devices and mappings were found, and whether all could be reached."""

    devices: int
    mappings: int
    complete: bool


class DeviceChecker:
    """Checks device and mapping trees of a pool whose time is `time`.

    Counts references to data blocks in `data`.
    """

    def __init__(
        self, walker: TreeWalker, findings: Findings, data: ReferenceCounts, time: int
    ) -> None:
        self._walker = walker
        self._findings = findings
        self._data = data
        self._time = time

    def check(self, mapping_root: int, details_root: int) -> DevicesFound:
        """The pool's devices."""
        details, all_details = self._details(details_root)
        roots, all_roots = self._roots(mapping_root)
        mappings, all_mappings = 0, True
        for device in sorted(details.keys() | roots.keys()):
            where = f"device {device}"
            if device > MAX_DEVICE_ID:
                self._findings.add("device", where, f"is above {MAX_DEVICE_ID}")
            if device not in roots:
                if all_roots:
                    self._findings.add("device", where, "has details, but no mapping tree")
                continue
            found = self._walk_mappings(device, roots[device])
            mappings += found.entries
            all_mappings &= not found.lost
            if device in details:
                self._compare(where, details[device], found)
            elif all_details:
                self._findings.add("device", where, "has a mapping tree, but no details")
        complete = all_details and all_roots and all_mappings
        return DevicesFound(len(details.keys() | roots.keys()), mappings, complete)

    def check_held(self, mapping_root: int, details_root: int) -> bool:
        """Those of the metadata snapshot; whether all could be reached.

        What they share with the pool's own is known already, so devices are not compared.
        """
        _, complete = self._details(details_root)
        roots, all_roots = self._roots(mapping_root)
        complete &= all_roots
        for device, root in roots.items():
            complete &= not self._walk_mappings(device, root).lost
        return complete

    def _details(self, root: int) -> tuple[dict[int, DeviceDetails], bool]:
        details: dict[int, DeviceDetails] = {}
        first = values_at(DETAILS_SIZE)

        def leaf(where: str, keys: list[int], data: bytearray) -> None:
            view = memoryview(data)
            for at, device in enumerate(keys):
                begin = first + at * DETAILS_SIZE
                details[device] = DeviceDetails.unpack(view[begin : begin + DETAILS_SIZE])

        found = self._walker.walk(Tree("details tree", "devices", DETAILS_SIZE, leaf), root)
        return details, not found.lost

    def _roots(self, root: int) -> tuple[dict[int, int], bool]:
        roots: dict[int, int] = {}

        def leaf(where: str, keys: list[int], data: bytearray) -> None:
            words = memoryview(data).cast("Q")
            roots.update(zip(keys, words[VALUES_WORD:], strict=False))

        found = self._walker.walk(Tree("mapping tree", "devices", ROOT_SIZE, leaf), root)
        return roots, not found.lost

    def _walk_mappings(self, device: int, root: int) -> Summary:
        name = f"mappings of device {device}"
        return self._walker.walk(Tree(name, "virtual blocks", MAPPING_SIZE, self._mappings), root)

    def _mappings(self, where: str, keys: list[int], data: bytearray) -> None:
        words = memoryview(data).cast("Q")
        values = words[VALUES_WORD : VALUES_WORD + len(keys)].tolist()
        if _is_run(values):
            # One run, as volumes written in sequence have them: three times as fast.
            missing = self._data.add_run(values[0] >> TIME_BITS, len(values))
            latest = _time_of(values[0])
        else:
            missing = self._data.add_all([value >> TIME_BITS for value in values])
            latest = max(map(_time_of, values), default=0)
        if missing or latest > self._time:
            self._tell(where, keys, values)

    def _tell(self, where: str, keys: list[int], values: list[int]) -> None:
        end = self._data.nr_blocks
        for key, value in zip(keys, values, strict=True):
            data_block, time = unpack_mapping(value)
            if data_block >= end:
                message = f"is mapped to data block {data_block}, past the end, {end}"
            elif time > self._time:
                message = f"is mapped at time {time}, but the pool's is {self._time}"
            else:
                continue
            self._findings.add("mapping", where, f"virtual block {key} {message}")

    def _compare(self, where: str, details: DeviceDetails, found: Summary) -> None:
        if not found.lost and details.mapped_blocks != found.entries:
            self._findings.add(
                "device",
                where,
                f"says it has {details.mapped_blocks} blocks mapped, but has {found.entries}",
            )
        for name, time in (
            ("created", details.creation_time),
            ("snapshotted", details.snapshotted_time),
        ):
            if time > self._time:
                self._findings.add(
                    "device", where, f"was {name} at time {time}, but the pool's is {self._time}"
                )


def _is_run(values: list[int]) -> bool:
    """Whether these are mappings of one time to consecutive data blocks."""
    if not values or values[-1] - values[0] != (len(values) - 1) << TIME_BITS:
        return False
    return values == list(range(values[0], values[-1] + 1, 1 << TIME_BITS))
