"""Many clients want one thing at once; the upstream is asked once."""

import asyncio

from tests.fakes.content import digest_of, make_image, random_bytes
from tests.fakes.proxy import Proxy
from tests.fakes.registry import FakeRegistry
from tests.fakes.server import Gate

BLOB = random_bytes(3_000_000, 7)


async def test_sixteen_clients_one_cold_blob(proxy: Proxy, registry: FakeRegistry) -> None:
    """Sixteen clients of a cold blob get its bytes, and the upstream sends them exactly once."""
    digest = registry.put("team/app", "application/octet-stream", BLOB)
    registry.pause = gate = Gate(1_000_000)
    first = asyncio.create_task(proxy.get(f"/v2/team/app/blobs/{digest}"))
    await gate.reached.wait()
    others = [asyncio.create_task(proxy.get(f"/v2/team/app/blobs/{digest}")) for _ in range(15)]
    # All of them have to be waiting for the fill before it may go on.
    while await proxy.metric("pullthrough_fills_active") != 1:
        await asyncio.sleep(0)
    gate.open()
    answers = await asyncio.gather(first, *others)
    assert all(answer.status == 200 and answer.body == BLOB for answer in answers)
    assert registry.count("GET", "/blobs/") == 1
    assert registry.sent == len(BLOB)
    assert await proxy.metric("pullthrough_upstream_bytes_total") == len(BLOB)


async def test_those_who_join_are_told_so(proxy: Proxy, registry: FakeRegistry) -> None:
    """A client that shares another's fill gets `collapsed`."""
    digest = registry.put("team/app", "application/octet-stream", BLOB)
    registry.pause = gate = Gate(1_000_000)
    url = f"{proxy.url}/v2/team/app/blobs/{digest}"
    async with proxy.session.get(url) as first:
        await gate.reached.wait()
        async with proxy.session.get(url) as second:
            assert first.headers["Cache-Status"] == "pullthrough; fwd=miss; stored"
            assert second.headers["Cache-Status"] == "pullthrough; fwd=miss; collapsed"
            gate.open()
            assert await second.read() == await first.read() == BLOB


async def test_one_cold_tag(proxy: Proxy, registry: FakeRegistry) -> None:
    """Fifty clients of a cold tag cost one GET."""
    image = make_image(10)
    registry.push("team/app", "v1", image)
    answers = await asyncio.gather(*(proxy.get("/v2/team/app/manifests/v1") for _ in range(50)))
    assert {answer.body for answer in answers} == {image.manifest}
    assert len(registry.seen) == 1


async def test_one_missing_blob(proxy: Proxy, registry: FakeRegistry) -> None:
    """Clients of a blob that does not exist share its 404, which is remembered until negative_ttl is over."""
    path = f"/v2/team/app/blobs/{digest_of(b'nothing')}"
    answers = await asyncio.gather(*(proxy.get(path) for _ in range(10)))
    assert {(answer.status, answer.code) for answer in answers} == {(404, "BLOB_UNKNOWN")}
    assert len(registry.seen) == 1
    proxy.clock.advance(10)
    assert (await proxy.get(path)).status == 404
    assert len(registry.seen) == 2
