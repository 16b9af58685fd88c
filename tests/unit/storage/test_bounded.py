"""What is kept in memory keeps to its bytes, and what is used stays."""

from hypothesis import given
from hypothesis import strategies as st

from proxy.storage.bounded import Bounded


def filled(limit: int, size: int, count: int) -> Bounded[int, int]:
    table: Bounded[int, int] = Bounded(limit)
    for number in range(count):
        table.put(number, number, size)
    return table


def test_the_oldest_go_first() -> None:
    """Of those that nobody used."""
    table = filled(10_000, 700, 11)
    assert [table.get(number) for number in range(11)] == [None, *range(1, 11)]
    assert table.size <= 10_000


def test_what_is_used_outlives_a_flood() -> None:
    """Entries that come once and never again push out each other."""
    table = filled(10_000, 700, 5)
    for number in range(100, 1000):
        assert table.get(3) == 3
        table.put(number, number, 700)
    assert table.get(3) == 3
    assert table.get(4) is None


def test_nobody_waits_while_all_are_looked_through() -> None:
    """Where every entry was used, a few have another turn at a time, and the next one leaves all the same."""
    table = filled(1_000_000, 700, 1000)
    for number in range(1000):
        table.get(number)
    table.put(-1, -1, 700)
    assert len(table) == 1000
    assert sum(entry.used for entry in table._entries.values()) > 900


def test_what_is_too_large_is_not_kept() -> None:
    """Nor what was there under its key: it is old."""
    table = filled(10_000, 700, 3)
    table.put(1, -1, 5_000)
    assert [table.get(number) for number in range(3)] == [0, None, 2]


def test_a_new_value_takes_the_place_of_the_old() -> None:
    """And is counted in its stead."""
    table = filled(10_000, 700, 1)
    size = table.size
    for _ in range(50):
        table.put(0, 7, 700)
    assert (table.get(0), table.size, len(table)) == (7, size, 1)


def test_a_lower_limit_counts_at_once() -> None:
    """Down to nothing at all."""
    table = filled(10_000, 700, 9)
    table.limit(2_000)
    assert 0 < table.size <= 2_000
    table.limit(0)
    assert (table.size, len(table)) == (0, 0)
    table.put(1, 1, 0)
    assert table.get(1) is None


@given(st.lists(st.tuples(st.sampled_from("pgd"), st.integers(0, 20), st.integers(0, 3000)), max_size=60))
def test_it_never_has_more_than_its_limit(steps: list[tuple[str, int, int]]) -> None:
    """And what it gives is what was put last."""
    table: Bounded[int, int] = Bounded(8_000)
    last: dict[int, int] = {}
    for step, (what, key, size) in enumerate(steps):
        if what == "p":
            table.put(key, step, size)
            last[key] = step
        elif what == "d":
            table.drop(key)
        else:
            assert table.get(key) in (None, last.get(key))
        assert 0 <= table.size <= 8_000
    for key in range(21):
        table.drop(key)
    assert table.size == 0
