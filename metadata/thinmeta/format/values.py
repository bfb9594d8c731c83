"""The values that btree leaves hold, and the format's limits.

    mapping         u64       data block (40 bits) << 24 | time (24 bits)
    device details  24 bytes  mapped_blocks u64, transaction_id u64, creation_time u32,
                              snapshotted_time u32
    ref count       u32       counts above 2, in the space maps' overflow trees
    root            u64       a metadata block: a device's tree in the top level of the mappings

Index entries of the space maps are in `bitmap`.

Thread safety: pure functions and frozen values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from construct import Int32ul, Int64ul, Struct

# On disk; do not change.
TIME_BITS: Final = 24
MAX_TIME: Final = (1 << TIME_BITS) - 1
MAX_DEVICE_ID: Final = (1 << 24) - 1
MAX_DATA_BLOCKS: Final = 1 << 40
MIN_DATA_BLOCK_SECTORS: Final = 128  # 64 KiB
MAX_DATA_BLOCK_SECTORS: Final = 2097152  # 1 GiB

MAPPING_SIZE: Final = 8
ROOT_SIZE: Final = 8
REF_COUNT_SIZE: Final = 4

DEVICE_DETAILS: Final = Struct(
    "mapped_blocks" / Int64ul,
    "transaction_id" / Int64ul,
    "creation_time" / Int32ul,
    "snapshotted_time" / Int32ul,
)
DETAILS_SIZE: Final = 24
assert DEVICE_DETAILS.sizeof() == DETAILS_SIZE


@dataclass(frozen=True, slots=True)
class DeviceDetails:
    """What the pool keeps of each thin device.

    `mapped_blocks` counts its mappings. `transaction_id` is the pool's when the device was made.
    A mapping older than `snapshotted_time` may be shared with a snapshot.
    """

    mapped_blocks: int
    transaction_id: int
    creation_time: int
    snapshotted_time: int

    def pack(self) -> bytes:
        return bytes(
            DEVICE_DETAILS.build(
                {
                    "mapped_blocks": self.mapped_blocks,
                    "transaction_id": self.transaction_id,
                    "creation_time": self.creation_time,
                    "snapshotted_time": self.snapshotted_time,
                }
            )
        )

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview) -> DeviceDetails:
        raw = DEVICE_DETAILS.parse(data)
        return cls(raw.mapped_blocks, raw.transaction_id, raw.creation_time, raw.snapshotted_time)


def pack_mapping(data_block: int, time: int) -> int:
    """The u64 that a leaf of mappings holds."""
    return data_block << TIME_BITS | time


def unpack_mapping(value: int) -> tuple[int, int]:
    """(data block, time) of the u64 in a leaf of mappings."""
    return value >> TIME_BITS, value & MAX_TIME


def check_data_block_sectors(sectors: int) -> None:
    """Raise `ValueError` unless a pool may have data blocks of this many sectors."""
    if sectors % MIN_DATA_BLOCK_SECTORS:
        raise ValueError(f"data block size of {sectors} sectors is not a multiple of 64 KiB")
    if not MIN_DATA_BLOCK_SECTORS <= sectors <= MAX_DATA_BLOCK_SECTORS:
        raise ValueError(f"data block size of {sectors} sectors is not within 64 KiB and 1 GiB")
