"""Signatures between replicas: what they are of, how long they count, and what they never give away."""

import pytest

from proxy.policy.replica import SCHEME, is_signed, region_key, signature

SECRET = b"0123456789abcdef0123456789abcdef"
KEY = region_key(SECRET, "replicas")
TARGET = "/v1/blobs/sha256:00?source=ff"
SPAN = "bytes=0-99"
NOW = 1_800_000_000.5
SIGNED = signature(KEY, "GET", TARGET, SPAN, NOW)


def test_what_was_signed_is_signed() -> None:
    """By whoever has the key, with and without a range."""
    assert is_signed(KEY, "GET", TARGET, SPAN, SIGNED, NOW)
    assert is_signed(KEY, "DELETE", TARGET, "", signature(KEY, "DELETE", TARGET, "", NOW), NOW)


@pytest.mark.parametrize(
    ("method", "target", "span"),
    [
        ("DELETE", TARGET, SPAN),
        ("get", TARGET, SPAN),
        ("GET", TARGET.replace("00", "01"), SPAN),
        ("GET", TARGET.partition("?")[0], SPAN),
        ("GET", TARGET + "&", SPAN),
        ("GET", TARGET, "bytes=0-100"),
        ("GET", TARGET, ""),
        ("GET", TARGET, SPAN + " "),
        ("GET", f"{TARGET}\n{SPAN}", ""),
        ("GET", TARGET + SPAN[0], SPAN[1:]),
    ],
)
def test_a_signature_is_of_one_request(method: str, target: str, span: str) -> None:
    """Another method, another path or query, or another range is another request."""
    assert not is_signed(KEY, method, target, span, SIGNED, NOW)


@pytest.mark.parametrize("key", [region_key(SECRET + b"!", "replicas"), region_key(SECRET, "principals"), b""])
def test_another_secret_or_purpose_signs_nothing_here(key: bytes) -> None:
    """Neither another region's secret, nor what the same one is used for elsewhere."""
    assert not is_signed(key, "GET", TARGET, SPAN, SIGNED, NOW)
    assert not is_signed(KEY, "GET", TARGET, SPAN, signature(key, "GET", TARGET, SPAN, NOW), NOW)


@pytest.mark.parametrize(("late", "counts"), [(0, True), (59, True), (-59, True), (62, False), (-62, False)])
def test_a_signature_counts_for_a_minute(late: float, counts: bool) -> None:
    """Either way, since clocks differ."""
    assert is_signed(KEY, "GET", TARGET, SPAN, SIGNED, NOW + late) is counts


def test_its_time_is_signed_too() -> None:
    """An old signature does not get a new time."""
    when = SIGNED.split(" ")[1]
    assert not is_signed(KEY, "GET", TARGET, SPAN, SIGNED.replace(when, str(int(when) + 30)), NOW + 30)


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        SCHEME,
        f"{SCHEME} ",
        f"{SCHEME} 1800000000",
        f"{SCHEME} 1800000000 ",
        f"{SCHEME}  1800000000",
        f"{SCHEME} -1 00",
        f"{SCHEME} +1800000000 00",
        f"{SCHEME} 1e9 00",
        f"{SCHEME} ١٢٣ 00",
        f"{SCHEME} ² 00",
        f"{SCHEME} nan 00",
        f"{SCHEME} {'9' * 400} 00",
        f"{SCHEME} 1800000000 \udcff",
        f"Bearer {SIGNED.partition(' ')[2]}",
        SIGNED.lower(),
        SIGNED.upper(),
        SIGNED + " ",
        " " + SIGNED,
        SIGNED + "\n",
        SIGNED[:-1],
        SIGNED.replace(" ", "  "),
        f"{SCHEME} 01800000000 {SIGNED.rpartition(' ')[2]}",
        "Basic dXNlcjpwYXNz",
    ],
)
def test_anything_else_is_no_signature(authorization: str) -> None:
    """Whatever stands in the header: the answer is no, and never an exception."""
    assert not is_signed(KEY, "GET", TARGET, SPAN, authorization, NOW)


def test_bytes_that_are_no_text_can_be_signed() -> None:
    """A path may have any bytes, which come as surrogates."""
    target = "/v1/blobs/\udcff"
    assert is_signed(KEY, "GET", target, "", signature(KEY, "GET", target, "", NOW), NOW)


def test_the_secret_is_not_in_it() -> None:
    """Nor is the key; and of each purpose the key is another one of 32 bytes."""
    for secret in (SECRET.decode(), SECRET.hex(), KEY.hex()):
        assert secret not in SIGNED
    assert SECRET not in KEY
    assert len(KEY) == len(region_key(b"", "")) == 32
    assert len({region_key(SECRET, purpose) for purpose in ("replicas", "principals", "objects")}) == 3
    assert region_key(SECRET, "replicas") == KEY
