"""Sizes: parsed exactly, shown briefly, and kept inside their limits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinmeta.format.bitmap import ENTRIES_PER_BITMAP
from thinmeta.format.index import MAX_METADATA_BLOCKS
from thinpoold import sizes
from thinpoold.errors import InvalidSize

K, M, G, T = 1 << 10, 1 << 20, 1 << 30, 1 << 40


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("64K", 64 * K),
        ("64k", 64 * K),
        ("10G", 10 * G),
        ("10GiB", 10 * G),
        ("10GB", 10 * G),
        ("1.5T", 3 * T // 2),
        ("0.5K", 512),
        (" 7 ", 7),
        ("+1M", M),
        ("2P", 2 << 50),
        ("1E", 1 << 60),
    ],
)
def test_parse(text: str, size: int) -> None:
    assert sizes.parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not a size"),
        ("G", "not a size"),
        ("10Q", "not a size"),
        ("1e9", "not a size"),
        ("0x10", "not a size"),
        ("ten", "not a size"),
        ("1,5G", "not a size"),
        ("1 G", "not a size"),
        ("nan", "not a size"),
        ("٣", "not a size"),
        ("9" * 41, "not a size"),
        ("-1", "negative"),
        ("-5G", "negative"),
        ("0.3", "not a whole number"),
        ("1.0001K", "not a whole number"),
    ],
)
def test_parse_refuses_and_says_how(text: str, why: str) -> None:
    with pytest.raises(InvalidSize) as refusal:
        sizes.parse_size(text)
    assert why in str(refusal.value)
    assert "10G" in str(refusal.value)


@given(st.integers(0, 1 << 63))
def test_exact_size_parses_back(size: int) -> None:
    assert sizes.parse_size(sizes.exact_size(size)) == size


@given(st.integers(0, 1 << 63))
def test_format_is_short_and_near(size: int) -> None:
    text = sizes.format_size(size)
    assert len(text) <= 5
    shown = float(text.rstrip("KMGTPE")) * 1024 ** "KMGTPE".find(text[-1]) * 1024
    if text[-1].isdigit():
        shown = float(text)
    assert abs(shown - size) <= size * 0.006


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0"), (1023, "1023"), (1024, "1K"), (1536, "1.5K"), (M - 1, "1M"), (-G, "-1G")],
)
def test_format(size: int, text: str) -> None:
    assert sizes.format_size(size) == text


@pytest.mark.parametrize("size", [64 * K, 128 * K, 192 * K, M, G])
def test_good_block_sizes(size: int) -> None:
    assert sizes.check_block_size(size) == size


@pytest.mark.parametrize("size", [0, -64 * K, 512, 4 * K, 65 * K, 64 * K + 512, G + 64 * K, 2 * G])
def test_bad_block_sizes_are_refused_with_the_rule(size: int) -> None:
    with pytest.raises(InvalidSize, match="multiple of 64K, from 64K to 1G"):
        sizes.check_block_size(size)


@pytest.mark.parametrize(
    ("size", "why"),
    [
        (0, "is zero"),
        (-512, "is negative"),
        (513, "not a multiple of 512"),
        ((1 << 56) + 512, "over the format's limit"),
        (1 << 80, "over the format's limit"),
    ],
)
def test_bad_volume_sizes_are_refused_with_the_limit(size: int, why: str) -> None:
    with pytest.raises(InvalidSize) as refusal:
        sizes.check_volume_size(size)
    assert why in str(refusal.value)
    assert "512 bytes to 64P, in steps of 512 bytes" in str(refusal.value)


def test_the_limit_grows_with_the_block_size() -> None:
    assert sizes.check_volume_size(1 << 56) == 1 << 56
    assert sizes.check_volume_size(1 << 57, 128 * K) == 1 << 57
    assert sizes.check_volume_size(512) == 512
    with pytest.raises(InvalidSize, match="to 4E"):
        sizes.check_volume_size(1 << 63, G)


def test_a_pool_has_room_for_a_block() -> None:
    assert sizes.check_pool_size(64 * K) == 64 * K
    with pytest.raises(InvalidSize, match="too small: a pool has 64K to 2P"):
        sizes.check_pool_size(32 * K)
    with pytest.raises(InvalidSize, match="too small"):
        sizes.check_pool_size(64 * K, M)


def test_the_counts_of_a_pool_s_blocks_leave_room_for_mappings() -> None:
    assert sizes.check_pool_size(1 << 51) == 1 << 51
    assert sizes.check_pool_size(1 << 52, 128 * K) == 1 << 52
    with pytest.raises(InvalidSize, match="over the format's limit: a pool has 64K to 2P"):
        sizes.check_pool_size((1 << 51) + 512)
    bitmaps = sizes.MAX_POOL_BLOCKS // ENTRIES_PER_BITMAP
    assert bitmaps < 0.51 * MAX_METADATA_BLOCKS
