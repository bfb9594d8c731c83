"""Splitting requests: what comes out covers what went in, once."""

from hypothesis import given
from hypothesis import strategies as st

from thinpoold.requests import Span, blocks_of, split


@given(
    st.integers(1, 64).map(lambda n: n * 7),
    st.integers(1, 3000),
    st.data(),
)
def test_the_parts_cover_the_request_once(block: int, size: int, data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, size))
    count = data.draw(st.integers(0, size - offset))
    head, begin, end, tail = split(offset, count, block, size)
    body = (begin * block, min(end * block, size)) if end > begin else (begin * block,) * 2
    covered = [*range(head.offset, head.offset + head.length)]
    covered += range(*body)
    covered += range(tail.offset, tail.offset + tail.length)
    assert covered == list(range(offset, offset + count))
    # The edges fill no block.
    for span in (head, tail):
        for number in range(span.offset // block, -(-(span.offset + span.length) // block)):
            first, last = number * block, min((number + 1) * block, size)
            assert not (span.offset <= first and last <= span.offset + span.length) or not count


def test_within_a_block_all_is_head() -> None:
    assert split(10, 20, 100, 1000) == (Span(10, 20), 1, 1, Span(30, 0))


def test_the_last_block_may_be_cut_short_by_the_end() -> None:
    head, begin, end, tail = split(50, 100, 100, 150)
    assert (head, begin, end, tail) == (Span(50, 50), 1, 2, Span(150, 0))
    assert split(100, 40, 100, 150).edges == [Span(100, 40)]


def test_blocks_of() -> None:
    assert blocks_of(0, 1, 100) == (0, 1)
    assert blocks_of(99, 2, 100) == (0, 2)
    assert blocks_of(100, 100, 100) == (1, 2)
