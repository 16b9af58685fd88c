"""Clusters with different times share one entry: each is served by its own, and none spoils it for the others."""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web

from proxy.cache.singleflight import SingleFlight
from proxy.settings import Settings
from tests.fakes.content import make_image
from tests.fakes.proxy import Answer, Proxy, running
from tests.fakes.registry import FakeRegistry
from tests.fakes.server import Gate

OLD, NEW = make_image(10, seed=1), make_image(10, seed=2)
TAG = "/v2/team/app/manifests/latest"
LIST = "/v2/team/app/tags/list"
STRICT = {"tag_ttl": "1m", "stale_if_error": "0s", "negative_ttl": "10s"}
LENIENT = {"tag_ttl": "1h", "negative_ttl": "1h"}

MakeProxy = Callable[..., Any]


@pytest.fixture
def make(settings: Callable[..., Settings]) -> MakeProxy:
    """A proxy of two clusters, told apart by host name; keywords are more of the strict one's times."""

    def two(lenient: dict[str, Any] | None = None, **strict: Any) -> Any:
        clusters = [
            {"name": "strict", "match": {"hosts": ["strict.test"]}, "manifests": STRICT | strict},
            {"name": "lenient", "manifests": LENIENT | (lenient or {})},
        ]
        return running(settings(clusters=clusters))

    return two


@pytest.fixture
async def proxy(make: MakeProxy) -> AsyncIterator[Proxy]:
    async with make() as started:
        yield started


async def strict(proxy: Proxy, path: str = TAG, **headers: str) -> Answer:
    return await proxy.get(path, Host="strict.test", **headers)


def held_at(gate: Gate, registry: FakeRegistry, method: str, with_rights: bool = False) -> None:
    """Requests with `method` wait at the gate once they have been answered; those of named clients, or of nobody."""
    answer = registry.answer

    async def slow(request: web.BaseRequest) -> web.StreamResponse:
        found = await answer(request)
        if request.method == method and ("Authorization" in request.headers) == with_rights:
            await gate(0)
        return found

    registry.answer = slow  # type: ignore[method-assign]


async def test_one_entry_two_states(proxy: Proxy, registry: FakeRegistry) -> None:
    """After two minutes it is a hit for an hour's cluster, and a minute's asks; what that asks counts for both."""
    registry.push("team/app", "latest", OLD)
    await proxy.get(TAG)
    proxy.clock.advance(120)
    hit = await proxy.get(TAG)
    assert (hit.state, hit.headers["Age"]) == ("pullthrough; hit; ttl=3480", "120")
    assert (await strict(proxy)).state == "pullthrough; fwd=stale; fwd-status=200; ttl=60"
    confirmed = await proxy.get(TAG)
    assert (confirmed.state, confirmed.headers["Age"]) == ("pullthrough; hit; ttl=3600", "0")
    assert [seen.method for seen in registry.seen] == ["GET", "HEAD"]


async def test_what_the_strict_one_finds_the_others_see(proxy: Proxy, registry: FakeRegistry) -> None:
    """A new digest replaces the one entry: for everybody at once, and as old as it is."""
    registry.push("team/app", "latest", OLD)
    await proxy.get(TAG)
    registry.push("team/app", "latest", NEW)
    proxy.clock.advance(120)
    assert (await proxy.get(TAG)).body == OLD.manifest
    assert (await strict(proxy)).body == NEW.manifest
    proxy.clock.advance(30)
    for answer, ttl in ((await proxy.get(TAG), 3570), (await strict(proxy), 30)):
        assert (answer.body, answer.headers["Age"]) == (NEW.manifest, "30")
        assert answer.state == f"pullthrough; hit; ttl={ttl}"
        assert "Warning" not in answer.headers
    assert [seen.method for seen in registry.seen] == ["GET", "HEAD", "GET"]


async def test_joining_an_attempt_that_only_renews_a_proof(
    proxy: Proxy, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the lenient cluster the tag stays what it is, and that it moved is told; the strict one, which waited for the
    same HEAD, gets what the tag is now; and from then on everybody does."""
    registry.push("team/app", "latest", OLD)
    await proxy.get(TAG)
    registry.push("team/app", "latest", NEW)
    proxy.clock.advance(301)
    gate, has_joined, start = Gate(0), asyncio.Event(), SingleFlight.start

    def watched(flights: SingleFlight[Any], *arguments: Any) -> Any:
        task, joined = start(flights, *arguments)
        if joined:
            has_joined.set()
        return task, joined

    monkeypatch.setattr(SingleFlight, "start", watched)
    held_at(gate, registry, "HEAD")
    lenient = asyncio.create_task(proxy.get(TAG))
    await gate.reached.wait()
    joined = asyncio.create_task(strict(proxy))
    # It has no stale answer to leave with, so it waits.
    await has_joined.wait()
    gate.open()
    kept = await lenient
    assert (kept.body, kept.headers["Age"]) == (OLD.manifest, "301")
    assert NEW.digest in kept.headers["Warning"]
    moved = await joined
    assert (moved.body, moved.headers["Age"]) == (NEW.manifest, "0")
    assert (await proxy.get(TAG)).state == "pullthrough; hit; ttl=3600"
    assert registry.count("GET", NEW.digest) == 1
    assert registry.count("GET", TAG) == 1


async def test_an_older_word_does_not_replace_a_later_one(make: MakeProxy, registry: FakeRegistry) -> None:
    """Whose proof was renewed while another principal brought the new digest writes nothing over that."""
    registry.push("team/app", "latest", OLD)
    mine = "Basic " + base64.b64encode(b"me:secret").decode()
    async with make() as proxy:
        await proxy.get(TAG)
        await strict(proxy, Authorization=mine)
        proxy.clock.advance(301)
        gate = Gate(0)
        held_at(gate, registry, "HEAD")
        registry.push("team/app", "latest", NEW)
        lenient = asyncio.create_task(proxy.get(TAG))
        await gate.reached.wait()
        assert (await strict(proxy, Authorization=mine)).body == NEW.manifest
        gate.open()
        await lenient
        after = await proxy.get(TAG)
        assert (after.body, after.state) == (NEW.manifest, "pullthrough; hit; ttl=3600")


async def test_a_short_stale_window_is_its_own_affair(proxy: Proxy, registry: FakeRegistry) -> None:
    """In an outage the cluster without a stale window gets an error, the other one goes on with the same entry."""
    registry.push("team/app", "latest", OLD)
    await strict(proxy)
    await registry.stop()
    proxy.clock.advance(3700)
    assert (await strict(proxy)).status == 502
    stale = await proxy.get(TAG)
    assert (stale.body, stale.state) == (OLD.manifest, "pullthrough; hit; ttl=-100; detail=stale-connect")
    proxy.clock.advance(20)
    assert (await strict(proxy)).status == 502
    assert (await proxy.get(TAG)).body == OLD.manifest


async def test_what_short_times_store_is_kept_for_long_ones(make: MakeProxy, registry: FakeRegistry) -> None:
    """Lists and proofs of clients that a cluster asked for which keeps nothing are hits in another one."""
    registry.push("team/app", "latest", OLD)
    mine = "Basic " + base64.b64encode(b"me:secret").decode()
    nothing = dict.fromkeys(("tag_ttl", "stale_if_error", "proof_ttl", "proof_stale_if_error"), "0s")
    async with make(**nothing) as proxy:
        for path in (TAG, LIST):
            await strict(proxy, path, Authorization=mine)
            asked = len(registry.seen)
            assert (await proxy.get(path, Authorization=mine)).state == "pullthrough; hit; ttl=3600"
            assert len(registry.seen) == asked
            await strict(proxy, path, Authorization=mine)
            assert len(registry.seen) == asked + 1


async def test_each_remembers_404s_by_its_own_time(proxy: Proxy, registry: FakeRegistry) -> None:
    """The strict cluster asks again after ten seconds, the lenient one goes by the same 404 for an hour; no 404 counts
    longer for the strict one because another remembers it, nor shorter for the other because the strict one asked."""
    assert (await proxy.get(TAG)).status == 404
    proxy.clock.advance(3595)
    assert (await strict(proxy)).status == 404
    assert len(registry.seen) == 2
    proxy.clock.advance(9)
    assert (await strict(proxy)).status == 404
    assert len(registry.seen) == 2
    proxy.clock.advance(3000)
    assert (await proxy.get(TAG)).status == 404
    assert len(registry.seen) == 2
    registry.push("team/app", "latest", OLD)
    assert (await strict(proxy)).status == 200
    # Its proof lapses, and what it must not fall back to is the 404.
    proxy.clock.advance(301)
    assert (await proxy.get(TAG)).status == 200


async def test_rules_by_cluster_and_repository(make: MakeProxy, registry: FakeRegistry) -> None:
    """One tag, two clusters, two rules; and another repository, that no rule means."""
    rules = [{"repositories": "team/*", "tags": "v*", "ttl": "7d"}]
    async with make({"tag_rules": rules, "proof_ttl": "30d"}, tag_rules=[{"tags": "v1", "ttl": "2m"}]) as proxy:
        for repository in ("team/app", "other/app"):
            registry.push(repository, "v1", OLD)
        path, other = "/v2/team/app/manifests/v1", "/v2/other/app/manifests/v1"
        states = [(await proxy.get(path)).status, (await proxy.get(path)).state, (await strict(proxy, path)).state]
        assert states == [200, "pullthrough; hit; ttl=604800", "pullthrough; hit; ttl=120"]
        await proxy.get(other)
        assert (await proxy.get(other)).state == "pullthrough; hit; ttl=3600"
