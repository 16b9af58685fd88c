"""Byte ranges, against an oracle that lists every offset."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.oci.ranges import RangeUnsatisfiable, parse_range

SMALL = st.integers(0, 40)


def offsets(header: str, size: int) -> list[int] | None:
    """The oracle: which offsets the RFC's words name, one by one; None where the range is to be ignored."""
    first, last = header.removeprefix("bytes=").split("-")
    if first == last == "" or size == 0:
        return None
    if first == "":
        return [offset for offset in range(size) if offset >= size - int(last)]
    return [offset for offset in range(size) if int(first) <= offset and (not last or offset <= int(last))]


@given(SMALL | st.just(""), SMALL | st.just(""), st.integers(0, 30))
def test_a_range_means_the_offsets_the_rfc_says(first: int | str, last: int | str, size: int) -> None:
    """Every form, every clamp: the same offsets as the oracle's; none at all is 416."""
    header = f"bytes={first}-{last}"
    wanted = offsets(header, size)
    try:
        span = parse_range(header, size)
    except RangeUnsatisfiable:
        assert wanted == []
        return
    assert (None if span is None else list(range(*span))) == wanted


@given(st.text(max_size=40) | st.from_regex(r"bytes=[0-9, -]{0,60}", fullmatch=True), st.integers(0, 1 << 50))
def test_any_header_gives_a_range_inside_the_body(header: str, size: int) -> None:
    """Whatever is sent: a non-empty span inside the body, the whole body, or 416; never another exception."""
    try:
        span = parse_range(header, size)
    except RangeUnsatisfiable:
        return
    assert span is None or 0 <= span[0] < span[1] <= size


@pytest.mark.parametrize(
    "header",
    [None, "", "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=0-1,3-4", "lines=0-1", "bytes 0-1",
     "bytes=--1", "bytes=1--1", "bytes=+1-2", "bytes=0x1-2", "bytes=1.5-2", "\0"],
)  # fmt: skip
def test_what_is_no_single_range_is_ignored(header: str | None) -> None:
    """Several ranges, other units and garbage mean the whole body (RFC 9110, 14.2), which zstd:chunked takes well."""
    assert parse_range(header, 10) is None


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-20", "bytes=999-", "bytes=-0", "bytes=5-2"])
def test_a_range_past_the_end_is_unsatisfiable(header: str) -> None:
    """A start at or past the end, a suffix of nothing, or an end before the start: 416."""
    with pytest.raises(RangeUnsatisfiable):
        parse_range(header, 10)


@pytest.mark.parametrize("header", ["bytes=0-", "bytes=0-5", "bytes=-5", "bytes=7-"])
def test_an_empty_blob_has_no_ranges(header: str) -> None:
    """An empty blob is always answered whole: 200, length 0."""
    assert parse_range(header, 0) is None


def test_the_unit_is_case_insensitive_and_blanks_around_it_do_not_count() -> None:
    """Range units are case-insensitive (RFC 9110, 14.1)."""
    assert parse_range(" Bytes=2-3 ", 10) == (2, 4)


def test_digits_are_ascii() -> None:
    """The RFC's digits are 0 to 9; other scripts' are garbage."""
    assert parse_range("bytes=١-٢", 10) is None
