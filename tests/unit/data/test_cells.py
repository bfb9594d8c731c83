"""Cells: overlapping ranges one after the other, in the order of their coming; others at once."""

from functools import partial

from tests.unit.data.rigs import finish, spin, threads
from thinpoold.cells import Cells


def test_disjoint_cells_are_held_together() -> None:
    cells = Cells()
    with cells.hold(0, 4), cells.hold(4, 8), cells.hold(100, 101):
        assert len(cells._line) == 3
    assert not cells._line


def _is_as_long(cells: Cells, length: int) -> bool:
    return len(cells._line) == length


def test_the_same_range_is_held_by_one_at_a_time_in_order() -> None:
    cells = Cells()
    order: list[int] = []

    def take(number: int) -> None:
        with cells.hold(3, 5):
            order.append(number)

    with threads() as pool:
        with cells.hold(4, 6):
            runs = []
            for number in range(5):
                runs.append(pool.submit(take, number))
                # It stands in line before the next one comes.
                spin(partial(_is_as_long, cells, number + 2))
            assert order == []
        finish(*runs)
    assert order == [0, 1, 2, 3, 4]


def test_a_waiting_cell_keeps_its_place_before_later_ones() -> None:
    """0-10 is held, 5-15 waits for it, 12-20 waits for that: nobody starves."""
    cells = Cells()
    order: list[str] = []

    def take(name: str, begin: int, end: int) -> None:
        with cells.hold(begin, end):
            order.append(name)

    with threads() as pool:
        with cells.hold(0, 10):
            second = pool.submit(take, "second", 5, 15)
            spin(lambda: len(cells._line) == 2)
            third = pool.submit(take, "third", 12, 20)
            spin(lambda: len(cells._line) == 3)
            take("apart", 30, 40)
            assert order == ["apart"]
        finish(second, third)
    assert order == ["apart", "second", "third"]


def test_a_cell_is_given_up_when_its_holder_fails() -> None:
    cells = Cells()
    try:
        with cells.hold(0, 1):
            raise ValueError
    except ValueError:
        pass
    with cells.hold(0, 1):
        pass


def test_many_threads_exclude_each_other() -> None:
    cells = Cells()
    owner: dict[int, int] = {}

    def run(me: int) -> None:
        for turn in range(200):
            begin = (me * 7 + turn * 3) % 16
            with cells.hold(begin, begin + 3):
                for block in range(begin, begin + 3):
                    assert owner.setdefault(block, me) == me
                for block in range(begin, begin + 3):
                    del owner[block]

    with threads() as pool:
        finish(*[pool.submit(run, me) for me in range(6)])
