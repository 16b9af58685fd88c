"""Rate limits and Retry-After as upstreams write them, and what may be pulled."""

from dataclasses import replace
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.policy.access import ANONYMOUS, own_principal, public_principal
from proxy.policy.budget import (
    Budget,
    Wanted,
    allows,
    announced,
    limit_of,
    limit_of_pulls,
    reserved,
    retry_after,
    speaks_of_pulls,
)

NOW = 1_800_000_000.0
HUB = {
    "ratelimit-limit": "100;w=21600",
    "ratelimit-remaining": "76;w=21600",
    "docker-ratelimit-source": "192.0.2.1",
}
BUDGET = Budget(76, 100, 21600.0, NOW, "192.0.2.1")


def test_docker_hubs_form() -> None:
    """Both numbers with their window, and whom they are counted for."""
    assert announced(HUB, NOW) == BUDGET
    assert speaks_of_pulls(HUB)


@pytest.mark.parametrize(
    ("value", "left", "window"),
    [("76;w=21600", 76, 21600), ("0;w=21600", 0, 21600), ("100", 100, None), (" 5;w=1 ", 5, 1), ("5;w=0", 5, None),
     ("76; w=21600", 76, 21600), ("7;w=999999999", 7, 86400)],
)  # fmt: skip
def test_what_is_left(value: str, left: int, window: float | None) -> None:
    """A number, and its window where there is one; nobody is believed for more than a day."""
    assert announced({"ratelimit-remaining": value}, NOW) == Budget(left, None, window, NOW)


@pytest.mark.parametrize(
    "value",
    ["", "-1", "x", "1.5", "76;w=", "76;w=x", "76;q=1", "1" * 13, "1;w=" + "1" * 13, "٥", "76,w=1", "76;w=1;w=2"],
)
def test_what_is_malformed_announces_nothing(value: str) -> None:
    """Neither does what is not there: none of the headers means unlimited."""
    assert announced(HUB | {"ratelimit-remaining": value}, NOW) is None
    assert announced({"ratelimit-limit": "100;w=21600"}, NOW) is None
    assert announced({}, NOW) is None


def test_a_malformed_part_takes_nothing_from_the_rest() -> None:
    """What is left counts without the limit, the window or the source."""
    broken = {"ratelimit-limit": "many", "ratelimit-remaining": "5;w=60", "docker-ratelimit-source": "a\tb"}
    assert announced(broken, NOW) == Budget(5, None, 60.0, NOW)
    assert announced({"ratelimit-limit": "9;w=60", "ratelimit-remaining": "5"}, NOW) == Budget(5, 9, 60.0, NOW)
    assert announced(HUB | {"docker-ratelimit-source": "x" * 65}, NOW) == replace(BUDGET, source=None)


@pytest.mark.parametrize("prefix", ["ratelimit", "x-ratelimit"])
@pytest.mark.parametrize(
    ("reset", "window"),
    [
        ("1800000030", 30),
        ("30", 30),
        ("1799999999", None),
        ("0", None),
        ("soon", None),
        ("9" * 12, 86400),
        ("-5", None),
    ],
)
def test_plain_numbers_with_a_reset(prefix: str, reset: str, window: float | None) -> None:
    """In Unix seconds as GitLab writes it, or in seconds from now; one that is over says nothing."""
    headers = {f"{prefix}-limit": "600", f"{prefix}-remaining": "594", f"{prefix}-reset": reset}
    assert announced(headers, NOW) == Budget(594, 600, window, NOW)
    assert not speaks_of_pulls(headers)


@given(st.dictionaries(
    st.sampled_from([f"{x}ratelimit-{what}" for x in ("", "x-") for what in ("limit", "remaining", "reset")]),
    st.text() | st.from_regex(r"[0-9]{0,14}(;w=[0-9]{0,14})?", fullmatch=True),
))  # fmt: skip
def test_no_headers_make_it_raise(headers: dict[str, str]) -> None:
    """Upstreams send what they like; what is taken from it is possible."""
    budget = announced(headers, NOW)
    if budget is not None:
        assert 0 <= budget.remaining < 10**12
        assert budget.limit is None or 0 <= budget.limit < 10**12
        assert 0 < budget.life <= 86400
        assert not budget.is_over(NOW)


@given(st.integers(0, 10**12 - 1), st.integers(0, 10**12 - 1), st.integers(1, 86400))
def test_what_is_written_is_read(limit: int, remaining: int, window: int) -> None:
    """In Docker Hub's form."""
    headers = {"ratelimit-limit": f"{limit};w={window}", "ratelimit-remaining": f"{remaining};w={window}"}
    assert announced(headers, NOW) == Budget(remaining, limit, float(window), NOW)


# What it allows.


@pytest.mark.parametrize(
    ("left", "wanted", "may"),
    [(11, "cached", True), (10, "cached", False), (0, "cached", False), (11, "background", True),
     (10, "background", False), (10, "uncached", True), (0, "uncached", True), (1, "check", True), (0, "check", False)],
)  # fmt: skip
def test_the_reserve_is_for_what_is_not_cached(left: int, wanted: Wanted, may: bool) -> None:
    """At or below it nothing else is pulled; HEADs in the background go on while anything is left."""
    assert allows(replace(BUDGET, remaining=left), NOW + 1, 0.1, wanted) is may


@pytest.mark.parametrize("wanted", ["cached", "uncached", "background", "check"])
def test_after_its_window_a_budget_says_nothing(wanted: Wanted) -> None:
    """Nor where the clock was set back, nor where none was announced."""
    spent = replace(BUDGET, remaining=0)
    assert allows(spent, NOW + 21600, 1.0, wanted)
    assert allows(spent, NOW - 1, 1.0, wanted)
    assert allows(None, NOW, 1.0, wanted)


def test_without_a_window_it_counts_for_a_minute() -> None:
    """The shortest window that is documented."""
    spent = Budget(0, None, None, NOW)
    assert not allows(spent, NOW + 59, 0.1, "cached")
    assert allows(spent, NOW + 60, 0.1, "cached")


@pytest.mark.parametrize(
    ("limit", "reserve", "pulls"), [(100, 0.1, 10), (200, 0.07, 14), (9, 0.1, 0), (None, 0.5, 0), (100, 1.0, 100)]
)
def test_how_many_are_kept(limit: int | None, reserve: float, pulls: int) -> None:
    """Whole pulls of the limit that was announced; none where the upstream does not say."""
    assert reserved(replace(BUDGET, limit=limit), reserve) == pulls


@given(st.integers(0, 1000), st.integers(0, 1000), st.floats(0, 1))
def test_no_reserve_keeps_an_image_out_that_is_not_cached(left: int, limit: int, reserve: float) -> None:
    """And what a pull in the background may do, one instead of what is cached may."""
    budget = Budget(left, limit, 60.0, NOW)
    assert allows(budget, NOW, reserve, "uncached")
    assert allows(budget, NOW, reserve, "background") == allows(budget, NOW, reserve, "cached")
    assert allows(budget, NOW, reserve, "check") >= allows(budget, NOW, reserve, "cached")


def test_whose_limit_it_is() -> None:
    """Of the credential that is sent; pulls count against the one that is lent."""
    own = own_principal(b"key", "docker.io", "robot")
    public = public_principal(own)
    assert limit_of("docker.io", public) == limit_of("docker.io", ANONYMOUS) != limit_of("ghcr.io", ANONYMOUS)
    assert limit_of_pulls("docker.io", public) == limit_of_pulls("docker.io", own) == limit_of("docker.io", own)


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
