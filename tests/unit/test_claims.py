"""Which socket serves which connection: told by elimination, and never by guessing."""

from hypothesis import given
from hypothesis import strategies as st

from thinpoold.claims import Claims


def test_one_after_the_other_are_all_known() -> None:
    claims = Claims[str]()
    claims.add("a", {1})
    claims.add("b", {1, 2})
    claims.add("c", {1, 2, 3})
    there = {1, 2, 3}
    assert [claims.of([one], there) for one in "abc"] == [{1}, {2}, {3}]
    assert claims.of(["a", "c"], there) == {1, 3}
    assert claims.of([], there) == set()


def test_two_that_connected_before_either_opened_are_told_together_alone() -> None:
    claims = Claims[str]()
    claims.add("a", {1, 2})
    claims.add("b", {1, 2})
    assert claims.of(["a"], {1, 2}) is None
    assert claims.of(["a", "b"], {1, 2}) == {1, 2}


def test_what_is_known_of_one_tells_of_the_other() -> None:
    claims = Claims[str]()
    claims.add("a", {1, 2})
    claims.add("c", {1})
    assert claims.of(["a"], {1, 2}) == {2}
    # And when one has gone, the other is on what is left.
    claims.add("d", {3, 4})
    claims.add("e", {3, 4})
    claims.remove("e")
    assert claims.of(["d"], {1, 2, 4}) == {4}
    claims.remove("never there")


@given(st.data())
def test_nobody_elses_socket_is_ever_named(data: st.DataObject) -> None:
    claims, serves = Claims[int](), dict[int, int]()
    waiting: set[int] = set()
    for step in range(data.draw(st.integers(1, 30))):
        what = data.draw(st.sampled_from(["connect", "open", "end"]))
        if what == "connect":
            waiting.add(step)
        elif what == "open" and waiting:
            serves[step] = data.draw(st.sampled_from(sorted(waiting)))
            waiting.discard(serves[step])
            claims.add(step, {*waiting, *serves.values()})
        elif what == "end" and serves:
            gone = data.draw(st.sampled_from(sorted(serves)))
            claims.remove(gone)
            del serves[gone]
        chosen = {one for one in serves if data.draw(st.booleans())}
        found = claims.of(chosen, {*waiting, *serves.values()})
        if found is not None:
            assert found.isdisjoint(serves[one] for one in serves if one not in chosen)
            assert found >= {serves[one] for one in chosen}
        everybody = claims.of(serves, {*waiting, *serves.values()})
        assert everybody is not None
        assert everybody >= set(serves.values())
