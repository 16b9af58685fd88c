"""What is known by its bytes is known for one entrance: nobody gets what another cluster or client is given."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from proxy.settings import Settings
from tests.fakes.content import digest_of, make_image, random_bytes
from tests.fakes.proxy import Proxy, running
from tests.fakes.registry import FakeRegistry
from tests.scenarios.fills import put
from tests.scenarios.repeats import TAG, Client, Counts, asked, repeat, request

IMAGE = make_image(10, seed=1)
GET = request()
SMALL = random_bytes(1000, 5)
NETWORKS: dict[str, Any] = {"networks": ["127.0.0.2/32"]}


@pytest.fixture
async def two(
    settings: Callable[..., Settings], registry: FakeRegistry, counts: Counts, request: pytest.FixtureRequest
) -> AsyncIterator[Proxy]:
    """Two clusters; one of them, matched as the test says, may not have the repository that the other one may."""
    registry.push("team/app", "v1", IMAGE)
    match, more = getattr(request, "param", (NETWORKS, {}))
    clusters = [{"name": "denied", "match": match, "repositories": ["registry.test/other/*"]}, {"name": "rest"}]
    async with running(settings(clusters=clusters, **more)) as proxy:
        yield proxy


async def refused(proxy: Proxy, sent: bytes = GET, **where: Any) -> None:
    """As often as it asks: the cluster that it is in has none of this."""
    for _ in range(3):
        client = await Client.to(proxy, **where)
        await client.ask(sent, 404)
        assert client.code == "NAME_UNKNOWN"
        client.leave()


async def test_another_cluster_by_its_network(two: Proxy, counts: Counts) -> None:
    """The same bytes, from another address: each is answered as its cluster is, in whatever order they come."""
    await repeat(two, GET, "127.0.0.1")
    await refused(two, source="127.0.0.2")
    with counts.none():
        assert (await asked(two, GET, source="127.0.0.1")).body == IMAGE.manifest
        # Whoever is in the same networks is the same entrance.
        assert (await asked(two, GET, source="127.0.0.3")).body == IMAGE.manifest


LISTENERS = {"listen": [{"address": "127.0.0.1:0"}, {"address": "127.0.0.2:0"}]}


@pytest.mark.parametrize("two", [({"listeners": ["127.0.0.2:0"]}, LISTENERS)], indirect=True, ids=["listeners"])
async def test_another_listener(two: Proxy, counts: Counts) -> None:
    """The same bytes, at another address of the proxy."""
    await repeat(two, GET)
    await refused(two, listener=1)
    with counts.none():
        assert (await asked(two, GET)).body == IMAGE.manifest


@pytest.mark.parametrize("two", [({"hosts": ["denied.test"]}, {})], indirect=True, ids=["hosts"])
async def test_another_host(two: Proxy, counts: Counts) -> None:
    """What is in the Host counts, where the rest is the same."""
    await repeat(two, GET)
    await refused(two, request(host="denied.test"))
    await repeat(two, request(host="b.test"))
    with counts.none():
        assert (await asked(two, GET)).body == IMAGE.manifest


TRUSTED = {"trusted_proxies": ["127.0.0.3/32"]}


@pytest.mark.parametrize("two", [(NETWORKS, TRUSTED)], indirect=True, ids=["networks"])
async def test_clients_behind_a_trusted_proxy(two: Proxy, counts: Counts) -> None:
    """On one connection that many share, each is looked up by itself; without a word it is the proxy's own request."""
    await repeat(two, GET, "127.0.0.3")
    client = await Client.to(two, "127.0.0.3")
    for _ in range(3):
        with counts.all(2):
            await client.ask(request(TAG, "X-Forwarded-For: 127.0.0.2"), 404)
            assert await client.ask(request(TAG, "X-Forwarded-For: 127.0.0.9")) == IMAGE.manifest
        with counts.none():
            assert await client.ask(GET) == IMAGE.manifest
    client.leave()


@pytest.mark.parametrize("two", [(NETWORKS, TRUSTED)], indirect=True, ids=["networks"])
async def test_who_is_not_trusted_is_not_believed(two: Proxy, counts: Counts) -> None:
    """Whatever they say of their address: it is known by its bytes, as what they are."""
    said = request(TAG, "X-Forwarded-For: 127.0.0.2")
    await repeat(two, said, "127.0.0.1")
    with counts.none():
        assert (await asked(two, said, source="127.0.0.1")).body == IMAGE.manifest
    await refused(two, request(TAG, "X-Forwarded-For: 127.0.0.1"), source="127.0.0.2")
    # Nor is it the same entrance for whoever is trusted.
    with counts.all():
        await asked(two, said, 404, source="127.0.0.3")


async def test_another_authorization(settings: Callable[..., Settings], registry: FakeRegistry, counts: Counts) -> None:
    """Each has its own: whoever has none, or another's with other rights, is told by the registry."""
    registry.push("team/app", "v1", IMAGE)
    registry.private = {"team/app": {"ann"}}
    ann = request(TAG, f"Authorization: Bearer {registry.token('ann', 'team/app')}")
    bob = request(TAG, f"Authorization: Bearer {registry.token('bob', 'team/app')}")
    async with running(settings()) as proxy:
        await repeat(proxy, ann)
        with counts.none():
            assert (await asked(proxy, ann)).body == IMAGE.manifest
        client = await Client.to(proxy)
        for _ in range(3):
            await client.ask(GET, 401)
            await client.ask(bob, 401)
            assert await client.ask(ann) == IMAGE.manifest
        client.leave()


async def test_another_range(settings: Callable[..., Settings], registry: FakeRegistry, counts: Counts) -> None:
    """Each range of a blob is an answer of its own, whatever was asked in between; so is each If-Range."""
    path = put(registry, SMALL)
    ranges = {
        "bytes=0-9": (206, SMALL[:10]),
        "bytes=10-19": (206, SMALL[10:20]),
        "bytes=-5": (206, SMALL[-5:]),
        "": (200, SMALL),
    }
    async with running(settings()) as proxy:
        await asked(proxy, request(path))
        await proxy.stored(1)
        sent = {ranged: request(path, f"Range: {ranged}") if ranged else request(path) for ranged in ranges}
        stale = request(path, "Range: bytes=0-9", 'If-Range: "sha256:other"')
        same = request(path, "Range: bytes=0-9", f'If-Range: "{digest_of(SMALL)}"')
        client = await Client.to(proxy)
        for turn in range(4):
            before = len(counts.handled)
            for ranged, (status, body) in ranges.items():
                assert await client.ask(sent[ranged], status) == body
            assert await client.ask(stale) == SMALL
            assert await client.ask(same, 206) == SMALL[:10]
            assert len(counts.handled) - before == (6 if turn < 1 else 0)
        client.leave()
