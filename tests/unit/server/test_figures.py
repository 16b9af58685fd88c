"""Numbers as people read them: never more than is true, never whole before it is."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.server import figures

_UNITS = {"B": 0, "KiB": 1, "MiB": 2, "GiB": 3, "TiB": 4, "PiB": 5, "EiB": 6}


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0 B"), (1, "1 B"), (1023, "1,023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (102_399, "99.9 KiB"),
        (102_400, "100 KiB"), (1024**2 - 1, "1,023 KiB"), (1024**2, "1.0 MiB"), (120 * 1024**3, "120 GiB"),
        (-1536, "−1.5 KiB"), (2**80, "1,048,576 EiB"), (None, "–"),
    ],
)  # fmt: skip
def test_sizes(number: int | None, shown: str) -> None:
    """In binary units, as the settings have them; a tenth where it tells something."""
    assert figures.size(number) == shown


@given(st.integers(min_value=0, max_value=2**69))
def test_a_size_is_never_more_than_there_is(number: int) -> None:
    """And less by less than a tenth of what is shown."""
    amount, unit = figures.size(number).split(" ")
    shown = int(float(amount.replace(",", "")) * 10) * 1024 ** _UNITS[unit] // 10
    assert shown <= number
    assert number - shown <= max(shown, 1) // 10 + 1024 ** _UNITS[unit] // 10
    assert 1 <= float(amount.replace(",", "")) < 1024 or number == 0


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"), (0.0, "0 %"), (0.00001, "< 0.1 %"), (0.973, "97.3 %"), (0.9999, "99.9 %"), (1.0, "100 %"),
        (0.5, "50.0 %"), (2 / 3, "66.6 %"),
    ],
)  # fmt: skip
def test_ratios(value: float | None, shown: str) -> None:
    """Cut off at a tenth of a percent: 100 % means all, 0 % none."""
    assert figures.ratio(value) == shown


@given(st.integers(min_value=1, max_value=10**12), st.data())
def test_a_ratio_says_all_only_of_all(whole: int, data: st.DataObject) -> None:
    """However near it is."""
    part = data.draw(st.integers(min_value=0, max_value=whole))
    shown = figures.ratio(part / whole)
    assert (shown == "0 %") == (part == 0)
    if part == whole:
        assert shown == "100 %"
    if figures.share(part, whole) == 100:
        assert part == whole


def test_shares() -> None:
    """Whole percent, cut off, from 0 to 100; of nothing all is there."""
    pairs = ((0, 10), (1, 3), (999, 1000), (10, 10), (11, 10), (-1, 10), (0, 0))
    assert [figures.share(*pair) for pair in pairs] == [0, 33, 99, 100, 100, 0, 100]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s"), (0.9, "0 s"), (59.9, "59 s"), (60, "1 min"), (119, "1 min"), (3599, "59 min"), (3600, "1 h"),
        (3660, "1 h 1 min"), (86399, "23 h 59 min"), (86400, "1 d"), (180000, "2 d 2 h"), (-5, "0 s"),
    ],
)  # fmt: skip
def test_spans(seconds: float, shown: str) -> None:
    """The largest unit, and what is left over of hours and days."""
    assert figures.span(seconds) == shown


@given(st.integers(min_value=0, max_value=10**9))
def test_a_span_is_never_longer_than_it_was(seconds: int) -> None:
    """And shorter by less than its smallest unit."""
    units = {"s": 1, "min": 60, "h": 3600, "d": 86400}
    parts = re.findall(r"(\d+) (\w+)", figures.span(seconds))
    shown = sum(int(amount) * units[unit] for amount, unit in parts)
    assert shown <= seconds < shown + units[parts[-1][1]]


def test_times() -> None:
    """RFC 3339 with Z or an offset, with fractions of a second."""
    start = datetime(2026, 11, 24, 12, tzinfo=UTC)
    now = (start + timedelta(seconds=90)).timestamp()
    assert figures.since("2026-11-24T12:00:00Z", now) == 90
    assert figures.since("2026-11-24T14:00:00.5+02:00", now) == 89.5
    assert figures.since("2026-11-24T12:02:00Z", now) == -30
    assert figures.clock_time(now) == "2026-11-24 12:01:30 UTC"


def test_digests() -> None:
    """Enough to tell them apart; what is no digest stays as it is."""
    assert figures.short("sha256:" + "ab" * 32) == "sha256:abababababab…"
    assert figures.short("unknown") == "unknown"
    assert figures.count(1234567) == "1,234,567"
    assert figures.count(-1) == "−1"
