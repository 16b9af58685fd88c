"""Rate limits and Retry-After as upstreams write them."""

from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.policy.budget import ratelimit_remaining, retry_after

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("value", "left"),
    [("76;w=21600", 76), ("0;w=21600", 0), ("100", 100), (" 5;w=1 ", 5), ("", None), ("-1", None), ("x", None),
     ("1.5", None), ("76;w=", None), ("1" * 13, None), ("76; w=21600", None)],
)  # fmt: skip
def test_what_docker_hub_says_is_left(value: str, left: int | None) -> None:
    """A number and its window; anything else announces nothing."""
    assert ratelimit_remaining({"ratelimit-remaining": value}) == left


def test_without_the_header_nothing_is_limited() -> None:
    """None of the headers means unlimited."""
    assert ratelimit_remaining({}) is None


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("120", 120), (" 0 ", 0), ("Fri, 15 Jan 2027 08:01:00 GMT", 60), ("Fri, 15 Jan 2027 08:01:00 -0000", 60),
     ("Fri, 15 Jan 2027 07:00:00 GMT", 0), ("Friday, 15-Jan-27 08:01:00 GMT", 60), ("", None), (None, None),
     ("soon", None), ("-5", None), ("1.5", None), ("Fri, 99 Jan 2027 08:01:00 GMT", None), ("٥", None)],
)  # fmt: skip
def test_retry_after_in_both_forms(header: str | None, seconds: float | None) -> None:
    """Seconds or an HTTP date; a date that is over means now, and garbage means nothing."""
    assert retry_after(header, NOW) == seconds


@given(st.datetimes(timezones=st.timezones()))
def test_any_date_reads_back(date: object) -> None:
    """What email.utils writes it reads, and the wait is never negative."""
    from datetime import datetime

    assert isinstance(date, datetime)
    wait = retry_after(format_datetime(date), NOW)
    assert wait is None or wait >= 0


@given(st.text())
def test_no_text_makes_it_raise(text: str) -> None:
    """Upstreams send what they like."""
    wait = retry_after(text, NOW)
    assert wait is None or wait >= 0


@pytest.mark.parametrize("date", ["Mon, 01 Jan 99999999999 00:00:00 GMT", "Mon, 01 Jan 2024 00:00:00 +99999999999999"])
def test_a_date_beyond_the_calendar_means_nothing(date: str) -> None:
    """Not an OverflowError."""
    assert retry_after(date, NOW) is None
