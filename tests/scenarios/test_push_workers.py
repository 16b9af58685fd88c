"""Pushes with several workers: what one of them passed on, the others know at once."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.fakes.content import digest_of, make_image
from tests.fakes.fleet import Fleet, fleet, write_config
from tests.fakes.pushable import PushableRegistry
from tests.fakes.reader import Reader

ONE, TWO = make_image(1000, seed=1), make_image(1000, seed=2)
BLOB = ONE.blobs[1]
REPOSITORY = "/v2/team/app"


@pytest.fixture
def registry(pushable: PushableRegistry) -> PushableRegistry:
    """A registry that takes pushes."""
    return pushable


@pytest.fixture
async def proxy(tmp_path: Path, registry: PushableRegistry) -> AsyncIterator[Fleet]:
    """Two workers that may push; what they remember they would remember for long."""
    config = write_config(
        tmp_path,
        {"registry.test": {"url": registry.url}},
        clusters=[{"name": "default", "push": "forward"}],
        manifests={"negative_ttl": "1h"},
    )
    async with fleet(config) as started:
        yield started


async def by_each(proxy: Fleet, path: str) -> list[tuple[int, bytes]]:
    """What each of the workers answers."""
    found = []
    for worker in proxy.workers():
        reader = await proxy.reader_at(worker, path)
        await reader.head()
        found.append((reader.status, await reader.rest()))
        reader.leave()
    return found


async def put(proxy: Fleet, path: str, content: bytes, media_type: str = "application/octet-stream") -> None:
    async with aiohttp.ClientSession() as session:
        async with session.put(proxy.url + path, data=content, headers={"Content-Type": media_type}) as answer:
            assert answer.status == 201


async def test_what_was_missing_to_all_is_there_for_all(proxy: Fleet, registry: PushableRegistry) -> None:
    """404s that each worker remembers end with a push that only one of them passed on."""
    blob = f"{REPOSITORY}/blobs/{digest_of(BLOB)}"
    tag = f"{REPOSITORY}/manifests/v1"
    for path in (blob, tag):
        for _ in range(2):
            assert [status for status, _ in await by_each(proxy, path)] == [404, 404]
        assert registry.count("GET", path) == 2
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{proxy.url}{REPOSITORY}/blobs/uploads/") as begun:
            location = begun.headers["Location"]
    await put(proxy, f"{location}&digest={digest_of(BLOB)}", BLOB)
    assert await by_each(proxy, blob) == [(200, BLOB)] * 2
    await put(proxy, tag, ONE.manifest, ONE.media_type)
    assert await by_each(proxy, tag) == [(200, ONE.manifest)] * 2


async def test_a_tag_that_moves_moves_for_all(proxy: Fleet, registry: PushableRegistry) -> None:
    """However the pushes are spread over the workers, nobody is given the manifest before."""
    path, tags = f"{REPOSITORY}/manifests/v1", f"{REPOSITORY}/tags/list"
    for image in (ONE, TWO) * 3:
        await put(proxy, path, image.manifest, image.media_type)
        assert await by_each(proxy, path) == [(200, image.manifest)] * 2
        assert [status for status, _ in await by_each(proxy, tags)] == [200, 200]


async def test_an_upload_goes_on_at_any_worker(proxy: Fleet, registry: PushableRegistry) -> None:
    """Sealed addresses are good at whichever worker a client comes to."""
    registry.location = lambda name, session: f"{registry.elsewhere}{name}/{session}"
    for _ in range(4):
        async with aiohttp.ClientSession() as session:
            async with session.post(f"{proxy.url}{REPOSITORY}/blobs/uploads/") as begun:
                location = begun.headers["Location"]
        assert "/blobs/uploads/~" in location
        for worker in proxy.workers():
            reader: Reader = await proxy.reader_at(worker, location)
            async with asyncio.timeout(10):
                await reader.head()
            assert reader.status == 204
            reader.leave()
        await put(proxy, f"{location}?digest={digest_of(BLOB)}", BLOB)
