"""What is in the memory of one worker ends by what another one does."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.content import digest_of, make_image, random_bytes
from tests.fakes.fleet import Fleet, fleet, write_config
from tests.fakes.registry import FakeRegistry, error
from tests.scenarios.fills import KIB, put
from tests.scenarios.operators import call, done

SMALL, LARGE = random_bytes(1000, 5), random_bytes(300 * KIB, 6)


@pytest.fixture
async def two(tmp_path: Path, registry: FakeRegistry) -> AsyncIterator[Fleet]:
    """A proxy of two workers."""
    async with fleet(write_config(tmp_path, {"registry.test": {"url": registry.url}})) as started:
        yield started


async def answers(proxy: Fleet, place: str, count: int = 1) -> list[tuple[int, bytes]]:
    """What each worker answers, so often."""
    found = []
    for worker in proxy.workers():
        for _ in range(count):
            reader = await proxy.reader_at(worker, place)
            await reader.head()
            found.append((reader.status, await reader.rest()))
            reader.leave()
    return found


async def removed(proxy: Fleet, blob: bytes) -> None:
    """Have it removed, once nobody reads it any more."""
    async with asyncio.timeout(20):
        while (await call(proxy, "DELETE", f"blobs/{digest_of(blob)}"))[0] == 409:
            await asyncio.sleep(0)


@pytest.mark.parametrize("blob", [SMALL, LARGE], ids=["small", "large"])
async def test_a_blob_that_is_removed(two: Fleet, registry: FakeRegistry, blob: bytes) -> None:
    """By whichever worker that is done: neither serves it again without having fetched it."""
    place = put(registry, blob)
    assert await answers(two, place, 4) == [(200, blob)] * 8
    await two.stored(1)
    assert await answers(two, place, 4) == [(200, blob)] * 8
    assert registry.count("GET", place) == 1
    # Removing it is not asking for it; after it, the upstream alone decides.
    registry.fault = lambda _: error(404, "BLOB_UNKNOWN")
    await removed(two, blob)
    assert [status for status, _ in await answers(two, place, 2)] == [404] * 4
    registry.fault = None
    assert registry.count("GET", place) > 1


async def test_a_refusal_that_one_of_them_met(two: Fleet, registry: FakeRegistry) -> None:
    """Of anything in the repository: the other one asks again too, before it gives what it has in memory."""
    place = put(registry, SMALL)
    await answers(two, place, 1)
    await two.stored(1)
    assert await answers(two, place, 4) == [(200, SMALL)] * 8
    registry.fault = lambda _: error(403, "DENIED")
    first, second = two.workers()
    reader = await two.reader_at(first, "/v2/team/app/manifests/other")
    await reader.head()
    assert reader.status == 403
    reader.leave()
    for worker in (second, first):
        reader = await two.reader_at(worker, place)
        await reader.head()
        assert reader.status == 403
        reader.leave()


async def test_a_hold_of_a_tag(two: Fleet, registry: FakeRegistry) -> None:
    """What both know by its bytes ends with the answer to the operator."""
    old, new = make_image(10, seed=1), make_image(10, seed=2)
    place = "/v2/team/app/manifests/v1"
    registry.push("team/app", "v1", old)
    assert await answers(two, place, 4) == [(200, old.manifest)] * 8
    registry.push("team/app", "v1", new)
    await done(two, "POST", "tags/refresh", "team/app:v1")
    assert await answers(two, place, 4) == [(200, new.manifest)] * 8
    await done(two, "POST", "tags/hold", f"team/app:v1@{old.digest}")
    assert await answers(two, place, 4) == [(200, old.manifest)] * 8
