"""That a client may have a large blob which is here is decided once, and counts for all who ask with the same right."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from proxy.cache.ask import Records
from proxy.oci.digest import Digest
from proxy.settings import Settings
from tests.fakes.content import digest_of, make_image, random_bytes
from tests.fakes.proxy import Proxy, running
from tests.fakes.registry import FakeRegistry, error
from tests.scenarios.fills import KIB, put
from tests.scenarios.operators import done
from tests.scenarios.repeats import Client, Counts, asked, request

LARGE = random_bytes(300 * KIB, 6)
DIGEST = digest_of(LARGE)
PATH = f"/v2/team/app/blobs/{DIGEST}"
GET = request(PATH)
MANIFESTS = {"proof_ttl": "5m", "drift_interval": 0}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every record that is looked at."""
    found: list[str] = []
    get = Records.get

    async def counting(records: Records, *keys: str) -> object:
        found.extend(keys)
        return await get(records, *keys)

    monkeypatch.setattr(Records, "get", counting)
    return found


@pytest.fixture
async def decided(
    settings: Callable[..., Settings], registry: FakeRegistry, counts: Counts, read: list[str]
) -> AsyncIterator[Proxy]:
    """A proxy that has the blob, and has decided that nobody in particular may have it."""
    put(registry, LARGE)
    async with running(settings(manifests=MANIFESTS)) as proxy:
        await asked(proxy, GET)
        await proxy.stored(1)
        await asked(proxy, GET)
        registry.seen.clear()
        read.clear()
        yield proxy


async def test_the_second_request_looks_nothing_up(decided: Proxy, counts: Counts, read: list[str]) -> None:
    """It comes to a handler, since its bytes are in a file, but no record is read for it; it says what a hit says."""
    with counts.all(3, walked=0):
        for _ in range(3):
            client = await asked(decided, GET)
            assert client.body == LARGE
            assert client.headers["cache-status"] == "pullthrough; hit"
            assert client.headers["docker-content-digest"] == DIGEST
            assert client.headers["oci-namespace"] == "registry.test"
    assert read == []


async def test_ranges_share_it(decided: Proxy, counts: Counts, read: list[str]) -> None:
    """Any of them, those with an If-Range, and one past the end, which is 416."""
    client = await Client.to(decided)
    with counts.all(5, walked=0):
        assert await client.ask(request(PATH, "Range: bytes=0-9"), 206) == LARGE[:10]
        assert await client.ask(request(PATH, "Range: bytes=-10"), 206) == LARGE[-10:]
        assert client.headers["content-range"] == f"bytes {len(LARGE) - 10}-{len(LARGE) - 1}/{len(LARGE)}"
        assert await client.ask(request(PATH, "Range: bytes=5-", f'If-Range: "{DIGEST}"'), 206) == LARGE[5:]
        assert await client.ask(request(PATH, "Range: bytes=5-", 'If-Range: "other"')) == LARGE
        await client.ask(request(PATH, f"Range: bytes={len(LARGE)}-"), 416)
    assert read == []
    client.leave()


async def test_age_goes_on(decided: Proxy, counts: Counts) -> None:
    """Seconds since the blob's membership was found, as it would be without the decision."""
    decided.clock.advance(100.5)
    with counts.all(1, walked=0):
        assert (await asked(decided, GET)).headers["age"] == "100"


async def test_it_is_counted_like_any_other(decided: Proxy) -> None:
    """Under its cluster, its registry and its state."""
    name = (
        'pullthrough_requests_total{cache="hit",cluster="default",kind="blob",method="GET",registry="registry.test",'
        'status="200"}'
    )
    before = await decided.metric(name)
    for _ in range(3):
        await asked(decided, GET)
    assert await decided.metric(name) == before + 3


@pytest.mark.parametrize(
    "cluster",
    [{"mode": "metadata-only"}, {"limits": {"requests_per_second": 1000}}],
    ids=["metadata-only", "rate-limited"],
)
async def test_clusters_without_decisions(
    settings: Callable[..., Settings], registry: FakeRegistry, counts: Counts, cluster: dict[str, object]
) -> None:
    """Where blobs are the upstream's, or each request counts, every one is looked up."""
    put(registry, LARGE)
    async with running(settings(clusters=[{"name": "default", **cluster}])) as proxy:
        for number in range(4):
            with counts.all():
                assert (await asked(proxy, GET)).body == LARGE
            if not number and "mode" not in cluster:
                await proxy.stored(1)


async def test_what_the_upstream_has_deleted(
    settings: Callable[..., Settings], registry: FakeRegistry, counts: Counts
) -> None:
    """Where it is served on, each answer says so."""
    put(registry, LARGE)
    manifests = MANIFESTS | {"serve_deleted": True}
    async with running(settings(manifests=manifests)) as proxy:
        await asked(proxy, GET)
        await proxy.stored(1)
        await asked(proxy, GET)
        registry.members.clear()
        proxy.clock.advance(301)
        await asked(proxy, GET)
        # A proof of the repository that is good again does not bring the blob back.
        await asked(proxy, request(put(registry, b"another")))
        for _ in range(4):
            with counts.all():
                client = await asked(proxy, GET)
            assert client.body == LARGE
            assert "is gone upstream" in client.headers["warning"]


async def test_nobody_else_has_it(settings: Callable[..., Settings], registry: FakeRegistry, counts: Counts) -> None:
    """Not another Authorization, repository or cluster, by Host or network, nor whom a proxy speaks for."""
    put(registry, LARGE)
    clusters = [
        {"name": "denied", "match": {"networks": ["127.0.0.2/32"]}, "repositories": ["registry.test/other/*"]},
        {"name": "named", "match": {"hosts": ["denied.test"]}, "repositories": ["registry.test/other/*"]},
        {"name": "rest"},
    ]
    async with running(settings(clusters=clusters, trusted_proxies=["127.0.0.3/32"])) as proxy:
        await asked(proxy, GET)
        await proxy.stored(1)
        for source in ("127.0.0.1", "127.0.0.3"):
            await asked(proxy, GET, source=source)
            with counts.all(1, walked=0):
                await asked(proxy, GET, source=source)
        with counts.all(4):
            await asked(proxy, GET, 404, source="127.0.0.2")
            await asked(proxy, request(PATH, host="denied.test"), 404)
            await asked(proxy, request(PATH, "X-Forwarded-For: 127.0.0.2"), 404, source="127.0.0.3")
            await asked(proxy, request(f"/v2/other/thing/blobs/{DIGEST}"), 404)
        registry.private = {"team/app": {""}}
        with counts.all(1):
            await asked(proxy, request(PATH, "Authorization: Bearer wrong"), 401)
        assert (await asked(proxy, GET)).body == LARGE


# Its end.


async def test_a_refusal_ends_it(decided: Proxy, registry: FakeRegistry, counts: Counts) -> None:
    """Of anything in the repository: whoever asks then is refused as well."""
    registry.fault = lambda _: error(403, "DENIED")
    await asked(decided, request("/v2/team/app/manifests/other"), 403)
    with counts.all(2):
        await asked(decided, GET, 403)
        await asked(decided, request(PATH, "Range: bytes=0-9"), 403)


async def test_the_end_of_the_proof_ends_it(decided: Proxy, registry: FakeRegistry, counts: Counts) -> None:
    """It is renewed by one HEAD, and then decided anew."""
    decided.clock.advance(299.9)
    with counts.all(1, walked=0):
        await asked(decided, GET)
    decided.clock.advance(0.2)
    with counts.all(1):
        assert (await asked(decided, GET)).headers["cache-status"] == "pullthrough; fwd=stale; fwd-status=200"
    assert [(seen.method, seen.path) for seen in registry.seen] == [("HEAD", PATH)]
    await asked(decided, GET)
    with counts.all(1, walked=0):
        await asked(decided, GET)


async def test_a_clock_that_is_set_back_ends_it(decided: Proxy, counts: Counts) -> None:
    """To before it was made."""
    decided.clock.advance(-5)
    with counts.all(1):
        assert (await asked(decided, GET)).body == LARGE
    with counts.all(1, walked=0):
        await asked(decided, GET)


async def test_an_operator_ends_it(decided: Proxy, registry: FakeRegistry, counts: Counts) -> None:
    """Who removes the blob: the next one is looked up, and fetches it."""
    await done(decided, "DELETE", f"blobs/{DIGEST}")
    with counts.all(1):
        assert (await asked(decided, GET)).body == LARGE
    assert registry.count("GET", PATH) == 1


async def test_a_reload_ends_it(
    decided: Proxy, settings: Callable[..., Settings], registry: FakeRegistry, counts: Counts
) -> None:
    """What counts now decides, on a connection that was there before too."""
    client = await Client.to(decided)
    await client.ask(GET)
    clusters = [{"name": "other", "repositories": ["registry.test/other/*"]}]
    await decided.application.reload(settings(manifests=MANIFESTS, clusters=clusters))
    with counts.all(2):
        await client.ask(GET, 404)
        await asked(decided, request(PATH, "Range: bytes=0-9"), 404)
    client.leave()


# What is evicted.


async def evict(proxy: Proxy) -> None:
    """Let the blob go as eviction does: no record changes with it."""
    store = proxy.application._store
    assert store is not None
    async with asyncio.timeout(10):
        while not await store.remove(Digest.parse(DIGEST), "size"):
            await asyncio.sleep(0)


async def test_what_was_evicted_is_fetched_anew(decided: Proxy, registry: FakeRegistry, counts: Counts) -> None:
    """By the decision that still counts, and is counted as the miss that it is; then it is here again."""
    await evict(decided)
    client = await asked(decided, GET)
    assert (client.body, client.headers["cache-status"]) == (LARGE, "pullthrough; fwd=miss; stored")
    await decided.stored(1)
    assert registry.count("GET", PATH) == 1
    assert (await asked(decided, GET)).headers["cache-status"] == "pullthrough; hit"
    assert registry.count("GET", PATH) == 1


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_what_was_evicted_and_is_refused_now(decided: Proxy, registry: FakeRegistry, status: int) -> None:
    """The upstream's word counts, with its challenge; nobody is given the blob by the decision afterwards."""
    await evict(decided)
    if status == 401:
        registry.private = {"team/app": set()}
    else:
        registry.fault = lambda _: error(status, "DENIED")
    for _ in range(2):
        client = await asked(decided, GET, status)
    if status == 401:
        assert client.headers["www-authenticate"].startswith(f'Bearer realm="{registry.url}/token"')


@pytest.mark.parametrize("login", [False, True])
async def test_who_is_asked_to_log_in_for_what_was_evicted(
    settings: Callable[..., Settings], registry: FakeRegistry, counts: Counts, login: bool
) -> None:
    """By the proxy where the cluster logs in, else by the registry: as it would be without a decision."""
    put(registry, LARGE)
    clusters = [{"name": "default", "login": login, "allow_plain_login": True}]
    async with running(settings(manifests=MANIFESTS, clusters=clusters)) as proxy:
        await asked(proxy, GET)
        await proxy.stored(1)
        await asked(proxy, GET)
        await evict(proxy)
        registry.private = {"team/app": set()}
        with counts.all(1, walked=0):
            client = await asked(proxy, GET, 401)
        assert client.headers["www-authenticate"].startswith("Basic" if login else "Bearer")


async def test_whose_right_fetches_what_was_evicted(
    settings: Callable[..., Settings], registry: FakeRegistry, counts: Counts
) -> None:
    """That of the client who asks: its own Authorization goes along, as it would without a decision."""
    put(registry, LARGE)
    registry.private = {"team/app": {"ann"}}
    own = f"Bearer {registry.token('ann', 'team/app')}"
    async with running(settings(manifests=MANIFESTS)) as proxy:
        sent = request(PATH, f"Authorization: {own}")
        await asked(proxy, sent)
        await proxy.stored(1)
        await asked(proxy, sent)
        with counts.all(1, walked=0):
            await asked(proxy, sent)
        await evict(proxy)
        registry.seen.clear()
        assert (await asked(proxy, sent)).body == LARGE
        assert [seen.headers.get("Authorization") for seen in registry.seen] == [own]
        await proxy.stored(1)
        client = await asked(proxy, GET, 401)
        assert client.headers["www-authenticate"].startswith("Bearer realm=")


async def test_a_manifest_has_no_decision(decided: Proxy, registry: FakeRegistry) -> None:
    """Nor has a HEAD: they are answers of their own."""
    registry.push("team/app", "v1", make_image(10, seed=1))
    for _ in range(3):
        await asked(decided, request())
        await asked(decided, request(PATH, method="HEAD"))
    assert decided.application._handlers is not None
    assert len(decided.application._handlers.house.answers._decisions) <= 1
