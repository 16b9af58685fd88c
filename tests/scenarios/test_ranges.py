"""Ranges of blobs, cold and present (RFC 9110, section 14)."""

import pytest

from tests.fakes.content import digest_of, random_bytes
from tests.fakes.proxy import Proxy
from tests.fakes.registry import FakeRegistry

BLOB = random_bytes(1_500_000, 9)
SIZE = len(BLOB)
DIGEST = digest_of(BLOB)
PATH = f"/v2/team/app/blobs/{DIGEST}"


@pytest.mark.parametrize("present", [False, True])
@pytest.mark.parametrize(
    ("header", "start", "stop"),
    [
        ("bytes=0-", 0, SIZE),
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=1000000-", 1_000_000, SIZE),
        ("bytes=-5", SIZE - 5, SIZE),
        ("bytes=100-99999999", 100, SIZE),
    ],
)
async def test_a_range_is_206(
    proxy: Proxy, registry: FakeRegistry, present: bool, header: str, start: int, stop: int
) -> None:
    """Every range of a blob is 206 with its exact Content-Range, whether the blob is here or still on its way."""
    registry.put("team/app", "application/octet-stream", BLOB)
    if present:
        await proxy.get(PATH)
        await proxy.stored(1)
    answer = await proxy.get(PATH, Range=header)
    assert (answer.status, answer.body) == (206, BLOB[start:stop])
    assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{SIZE}"
    await proxy.stored(1)
    assert registry.record.times_sent(DIGEST) == [(0, SIZE, 1)]


@pytest.mark.parametrize("header", ["bytes=1500000-", "bytes=9999999-", "bytes=-0", "bytes=5-1"])
async def test_an_unsatisfiable_range_is_416(proxy: Proxy, registry: FakeRegistry, header: str) -> None:
    """A start past the end, or behind its own end, is RANGE_INVALID with the size."""
    registry.put("team/app", "application/octet-stream", BLOB)
    answer = await proxy.get(PATH, Range=header)
    assert (answer.status, answer.code) == (416, "RANGE_INVALID")
    assert answer.headers["Content-Range"] == f"bytes */{SIZE}"


@pytest.mark.parametrize("header", ["bytes=0-1,5-6", "lines=1-2", "bytes=", "bytes=a-b", "garbage"])
async def test_what_is_no_single_range_is_the_whole(proxy: Proxy, registry: FakeRegistry, header: str) -> None:
    """Several ranges, other units and garbage are answered with the whole blob, which is always correct."""
    registry.put("team/app", "application/octet-stream", BLOB)
    answer = await proxy.get(PATH, Range=header)
    assert (answer.status, answer.body) == (200, BLOB)


async def test_an_empty_blob(proxy: Proxy, registry: FakeRegistry) -> None:
    """An empty blob is 200 with length 0, cold and present, with a range and without."""
    path = f"/v2/team/app/blobs/{registry.put('team/app', 'application/octet-stream', b'')}"
    for headers in ({}, {"Range": "bytes=0-"}):
        answer = await proxy.get(path, **headers)
        assert (answer.status, answer.body, answer.headers["Content-Length"]) == (200, b"", "0")
        await proxy.stored(1)


async def test_if_range_of_another_version_gives_the_whole(proxy: Proxy, registry: FakeRegistry) -> None:
    """If-Range that names this digest lets the range count; any other does not."""
    digest = registry.put("team/app", "application/octet-stream", BLOB)
    same = await proxy.get(PATH, Range="bytes=0-9", If_Range=f'"{digest}"')
    other = await proxy.get(PATH, Range="bytes=0-9", If_Range='"something-else"')
    assert (same.status, other.status) == (206, 200)
