"""A failure concerns what failed: not the whole registry, and not for longer than it lasts."""

from collections.abc import Callable

import pytest
from aiohttp import web

from proxy.settings import Settings
from tests.fakes.content import digest_of, make_image
from tests.fakes.proxy import Proxy, running
from tests.fakes.registry import FakeRegistry, FakeStorage

IMAGE, NEW = make_image(5000, seed=50), make_image(5000, seed=51)
TAG = "/v2/team/app/manifests/v1"
BLOB = f"/v2/team/app/blobs/{digest_of(IMAGE.blobs[1])}"


@pytest.mark.parametrize("status", [None, 429, 503])
async def test_a_storage_hosts_failure_is_not_the_registrys(
    proxy: Proxy, registry: FakeRegistry, storage: FakeStorage, status: int | None
) -> None:
    """When the host of a redirect is dead or limits, blobs fail; cold manifests of the registry are still served."""
    registry.push("team/app", "v1", IMAGE)
    if status is None:
        registry.storage = storage
        await storage.stop()
    else:
        limited = FakeRegistry(fault=lambda request: web.Response(status=status, headers={"Retry-After": "3600"}))
        await limited.start()
        registry.storage = FakeStorage(url=limited.url)
    assert (await proxy.get(BLOB)).status == 502
    registry.push("team/other", "v1", NEW)
    assert (await proxy.get("/v2/team/other/manifests/v1")).status == 200
    assert (await proxy.get(TAG)).status == 200
    if status is not None:
        await limited.stop()


async def test_a_failure_of_long_ago_says_nothing(proxy: Proxy, registry: FakeRegistry) -> None:
    """A blob's 503 makes no tag stale, neither then nor hours later."""
    registry.push("team/app", "v1", IMAGE)
    await proxy.get(TAG)
    registry.fault = lambda request: web.Response(status=503) if "/blobs/" in request.path else None
    assert (await proxy.get(BLOB)).status == 502
    registry.push("team/app", "v1", NEW)
    proxy.clock.advance(700)
    assert (await proxy.get(TAG)).body == NEW.manifest


async def test_an_old_circuit_is_over(proxy: Proxy, registry: FakeRegistry) -> None:
    """Hours after a tag's upstream failed the first request asks for itself and is fresh."""
    registry.push("team/app", "v1", IMAGE)
    await proxy.get(TAG)
    registry.fault = lambda request: web.Response(status=503)
    proxy.clock.advance(700)
    assert (await proxy.get(TAG)).state.endswith("stale-5xx")
    registry.fault = None
    registry.push("team/app", "v1", NEW)
    proxy.clock.advance(20_000)
    assert (await proxy.get(TAG)).body == NEW.manifest


async def test_a_bad_tag_makes_no_other_stale(proxy: Proxy, registry: FakeRegistry) -> None:
    """A tag whose manifest is invalid, polled again and again, leaves the repository's other tags fresh."""
    registry.push("team/app", "v1", IMAGE)
    await proxy.get(TAG)
    bad = "/v2/team/app/manifests/bad"
    registry.fault = lambda request: web.Response(body=b"[]") if request.path == bad else None
    assert (await proxy.get(bad)).status == 502
    registry.push("team/app", "v1", NEW)
    proxy.clock.advance(601)
    assert (await proxy.get(bad)).status == 502
    assert (await proxy.get(TAG)).body == NEW.manifest


async def test_a_clock_set_back_closes_nothing(proxy: Proxy, registry: FakeRegistry) -> None:
    """A circuit from "the future" is over: the registry is asked."""
    registry.fault = lambda request: web.Response(status=429, headers={"Retry-After": "600"})
    assert (await proxy.get(TAG)).status == 429
    registry.fault = None
    registry.push("team/app", "v1", IMAGE)
    proxy.clock.advance(-86_400)
    assert (await proxy.get(TAG)).status == 200


async def test_a_poor_head_changes_nothing_that_is_known(proxy: Proxy, registry: FakeRegistry) -> None:
    """A HEAD with the right digest, another type and length 0 confirms; GET and HEAD stay what they were."""
    registry.push("team/app", "v1", IMAGE)
    await proxy.get(TAG)
    poor = {"Docker-Content-Digest": IMAGE.digest, "Content-Type": "text/plain", "Content-Length": "0"}
    registry.fault = lambda request: web.Response(headers=poor) if request.method == "HEAD" else None
    proxy.clock.advance(601)
    for _ in range(2):
        got, head = await proxy.get(TAG), await proxy.head(TAG)
        assert got.body == IMAGE.manifest
        assert head.headers["Content-Length"] == str(len(IMAGE.manifest))
        assert got.headers["Content-Type"] == head.headers["Content-Type"] == IMAGE.media_type


async def test_a_deep_404_body_and_odd_redirects_are_answered(
    settings: Callable[..., Settings], registry: FakeRegistry
) -> None:
    """Whatever the upstream says, a blob's client gets an answer."""
    async with running(settings()) as proxy:
        registry.fault = lambda request: web.Response(status=404, text="[" * 60_000)
        assert (await proxy.get(BLOB)).status == 404
        for host in ("a..b", "x" * 64):
            proxy.clock.advance(600)
            registry.fault = lambda request, host=host: web.Response(
                status=307, headers={"Location": f"http://{host}/"}
            )
            assert (await proxy.get(BLOB)).status == 502


async def test_a_gone_blob_does_not_come_back(proxy: Proxy, registry: FakeRegistry) -> None:
    """What the upstream answered with 404 stays 404, when a manifest has renewed the proof as well."""
    registry.push("team/app", "v1", IMAGE)
    await proxy.get(BLOB)
    await proxy.stored(1)
    registry.members.discard(("team/app", digest_of(IMAGE.blobs[1])))
    proxy.clock.advance(301)
    assert (await proxy.get(BLOB)).status == 404
    await proxy.get(TAG)
    proxy.clock.advance(11)
    assert (await proxy.get(BLOB)).status == 404


async def test_a_silent_upstream_does_not_hold_what_is_here(
    settings: Callable[..., Settings], registry: FakeRegistry
) -> None:
    """Lapsed proofs of a cached digest and a cached blob cost revalidate_timeout once, then nothing."""
    import asyncio

    registry.push("team/app", "v1", IMAGE)
    async with running(settings(manifests={"revalidate_timeout": "50ms"})) as proxy:
        digest = f"/v2/team/app/manifests/{IMAGE.digest}"
        await proxy.get(digest)
        await proxy.get(BLOB)
        await proxy.stored(1)
        release = asyncio.Event()

        async def silent(_request: web.BaseRequest) -> web.StreamResponse:
            await release.wait()
            return web.Response(status=503)

        registry.answer = silent  # type: ignore[method-assign,assignment]
        proxy.clock.advance(400)
        asked = len(registry.seen)
        for path in (digest, BLOB) * 3:
            assert (await proxy.get(path)).state == "pullthrough; hit"
        assert len(registry.seen) == asked + 2
        release.set()
