"""Whatever changes what a request is answered with ends what is known by its bytes, from that moment on."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web

from proxy.settings import Settings
from tests.fakes.content import make_image
from tests.fakes.proxy import Proxy, running
from tests.fakes.pushable import PushableRegistry
from tests.fakes.registry import FakeRegistry, error
from tests.scenarios.operators import done
from tests.scenarios.repeats import TAG, Client, Counts, asked, repeat, request

OLD, NEW = make_image(10, seed=1), make_image(10, seed=2)
GET, HEAD = request(), request(method="HEAD")
DIGEST = request(f"/v2/team/app/manifests/{OLD.digest}")
REFERENCE = "registry.test/team/app:v1"
MANIFESTS = {"tag_ttl": "10m", "proof_ttl": "5m", "drift_interval": 0}


@pytest.fixture
async def fast(settings: Callable[..., Settings], registry: FakeRegistry, counts: Counts) -> AsyncIterator[Proxy]:
    """A proxy that knows three requests by their bytes; nothing else looks after its tag."""
    registry.push("team/app", "v1", OLD)
    async with running(settings(manifests=MANIFESTS)) as proxy:
        for sent in (GET, HEAD, DIGEST):
            await repeat(proxy, sent)
        with counts.none():
            for sent in (GET, HEAD, DIGEST):
                await asked(proxy, sent)
        registry.seen.clear()
        yield proxy


def upstream_of(registry: FakeRegistry) -> list[tuple[str, str]]:
    return [(seen.method, seen.path) for seen in registry.seen]


async def test_a_purge(fast: Proxy, registry: FakeRegistry, counts: Counts) -> None:
    """The tag is asked for again at once, and only once."""
    registry.push("team/app", "v1", NEW)
    await done(fast, "DELETE", "tags", reference=REFERENCE)
    with counts.all(2):
        assert (await asked(fast, GET)).body == NEW.manifest
        assert (await asked(fast, HEAD)).headers["docker-content-digest"] == NEW.digest
    assert upstream_of(registry) == [("GET", TAG)]


async def test_a_purge_of_all(fast: Proxy, registry: FakeRegistry, counts: Counts) -> None:
    """By a pattern, too."""
    registry.push("team/app", "v1", NEW)
    await done(fast, "DELETE", "tags", reference="*/team/*")
    with counts.all():
        assert (await asked(fast, GET)).body == NEW.manifest


async def test_a_refresh_that_changes_it(fast: Proxy, registry: FakeRegistry, counts: Counts) -> None:
    """Whoever asks after it is given the new one, without asking the upstream; one by digest goes on."""
    registry.push("team/app", "v1", NEW)
    assert (await asked(fast, GET)).body == OLD.manifest
    await done(fast, "POST", "tags/refresh", REFERENCE)
    registry.seen.clear()
    with counts.all():
        assert (await asked(fast, GET)).body == NEW.manifest
    assert (await asked(fast, DIGEST)).body == OLD.manifest
    assert registry.seen == []


async def test_a_refresh_that_changes_nothing(fast: Proxy, registry: FakeRegistry, counts: Counts) -> None:
    """Its age begins anew, for those who are answered by bytes too."""
    fast.clock.advance(100)
    assert (await asked(fast, GET)).headers["age"] == "100"
    await done(fast, "POST", "tags/refresh", REFERENCE)
    registry.seen.clear()
    for _ in range(3):
        client = await asked(fast, GET)
        assert (client.headers["age"], client.headers["cache-status"]) == ("0", "pullthrough; hit; ttl=600")
    assert registry.seen == []


async def test_a_hold_and_its_release(fast: Proxy, registry: FakeRegistry, counts: Counts) -> None:
    """Held at another digest, it is that one at once; released, it is the tag's own again."""
    registry.push("team/app", "v1", NEW)
    await done(fast, "POST", "tags/refresh", REFERENCE)
    await repeat(fast, GET)
    await done(fast, "POST", "tags/hold", f"{REFERENCE}@{OLD.digest}")
    for _ in range(3):
        assert (await asked(fast, GET)).body == OLD.manifest
        assert (await asked(fast, HEAD)).headers["docker-content-digest"] == OLD.digest
    await done(fast, "POST", "tags/release", REFERENCE)
    for _ in range(3):
        assert (await asked(fast, GET)).body == NEW.manifest
        assert (await asked(fast, HEAD)).headers["docker-content-digest"] == NEW.digest


async def test_a_push(settings: Callable[..., Settings], pushable: PushableRegistry, counts: Counts) -> None:
    """Of another manifest under the tag: from the registry's word on, it is the tag's."""
    pushable.push("team/app", "v1", OLD)
    for blob in NEW.blobs:
        pushable.put("team/app", "application/octet-stream", blob)
    clusters = [{"name": "default", "push": "forward"}]
    async with running(settings({"url": pushable.url}, clusters=clusters, manifests=MANIFESTS)) as proxy:
        await repeat(proxy, GET)
        headers = {"Content-Type": NEW.media_type}
        async with proxy.session.put(proxy.url + TAG, data=NEW.manifest, headers=headers) as response:
            assert response.status == 201
        with counts.all():
            assert (await asked(proxy, GET)).body == NEW.manifest


async def test_a_refusal(fast: Proxy, registry: FakeRegistry, counts: Counts) -> None:
    """Of anything in the repository to the same principal: its proof has ended, and the upstream is asked again."""
    registry.fault = lambda _: error(403, "DENIED")
    await asked(fast, request("/v2/team/app/manifests/other"), 403)
    with counts.all(3):
        await asked(fast, GET, 403)
        await asked(fast, DIGEST, 403)
        await asked(fast, HEAD, 403)


async def test_a_refusal_of_somebody_else(fast: Proxy, registry: FakeRegistry, counts: Counts) -> None:
    """Ends nothing of those who are not meant."""
    registry.fault = lambda _: error(401, "UNAUTHORIZED")
    await asked(fast, request("/v2/team/app/manifests/other", "Authorization: Bearer wrong"), 401)
    with counts.none():
        assert (await asked(fast, GET)).body == OLD.manifest


@pytest.mark.parametrize(
    ("sent", "asks"), [(GET, TAG), (HEAD, TAG), (DIGEST, f"/v2/team/app/manifests/{OLD.digest}")],
    ids=["get", "head", "digest"],
)  # fmt: skip
async def test_the_end_of_a_proof(fast: Proxy, registry: FakeRegistry, counts: Counts, sent: bytes, asks: str) -> None:
    """To the moment `proof_ttl` after it was made; it is renewed by one HEAD."""
    fast.clock.advance(299.9)
    with counts.none():
        await asked(fast, sent)
    fast.clock.advance(0.2)
    with counts.all():
        await asked(fast, sent)
    assert upstream_of(registry) == [("HEAD", asks)]


@pytest.mark.parametrize("sent", [GET, HEAD], ids=["get", "head"])
async def test_the_end_of_a_tags_ttl(
    settings: Callable[..., Settings], registry: FakeRegistry, counts: Counts, sent: bytes
) -> None:
    """To the moment `tag_ttl` after it was checked; what has moved is seen then, whoever asks."""
    registry.push("team/app", "v1", OLD)
    manifests = {"tag_ttl": "1m", "drift_interval": 0, "refresh_ahead": 0}
    async with running(settings(manifests=manifests)) as proxy:
        await repeat(proxy, sent)
        registry.push("team/app", "v1", NEW)
        registry.seen.clear()
        proxy.clock.advance(59.9)
        with counts.none():
            client = await asked(proxy, sent)
            assert (client.headers["age"], client.headers["cache-status"]) == ("59", "pullthrough; hit; ttl=1")
        proxy.clock.advance(0.2)
        with counts.all():
            assert (await asked(proxy, sent)).headers["docker-content-digest"] == NEW.digest
        assert registry.seen[0].method == "HEAD"


async def test_a_clock_that_is_set_back(fast: Proxy, counts: Counts) -> None:
    """What was found in what is now the future is looked up again, once."""
    fast.clock.advance(50)
    await asked(fast, GET)
    fast.clock.advance(-20)
    with counts.all():
        assert (await asked(fast, GET)).headers["age"] == "30"
    with counts.none():
        assert (await asked(fast, GET)).headers["age"] == "30"


async def test_age_date_and_ttl_go_on(fast: Proxy, counts: Counts) -> None:
    """Every second, without anything being looked up."""
    with counts.none():
        for after in range(5):
            client = await asked(fast, GET)
            assert client.headers["age"] == str(after)
            assert client.headers["cache-status"] == f"pullthrough; hit; ttl={600 - after}"
            assert client.headers["date"].endswith(f":{after:02} GMT")
            fast.clock.advance(1)


RELOADS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "ttl": {"manifests": MANIFESTS | {"tag_ttl": "1s"}},
    "cluster": {"clusters": [{"name": "other", "repositories": ["registry.test/other/*"]}]},
    "limits": {"limits": {"max_url_length": "1KiB"}},
}


@pytest.mark.parametrize("name", RELOADS)
async def test_a_reload(
    fast: Proxy, settings: Callable[..., Settings], registry: FakeRegistry, counts: Counts, name: str
) -> None:
    """Every request is looked at anew, by the configuration that counts now, on older connections too."""
    before = await Client.to(fast)
    await before.ask(GET)
    fast.clock.advance(2)
    await fast.application.reload(settings(**({"manifests": MANIFESTS} | RELOADS[name])))
    with counts.all(2):
        if name == "cluster":
            await before.ask(GET, 404)
            await asked(fast, GET, 404)
        else:
            assert await before.ask(GET) == OLD.manifest
            fast.clock.advance(2)
            await fast.application.reload(settings(**({"manifests": MANIFESTS} | RELOADS[name])))
            assert (await asked(fast, GET)).body == OLD.manifest
    assert upstream_of(registry) == ([("HEAD", TAG)] * 2 if name == "ttl" else [])
    before.leave()


async def test_a_reload_that_switches_it_off(fast: Proxy, settings: Callable[..., Settings], counts: Counts) -> None:
    """And on again: nothing of the time before is known."""
    client = await Client.to(fast)
    await fast.application.reload(settings(manifests=MANIFESTS, fast_path=False))
    handled = len(counts.handled)
    for _ in range(3):
        await client.ask(GET)
    assert len(counts.handled) - handled == 3
    await fast.application.reload(settings(manifests=MANIFESTS))
    with counts.all():
        await client.ask(GET)
    with counts.none():
        await client.ask(GET)
    client.leave()


async def test_a_request_that_was_under_way(
    fast: Proxy, settings: Callable[..., Settings], registry: FakeRegistry, counts: Counts
) -> None:
    """While the configuration changed: its answer is not kept for those who come after."""
    fast.clock.advance(301)

    async def reload(request: web.BaseRequest) -> web.StreamResponse:
        registry.__dict__.pop("answer")
        changed = {"clusters": RELOADS["cluster"]["clusters"], "manifests": MANIFESTS}
        await fast.application.reload(settings(**changed))
        return await registry.answer(request)

    registry.answer = reload  # type: ignore[method-assign]
    client = await Client.to(fast)
    assert await client.ask(GET) == OLD.manifest
    for _ in range(2):
        await client.ask(GET, 404)
    client.leave()
