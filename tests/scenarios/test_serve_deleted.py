"""What an upstream has deleted is served on where that is wanted, and nowhere else."""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from proxy.settings import Settings
from tests.fakes.content import digest_of, make_image
from tests.fakes.proxy import Answer, Proxy, running
from tests.fakes.registry import FakeRegistry

OLD, NEW = make_image(5000, seed=1), make_image(5000, seed=2)
TAG = "/v2/team/app/manifests/v1"
MANIFEST = f"/v2/team/app/manifests/{OLD.digest}"
BLOB = f"/v2/team/app/blobs/{digest_of(OLD.blobs[1])}"
MINE = "Basic " + base64.b64encode(b"me:secret").decode()
CLUSTERS = [
    {"name": "plain", "match": {"hosts": ["plain.test"]}},
    {"name": "default", "manifests": {"serve_deleted": True}},
]

MakeSettings = Callable[..., Settings]


@pytest.fixture
async def proxy(settings: MakeSettings, registry: FakeRegistry) -> AsyncIterator[Proxy]:
    """A proxy that has the image; its cluster `default` wants to keep it, its cluster `plain` does not."""
    registry.push("team/app", "v1", OLD)
    async with running(settings(clusters=CLUSTERS)) as started:
        for path in (TAG, BLOB):
            assert (await started.get(path)).status == 200
        await started.stored(1)
        yield started


def delete(registry: FakeRegistry) -> None:
    registry.tags.clear()
    registry.members.clear()
    registry.seen.clear()


async def is_quiet() -> None:
    """Wait until no attempt is under way."""
    async with asyncio.timeout(5):
        while any(task.get_name().startswith("manifest ") for task in asyncio.all_tasks()):
            await asyncio.sleep(0)


async def plain(proxy: Proxy, path: str = TAG, **headers: Any) -> Answer:
    return await proxy.get(path, Host="plain.test", **headers)


async def test_a_deleted_tag_is_served_on(proxy: Proxy, registry: FakeRegistry) -> None:
    """As stale, with a Warning that it is gone; the upstream is asked once a TTL, and nobody waits for a GET."""
    delete(registry)
    proxy.clock.advance(601)
    first = await proxy.get(TAG)
    assert (first.status, first.body) == (200, OLD.manifest)
    assert first.state == "pullthrough; fwd=stale; detail=stale-404"
    assert first.headers["Warning"] == '299 - "v1 is gone upstream; it was last seen there 601 s ago"'
    for method in ("GET", "HEAD"):
        again = await proxy.get(TAG, method)
        assert (again.status, again.state) == (200, "pullthrough; hit; ttl=-1; detail=stale-404")
        assert "is gone upstream" in again.headers["Warning"]
    assert [seen.method for seen in registry.seen] == ["HEAD"]
    for round_ in range(2, 5):
        proxy.clock.advance(601)
        assert (await proxy.get(TAG)).state == "pullthrough; fwd=stale; detail=stale-404"
        assert [seen.method for seen in registry.seen] == ["HEAD"] * round_
    proxy.clock.advance(10 * 86400)
    assert (await proxy.get(TAG)).body == OLD.manifest
    assert await proxy.metric('pullthrough_stale_served_total{reason="404"') == 7


async def test_the_whole_image_is(proxy: Proxy, registry: FakeRegistry) -> None:
    """Its manifest by digest and its blobs too, each asked for once a TTL."""
    delete(registry)
    for _ in range(2):
        proxy.clock.advance(601)
        for path, body in ((MANIFEST, OLD.manifest), (BLOB, OLD.blobs[1])):
            registry.seen.clear()
            answer = await proxy.get(path)
            assert (answer.status, answer.body) == (200, body)
            assert answer.state == "pullthrough; fwd=stale; detail=stale-404"
            assert "is gone upstream" in answer.headers["Warning"]
            for method in ("GET", "HEAD"):
                assert (await proxy.get(path, method)).state == "pullthrough; hit; detail=stale-404"
            assert [seen.method for seen in registry.seen] == ["HEAD"]


async def test_what_comes_back_is_what_it_is_now(proxy: Proxy, registry: FakeRegistry) -> None:
    """The same again, or another one; no trace is left of its having been gone."""
    for image, state in ((OLD, "fwd=stale; fwd-status=200; ttl=600"), (NEW, "fwd=miss; stored")):
        delete(registry)
        proxy.clock.advance(601)
        assert (await proxy.get(TAG)).state.endswith("detail=stale-404")
        registry.push("team/app", "v1", image)
        proxy.clock.advance(601)
        back = await proxy.get(TAG)
        assert (back.body, back.state) == (image.manifest, f"pullthrough; {state}")
        assert "Warning" not in back.headers
        assert (await proxy.get(TAG)).state == "pullthrough; hit; ttl=600"


async def test_it_outlives_an_outage_as_well(proxy: Proxy, registry: FakeRegistry) -> None:
    """Gone, and then nobody answers: it is still served, as what cannot be asked for now."""
    delete(registry)
    proxy.clock.advance(601)
    await proxy.get(TAG)
    await registry.stop()
    proxy.clock.advance(3600)
    answer = await proxy.get(TAG)
    assert (answer.status, answer.state) == (200, "pullthrough; fwd=stale; detail=stale-connect")


async def test_other_clusters_get_their_404(proxy: Proxy, registry: FakeRegistry) -> None:
    """Where it is not wanted it is gone, tag, manifest and blob, also for an outage; and not so for who wants it."""
    delete(registry)
    proxy.clock.advance(601)
    for path in (TAG, MANIFEST, BLOB):
        assert (await plain(proxy, path)).status == 404
    for path in (TAG, MANIFEST, BLOB):
        assert (await proxy.get(path)).status == 200
        assert (await plain(proxy, path)).status == 404
    await registry.stop()
    proxy.clock.advance(601)
    for path in (TAG, MANIFEST, BLOB):
        assert (await proxy.get(path)).status == 200
        assert (await plain(proxy, path)).status == 502


async def test_by_default_it_is_gone_for_everybody(settings: MakeSettings, registry: FakeRegistry) -> None:
    """Nothing is left of it."""
    registry.push("team/app", "v1", OLD)
    async with running(settings()) as proxy:
        await proxy.get(TAG)
        delete(registry)
        proxy.clock.advance(601)
        assert (await proxy.get(TAG)).status == 404
        await registry.stop()
        proxy.clock.advance(11)
        assert (await proxy.get(TAG)).status == 502


async def test_a_404_may_be_a_refusal_to_a_client(proxy: Proxy, registry: FakeRegistry) -> None:
    """With a credential of its own a client is served only while its right is known from elsewhere in the repository;
    without a proof nobody is, whoever they are."""
    await proxy.get(TAG, Authorization=MINE)
    proxy.clock.advance(400)
    registry.push("team/app", "other", NEW)
    await proxy.get("/v2/team/app/manifests/other", Authorization=MINE)
    delete(registry)
    proxy.clock.advance(201)
    assert (await proxy.get(TAG, Authorization=MINE)).body == OLD.manifest
    proxy.clock.advance(100)
    assert (await proxy.get(TAG, Authorization=MINE)).status == 404
    assert (await proxy.get(TAG, Authorization="Bearer unknown")).status == 404
    assert (await proxy.get(TAG)).body == OLD.manifest


async def test_a_refusal_is_no_404(proxy: Proxy, registry: FakeRegistry) -> None:
    """A repository that turned private is refused, and deleted or not it stays so for those it refused."""
    registry.private = {"team/app": {"alice"}}
    proxy.clock.advance(601)
    assert (await proxy.get(TAG)).status == 401
    registry.private = None
    delete(registry)
    assert (await proxy.get(TAG)).status == 404


async def test_a_head_promises_no_bytes_that_are_not_here(settings: MakeSettings, registry: FakeRegistry) -> None:
    """A metadata-only cluster's blobs come from the upstream: what is gone there is gone."""
    registry.push("team/app", "v1", OLD)
    clusters = [{"name": "default", "mode": "metadata-only", "manifests": {"serve_deleted": True}}]
    async with running(settings(clusters=clusters)) as proxy:
        await proxy.get(BLOB)
        delete(registry)
        proxy.clock.advance(601)
        for method in ("HEAD", "GET"):
            assert (await proxy.get(BLOB, method)).status == 404


async def test_what_is_gone_is_not_asked_for_ahead_again_and_again(
    settings: MakeSettings, registry: FakeRegistry
) -> None:
    """With `refresh_ahead` the upstream's word that it is gone is renewed ahead of its end, not by each request."""
    registry.push("team/app", "v1", OLD)
    times = {"serve_deleted": True, "refresh_ahead": "10%", "proof_ttl": "1d"}
    async with running(settings(manifests=times)) as proxy:
        await proxy.get(TAG)
        delete(registry)
        proxy.clock.advance(601)
        for asked in (1, 1, 1):
            assert (await proxy.get(TAG)).state.endswith("detail=stale-404")
            await is_quiet()
            assert len(registry.seen) == asked
        proxy.clock.advance(550)
        for _ in range(3):
            assert (await proxy.get(TAG)).state == "pullthrough; hit; ttl=-551; detail=stale-404"
            await is_quiet()
        assert [seen.method for seen in registry.seen] == ["HEAD"] * 2


async def test_no_right_lasts_longer_for_what_is_gone(settings: MakeSettings, registry: FakeRegistry) -> None:
    """A repository that turns private refuses whoever comes once `proof_ttl` is over, however long a TTL is."""
    registry.push("team/app", "v1", OLD)
    async with running(settings(clusters=CLUSTERS, manifests={"tag_ttl": "7d"})) as proxy:
        for path in (TAG, MANIFEST, BLOB):
            await proxy.get(path)
        await proxy.stored(1)
        delete(registry)
        proxy.clock.advance(7 * 86400 + 1)
        for path in (TAG, MANIFEST, BLOB):
            assert (await proxy.get(path)).state.endswith("detail=stale-404")
        registry.private = {"team/app": {"alice"}}
        proxy.clock.advance(301)
        for path in (TAG, MANIFEST, BLOB):
            assert (await proxy.get(path)).status == 401


async def test_head_and_get_agree_on_what_nobody_had(settings: MakeSettings, registry: FakeRegistry) -> None:
    """Only the head of the manifest was ever asked for: gone upstream it is gone, and stays so when it is known."""
    registry.push("team/app", "v1", OLD)
    async with running(settings(manifests={"serve_deleted": True})) as proxy:
        for path in (TAG, MANIFEST):
            assert (await proxy.get(path, "HEAD")).status == 200
        delete(registry)
        for _ in range(2):
            proxy.clock.advance(601)
            for path in (TAG, MANIFEST):
                assert [(await proxy.get(path, method)).status for method in ("HEAD", "GET", "HEAD")] == [404] * 3
