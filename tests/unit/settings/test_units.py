"""Durations, sizes and addresses as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.settings.units import Address, parse_address, parse_duration, parse_percent, parse_size

SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


@given(st.integers(0, 10**6), st.sampled_from(sorted(SECONDS)))
def test_a_duration_is_its_number_times_its_unit(number: int, unit: str) -> None:
    """Seconds; blanks around it do not count."""
    assert parse_duration(f" {number}{unit} ") == pytest.approx(number * SECONDS[unit])


@given(st.integers(0, 1000), st.sampled_from(sorted(BYTES)))
def test_a_size_is_its_number_times_its_unit(number: int, unit: str) -> None:
    """Bytes, in powers of 1024 with an i and of 1000 without; a blank before the unit is no mistake."""
    assert parse_size(f"{number}{unit}") == parse_size(f"{number} {unit}") == number * BYTES[unit]


def test_fractions_and_a_bare_zero() -> None:
    """`1.5h` and `0.5GiB`; only zero needs no unit."""
    assert parse_duration("1.5h") == 5400
    assert parse_size("0.5GiB") == 2**29
    assert [parse_duration(0), parse_duration("0"), parse_size(0), parse_size("0")] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "value",
    ["", "5", 5, 5.0, "s", "-5s", "5 s s", "5sec", "5S", "1h30m", "1e3s", "inf", "nan", ".5s", "5.s", None, True, False,
     [], {}, b"5s", "5s\n5s"],
)  # fmt: skip
def test_what_is_no_duration(value: object) -> None:
    """A number without its unit is refused: nobody could tell seconds from minutes."""
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(value)


@pytest.mark.parametrize("value", ["", "5", 5, "5 G", "5Gi", "5gib", "-1B", "1e3B", None, True, False, [], "100%"])
def test_what_is_no_size(value: object) -> None:
    """The same for sizes."""
    with pytest.raises(ValueError, match="not a size"):
        parse_size(value)


@given(st.text())
def test_any_text_is_a_value_or_a_value_error(text: str) -> None:
    """pydantic turns a ValueError into a mistake with its path; anything else would be a traceback."""
    for parse in (parse_duration, parse_size, parse_address):
        try:
            parse(text)
        except ValueError as error:
            assert "not a" in str(error)


@given(st.ip_addresses() | st.sampled_from(["localhost", "proxy.internal"]), st.integers(0, 65535))
def test_an_address_reads_back_as_it_is_written(host: object, port: int) -> None:
    """IPv6 in brackets, the rest without."""
    address = Address(str(host), port)
    assert parse_address(str(address)) == address
    assert parse_address(address) is address


@pytest.mark.parametrize(
    "value",
    ["", ":", "5000", 5000, ":5000", "host", "host:", "host:x", "host:65536", "host:-1", "::1:5000", "[::1]",
     "[::1]5000", "[host]:5000", "http://host:5000", "host:5000/", " host:5000", "host: 5000", "host:5000\n",
     None, True],
)  # fmt: skip
def test_what_is_no_address(value: object) -> None:
    """Host and port are both needed, and IPv6 needs its brackets."""
    with pytest.raises(ValueError, match="not an address"):
        parse_address(value)


@pytest.mark.parametrize(
    ("text", "loopback"),
    [("127.0.0.1:1", True), ("127.9.9.9:1", True), ("[::1]:1", True), ("localhost:1", True), ("0.0.0.0:1", False),
     ("[::]:1", False), ("10.0.0.1:1", False), ("proxy.internal:1", False)],
)  # fmt: skip
def test_which_addresses_only_this_machine_reaches(text: str, loopback: bool) -> None:
    """What the admin listener's openness is judged by."""
    assert parse_address(text).is_loopback is loopback


@pytest.mark.parametrize(("parse", "unit"), [(parse_size, "B"), (parse_duration, "d")])
def test_a_number_beyond_every_float_is_a_mistake(parse: object, unit: str) -> None:
    """Not a traceback, and not infinity."""
    assert callable(parse)
    with pytest.raises(ValueError, match="not a"):
        parse("9" * 400 + unit)


@pytest.mark.parametrize("value", ["host:٥٠٠٠", "[:::::]:5000", "[1.2.3.4]:5000"])
def test_an_address_that_cannot_be_bound_is_a_mistake(value: str) -> None:
    """Digits are ASCII, and brackets hold an IPv6 address."""
    with pytest.raises(ValueError, match="not an address"):
        parse_address(value)


def test_one_ipv6_address_in_two_spellings_is_one_address() -> None:
    """`[::1]` is `[0:0:0:0:0:0:0:1]`: a cluster's `listeners` would silently never match."""
    assert parse_address("[::1]:5000") == parse_address("[0:0:0:0:0:0:0:1]:5000")


@given(st.integers(0, 100))
def test_a_percentage_is_its_hundredth(number: int) -> None:
    """Blanks do not count; fractions are fine, and a bare zero."""
    assert parse_percent(f" {number} % ") == number / 100
    assert parse_percent("12.5%") == 0.125
    assert [parse_percent(0), parse_percent("0")] == [0, 0]


@pytest.mark.parametrize("value", ["", "30", 30, 0.3, "101%", "-1%", "%", "30 percent", None, True, False, [], b"30%"])
def test_what_is_no_percentage(value: object) -> None:
    """Without its sign nobody could tell 0.3 of all from 0.3 percent."""
    with pytest.raises(ValueError, match="not a percentage"):
        parse_percent(value)
