"""The mapping table: runs, drops, and memory that is only used where it was touched."""

from hypothesis import given
from hypothesis import strategies as st

from thinpoold.mapping_table import DATA_SHIFT, IN_PLACE, PRESENT, MappingTable

BLOCKS = 3000  # several pages of entries, the last one in part


def test_a_new_table_knows_nothing() -> None:
    assert not any(MappingTable(BLOCKS).entries)


def test_a_run_is_consecutive() -> None:
    table = MappingTable(BLOCKS)
    table.set_run(5, 70, 3, writable=True)
    table.set_run(8, 9, 1, writable=False)
    assert [table.entries[n] for n in range(4, 10)] == [
        0,
        70 << DATA_SHIFT | IN_PLACE,
        71 << DATA_SHIFT | IN_PLACE,
        72 << DATA_SHIFT | IN_PLACE,
        9 << DATA_SHIFT | PRESENT,
        0,
    ]


@given(st.integers(0, BLOCKS), st.integers(0, BLOCKS))
def test_dropping_a_range_drops_just_that(one: int, other: int) -> None:
    begin, end = sorted((one, other))
    table = MappingTable(BLOCKS)
    table.set_run(0, 1, BLOCKS, writable=True)
    table.drop_range(begin, end)
    for block, entry in enumerate(table.entries):
        assert bool(entry) != (begin <= block < end)
    table.close()


def test_dropping_everything() -> None:
    table = MappingTable(BLOCKS)
    table.set_run(0, 1, BLOCKS, writable=True)
    table.drop()
    assert not any(table.entries)


def test_a_huge_table_costs_nothing_until_it_is_used() -> None:
    table = MappingTable(1 << 40)
    table.set_run((1 << 40) - 1, (1 << 40) - 1, 1, writable=True)
    assert table.entries[(1 << 40) - 1] >> DATA_SHIFT == (1 << 40) - 1
    assert table.entries[1 << 39] == 0
    table.close()


def test_memory_is_told_by_the_page() -> None:
    table = MappingTable(1 << 30)
    assert table.resident_bytes() == 0
    assert table.limit_bytes == 8 << 30
    # In two of the portions that are looked at.
    for begin, count in ((0, 513), ((1 << 30) - 5, 5)):
        table.set_run(begin, 1, count, writable=True)
    assert table.resident_bytes() == 3 * 4096
    table.drop()
    assert table.resident_bytes() == 0


def test_a_table_with_every_block_takes_eight_bytes_each() -> None:
    table = MappingTable(1 << 20)
    table.set_run(0, 1, 1 << 20, writable=True)
    assert table.resident_bytes() == table.limit_bytes == 8 << 20
