"""The superblock: block 0, from which everything is found.

    byte   0  csum, flags, blocknr     u32 u32 u64    flags bit 0: needs_check
    byte  16  uuid                     16 bytes
    byte  32  magic                    u64            27022010
    byte  40  version, time            u32 u32        2; time goes up by one at each snapshot
    byte  48  transaction_id           u64            the user's, see `DeviceDetails`
    byte  56  held_root                u64            the metadata snapshot's superblock, 0 = none
    byte  64  data_space_map_root      128 bytes      a space map root, zeros behind it
    byte 192  metadata_space_map_root  128 bytes      likewise
    byte 320  data_mapping_root        u64            tree: device id -> root of its mappings
    byte 328  device_details_root      u64            tree: device id -> details
    byte 336  data_block_size          u32            in 512-byte sectors
    byte 340  metadata_block_size      u32            in 512-byte sectors: 8
    byte 344  metadata_nr_blocks       u64
    byte 352  compat, compat_ro, incompat flags       u32 each

A space map root is nr_blocks, nr_allocated, bitmap_root, ref_count_root, each u64.

Thread safety: pure functions and frozen values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from construct import Bytes, Int32ul, Int64ul, Padded, Struct

from thinmeta.errors import Corrupt, UnsupportedFormat
from thinmeta.format.block import BLOCK_SECTORS, BLOCK_SIZE
from thinmeta.format.values import check_data_block_sectors

# On disk; do not change.
SUPERBLOCK_BLOCK: Final = 0
MAGIC: Final = 27022010
VERSION: Final = 2
NEEDS_CHECK_FLAG: Final = 1
SPACE_MAP_ROOT_SIZE: Final = 128
UUID_SIZE: Final = 16

SPACE_MAP_ROOT: Final = Struct(
    "nr_blocks" / Int64ul,
    "nr_allocated" / Int64ul,
    "bitmap_root" / Int64ul,
    "ref_count_root" / Int64ul,
)
SUPERBLOCK: Final = Struct(
    "csum" / Int32ul,
    "flags" / Int32ul,
    "blocknr" / Int64ul,
    "uuid" / Bytes(UUID_SIZE),
    "magic" / Int64ul,
    "version" / Int32ul,
    "time" / Int32ul,
    "transaction_id" / Int64ul,
    "held_root" / Int64ul,
    "data_space_map_root" / Padded(SPACE_MAP_ROOT_SIZE, SPACE_MAP_ROOT),
    "metadata_space_map_root" / Padded(SPACE_MAP_ROOT_SIZE, SPACE_MAP_ROOT),
    "data_mapping_root" / Int64ul,
    "device_details_root" / Int64ul,
    "data_block_size" / Int32ul,
    "metadata_block_size" / Int32ul,
    "metadata_nr_blocks" / Int64ul,
    "compat_flags" / Int32ul,
    "compat_ro_flags" / Int32ul,
    "incompat_flags" / Int32ul,
)
assert SPACE_MAP_ROOT.sizeof() == 32
assert SUPERBLOCK.sizeof() == 364


@dataclass(frozen=True, slots=True)
class SpaceMapRoot:
    """Where a space map lies: counts in blocks, roots as metadata block numbers.

    `bitmap_root` is a btree's root for the data space map, the index block for the metadata's.
    """

    nr_blocks: int
    nr_allocated: int
    bitmap_root: int
    ref_count_root: int


@dataclass(frozen=True, slots=True)
class Superblock:
    """The superblock's fields, but for those that `seal` and the format version settle."""

    data_space_map: SpaceMapRoot
    metadata_space_map: SpaceMapRoot
    mapping_root: int
    details_root: int
    data_block_sectors: int
    metadata_nr_blocks: int
    uuid: bytes = bytes(UUID_SIZE)
    flags: int = 0
    time: int = 0
    transaction_id: int = 0
    held_root: int = 0
    compat_flags: int = 0

    @property
    def needs_check(self) -> bool:
        return bool(self.flags & NEEDS_CHECK_FLAG)

    def pack(self) -> bytearray:
        """The superblock as a block, to be sealed."""
        built = SUPERBLOCK.build(
            {
                "csum": 0,
                "flags": self.flags,
                "blocknr": SUPERBLOCK_BLOCK,
                "uuid": self.uuid,
                "magic": MAGIC,
                "version": VERSION,
                "time": self.time,
                "transaction_id": self.transaction_id,
                "held_root": self.held_root,
                "data_space_map_root": _root_fields(self.data_space_map),
                "metadata_space_map_root": _root_fields(self.metadata_space_map),
                "data_mapping_root": self.mapping_root,
                "device_details_root": self.details_root,
                "data_block_size": self.data_block_sectors,
                "metadata_block_size": BLOCK_SECTORS,
                "metadata_nr_blocks": self.metadata_nr_blocks,
                "compat_flags": self.compat_flags,
                "compat_ro_flags": 0,
                "incompat_flags": 0,
            }
        )
        block = bytearray(BLOCK_SIZE)
        block[: len(built)] = built
        return block

    @classmethod
    def unpack(cls, data: bytes | bytearray) -> Superblock:
        """Read a block that `verify` has accepted as a superblock.

        Raises `UnsupportedFormat` for another version or features unknown here, and `Corrupt`
        ('superblock') for fields that cannot be.
        """
        raw = SUPERBLOCK.parse(data)
        if raw.magic != MAGIC:
            raise Corrupt("superblock", "superblock", f"magic is {raw.magic}, not {MAGIC}")
        if raw.version != VERSION:
            raise UnsupportedFormat(
                f"metadata is of version {raw.version}; this program knows version {VERSION}"
            )
        # No feature of either set was ever defined, so compat_ro ('read, but do not write') is
        # not worth a read-only mode of its own.
        unknown = raw.incompat_flags or raw.compat_ro_flags
        if unknown:
            raise UnsupportedFormat(f"metadata uses unknown features (flags {unknown:#x})")
        if raw.metadata_block_size != BLOCK_SECTORS:
            raise Corrupt(
                "superblock",
                "superblock",
                f"metadata block size is {raw.metadata_block_size} sectors, not {BLOCK_SECTORS}",
            )
        try:
            check_data_block_sectors(raw.data_block_size)
        except ValueError as error:
            raise Corrupt("superblock", "superblock", str(error)) from None
        return cls(
            data_space_map=_space_map_root(raw.data_space_map_root),
            metadata_space_map=_space_map_root(raw.metadata_space_map_root),
            mapping_root=raw.data_mapping_root,
            details_root=raw.device_details_root,
            data_block_sectors=raw.data_block_size,
            metadata_nr_blocks=raw.metadata_nr_blocks,
            uuid=bytes(raw.uuid),
            flags=raw.flags,
            time=raw.time,
            transaction_id=raw.transaction_id,
            held_root=raw.held_root,
            compat_flags=raw.compat_flags,
        )


def _root_fields(root: SpaceMapRoot) -> dict[str, int]:
    return {
        "nr_blocks": root.nr_blocks,
        "nr_allocated": root.nr_allocated,
        "bitmap_root": root.bitmap_root,
        "ref_count_root": root.ref_count_root,
    }


def _space_map_root(raw: dict[str, int]) -> SpaceMapRoot:
    return SpaceMapRoot(**{name: raw[name] for name in SpaceMapRoot.__slots__})
