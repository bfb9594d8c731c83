"""Sizes as people write them, and the limits they must keep.

Every size in the program is a count of bytes. `64K`, `10G` and `1.5T` are powers of 1024; a number
alone is bytes. Pure functions; safe from any thread.
"""

import re
from fractions import Fraction

from thinpoold.errors import InvalidSize

SECTOR = 512
MIN_BLOCK_SIZE = 64 << 10
MAX_BLOCK_SIZE = 1 << 30

# The format: a mapping holds a data block in 40 bits. A volume may be larger than its pool, but
# its mapping table is flat, so its blocks are bounded alike. NBD counts in signed 64 bits; half of
# that keeps every sum of an offset and a length inside.
MAX_BLOCKS = 1 << 40
MAX_BYTES = 1 << 62
# The format counts how often each block of a pool is used, 16,320 to a block of metadata, of which
# there can be 4,161,600: this takes half of them, and leaves the rest for mappings.
MAX_POOL_BLOCKS = 1 << 35

_UNITS = ("", "K", "M", "G", "T", "P", "E")
_SIZE = re.compile(r"([+-]?)([0-9]{1,40}(?:\.[0-9]{1,40})?)([KMGTPE]?)(?:iB|B)?", re.IGNORECASE)
HOW = "write bytes, or a number with K, M, G, T or P (powers of 1024), such as 10G"


def parse_size(text: str) -> int:
    """Return the bytes `text` stands for; raise InvalidSize for what is no whole positive size."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidSize(f"{text!r} is not a size: {HOW}")
    sign, number, unit = match.groups()
    value = Fraction(number) * 1024 ** _UNITS.index(unit.upper())
    if sign == "-":
        raise InvalidSize(f"size {text} is negative: {HOW}")
    if value.denominator != 1:
        raise InvalidSize(f"size {text} is not a whole number of bytes: {HOW}")
    return int(value)


def format_size(size: int) -> str:
    """Return `size` bytes for a person: three digits and a unit, exact where that is as short.

    >>> format_size(65536), format_size(10 << 30), format_size(1536), format_size(0)
    ('64K', '10G', '1.5K', '0')
    """
    magnitude = abs(size)
    power = 0
    # Rounded first, so that 1023.9K becomes 1M and not 1024K.
    while power < len(_UNITS) - 1 and round(magnitude / 1024**power, 0 if power else 3) >= 1024:
        power += 1
    scaled = magnitude / 1024**power
    digits = 0 if power == 0 or scaled >= 100 else 1 if scaled >= 10 else 2
    text = f"{scaled:.{digits}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return ("-" if size < 0 else "") + text + _UNITS[power]


def exact_size(size: int) -> str:
    """Return `size` bytes so that `parse_size` gives it back: the largest unit that divides it."""
    for power in range(len(_UNITS) - 1, 0, -1):
        if size and size % 1024**power == 0:
            return f"{size // 1024**power}{_UNITS[power]}"
    return str(size)


def check_block_size(size: int) -> int:
    """Return a data block size in bytes, or raise InvalidSize with the rule."""
    if size % MIN_BLOCK_SIZE or not MIN_BLOCK_SIZE <= size <= MAX_BLOCK_SIZE:
        raise InvalidSize(
            f"block size {exact_size(size)} will not do: "
            "it must be a multiple of 64K, from 64K to 1G"
        )
    return size


def check_volume_size(size: int, block_size: int = MIN_BLOCK_SIZE) -> int:
    """Return a volume's size in bytes, or raise InvalidSize with the limit.

    `block_size` is the pool's, in bytes: the limit is a count of blocks.
    """
    return _check(size, "volume", SECTOR, min(MAX_BLOCKS * block_size, MAX_BYTES))


def check_pool_size(size: int, block_size: int = MIN_BLOCK_SIZE) -> int:
    """Return a data device's size in bytes, or raise InvalidSize with the limit."""
    return _check(size, "pool", block_size, min(MAX_POOL_BLOCKS * block_size, MAX_BYTES))


def _check(size: int, what: str, least: int, most: int) -> int:
    smallest = f"{least} bytes" if least == SECTOR else exact_size(least)
    rule = f"a {what} has {smallest} to {exact_size(most)}, in steps of {SECTOR} bytes"
    if size <= 0:
        raise InvalidSize(f"{what} size {size} is {'zero' if size == 0 else 'negative'}: {rule}")
    if size % SECTOR:
        raise InvalidSize(f"{what} size {size} is not a multiple of {SECTOR} bytes: {rule}")
    if size < least:
        raise InvalidSize(f"{what} size {exact_size(size)} is too small: {rule}")
    if size > most:
        raise InvalidSize(f"{what} size {exact_size(size)} is over the format's limit: {rule}")
    return size
