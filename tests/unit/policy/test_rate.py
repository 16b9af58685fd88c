"""Token buckets: what may be used at once, and how long the rest waits."""

from hypothesis import given
from hypothesis import strategies as st

from proxy.policy.rate import Bucket


def test_a_burst_is_had_at_once() -> None:
    """Then the rate counts."""
    bucket = Bucket(rate=2, burst=4)
    assert [bucket.take(1, 0.0) for _ in range(6)] == [0, 0, 0, 0, 0.5, 1.0]


def test_turns_are_in_the_order_of_asking() -> None:
    """Who asks later waits for what those before it have overdrawn."""
    bucket = Bucket(rate=10, burst=10)
    assert bucket.take(30, 0.0) == 2.0
    assert bucket.take(1, 0.0) == 2.1
    assert bucket.take(1, 2.1) == 0.1


def test_a_pause_fills_it_to_the_burst() -> None:
    """And no further, however long."""
    bucket = Bucket(rate=1, burst=3)
    bucket.take(3, 0.0)
    assert bucket.take(3, 1000.0) == 0
    assert bucket.take(1, 1000.0) == 1


def test_what_would_wait_too_long_is_not_taken() -> None:
    """Those who are refused do not make others wait."""
    bucket = Bucket(rate=1, burst=1)
    assert bucket.take_within(1, 0.0, 2) == (True, 0)
    assert bucket.take_within(1, 0.0, 2) == (True, 1)
    assert [bucket.take_within(2, 0.0, 2) for _ in range(3)] == [(False, 3)] * 3
    assert bucket.take_within(1, 0.0, 2) == (True, 2)


def test_what_was_given_back_is_had_again() -> None:
    """Its client left before its turn."""
    bucket = Bucket(rate=1, burst=1)
    bucket.take(5, 0.0)
    bucket.give_back(5)
    assert bucket.take(1, 0.0) == 0


def test_a_clock_that_stands_still_or_goes_back_gives_nothing() -> None:
    """Only time that passed counts."""
    bucket = Bucket(rate=1, burst=1)
    assert bucket.take(1, 5.0) == 0
    assert bucket.take(1, 4.0) == 1


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, 5)), min_size=1, max_size=50))
def test_over_time_nobody_gets_more_than_the_rate(steps: list[tuple[float, int]]) -> None:
    """Whatever is asked for whenever: what is covered by a time is the burst and what came since, no more."""
    bucket, now, taken = Bucket(rate=2, burst=6), 0.0, 0
    for pause, count in steps:
        now += pause
        wait = bucket.take(count, now)
        taken += count
        assert taken <= 6 + 2 * (now + wait) + 1e-6
