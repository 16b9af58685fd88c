"""An upstream that fails is not noticed as long as what is cached may be stale."""

import asyncio
from collections.abc import Callable

import pytest
from aiohttp import web

from proxy.settings import Settings
from tests.fakes.content import digest_of, make_image
from tests.fakes.proxy import Proxy, running
from tests.fakes.registry import FakeRegistry
from tests.fakes.server import Gate

IMAGE = make_image(5000, seed=4)
TAG = "/v2/team/app/manifests/v1"


def answering(status: int, **headers: str) -> Callable[[web.BaseRequest], web.Response]:
    """A fault: every request is answered with `status`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda request: web.Response(status=status, headers=named, reason="Secret Reason", text="<html>")


@pytest.mark.parametrize(("status", "reason"), [(500, "5xx"), (503, "5xx"), (429, "429")])
async def test_a_stale_tag_is_served_by_class_of_failure(
    proxy: Proxy, registry: FakeRegistry, status: int, reason: str
) -> None:
    """5xx and 429: the cached manifest, with a Warning; during the back-off at once and without asking."""
    registry.push("team/app", "v1", IMAGE)
    await proxy.get(TAG)
    registry.fault = answering(status)
    proxy.clock.advance(700)
    first = await proxy.get(TAG)
    assert (first.status, first.body) == (200, IMAGE.manifest)
    assert first.state == f"pullthrough; fwd=stale; detail=stale-{reason}"
    assert first.headers["Warning"].startswith('299 - "')
    asked = len(registry.seen)
    second = await proxy.get(TAG)
    assert second.state == f"pullthrough; hit; ttl=-100; detail=stale-{reason}"
    assert len(registry.seen) == asked
    assert await proxy.metric(f'pullthrough_stale_served_total{{reason="{reason}"') == 2


async def test_a_stale_tag_is_served_when_nobody_listens(proxy: Proxy, registry: FakeRegistry) -> None:
    """No connection: stale for `stale_if_error`, blobs and digests from the cache, and 502 once that is over."""
    registry.push("team/app", "v1", IMAGE)
    await proxy.get(TAG)
    blob = f"/v2/team/app/blobs/{digest_of(IMAGE.blobs[1])}"
    await proxy.get(blob)
    await proxy.stored(1)
    await registry.stop()
    proxy.clock.advance(3600)
    assert (await proxy.get(TAG)).state == "pullthrough; fwd=stale; detail=stale-connect"
    assert (await proxy.get(f"/v2/team/app/manifests/{IMAGE.digest}")).body == IMAGE.manifest
    assert (await proxy.get(blob)).body == IMAGE.blobs[1]
    assert (await proxy.head(blob)).status == 200
    proxy.clock.advance(90_000)
    expired = await proxy.get(TAG)
    assert (expired.status, expired.code) == (502, "UNAVAILABLE")


async def test_a_silent_upstream_costs_revalidate_timeout_once(
    settings: Callable[..., Settings], registry: FakeRegistry
) -> None:
    """The first client waits `revalidate_timeout`, the next none at all; when the upstream is back, so is freshness."""
    registry.push("team/app", "v1", IMAGE)
    async with running(settings(manifests={"revalidate_timeout": "50ms"})) as proxy:
        await proxy.get(TAG)
        release = asyncio.Event()
        registry.fault = None
        answer = registry.answer

        async def silent(request: web.BaseRequest) -> web.StreamResponse:
            await release.wait()
            return await answer(request)

        registry.answer = silent  # type: ignore[method-assign]
        proxy.clock.advance(700)
        assert (await proxy.get(TAG)).state == "pullthrough; fwd=stale; detail=stale-timeout"
        assert (await proxy.get(TAG)).state == "pullthrough; hit; ttl=-100; detail=stale-timeout"
        assert len(registry.seen) == 2
        release.set()
        async with asyncio.timeout(5):
            while not (await proxy.get(TAG)).state.startswith("pullthrough; hit; ttl=600"):
                await asyncio.sleep(0)
        assert len(registry.seen) == 2


async def test_one_probe_goes_out_a_back_off_step(proxy: Proxy, registry: FakeRegistry) -> None:
    """After the step one request probes in the background while clients still get stale answers at once."""
    registry.push("team/app", "v1", IMAGE)
    await proxy.get(TAG)
    registry.fault = answering(503)
    proxy.clock.advance(700)
    await proxy.get(TAG)
    # Past the first step, whatever its jitter, and before the circuit is over.
    proxy.clock.advance(1.3)
    for _ in range(5):
        assert (await proxy.get(TAG)).state.startswith("pullthrough; hit; ttl=-1")
    async with asyncio.timeout(5):
        while len(registry.seen) < 3:
            await asyncio.sleep(0)
    assert [seen.method for seen in registry.seen] == ["GET", "HEAD", "HEAD"]


async def test_retry_after_is_obeyed_and_passed_on(proxy: Proxy, registry: FakeRegistry) -> None:
    """Nothing cached: 429 stays 429 with Retry-After, and until then the upstream is not asked again."""
    registry.fault = answering(429, Retry_After="120")
    first = await proxy.get(TAG)
    assert (first.status, first.code, first.headers["Retry-After"]) == (429, "TOOMANYREQUESTS", "120")
    proxy.clock.advance(60)
    again = await proxy.get(TAG)
    assert (again.status, again.headers["Retry-After"]) == (429, "60")
    assert len(registry.seen) == 1
    registry.fault = None
    registry.push("team/app", "v1", IMAGE)
    proxy.clock.advance(61)
    assert (await proxy.get(TAG)).status == 200


@pytest.mark.parametrize(("status", "code"), [(500, 502), (503, 502)])
async def test_nothing_cached_is_a_gateway_error(proxy: Proxy, registry: FakeRegistry, status: int, code: int) -> None:
    """A 5xx with nothing cached is 502 as OCI error JSON; the upstream's own words and reason stay with it."""
    registry.fault = answering(status)
    answer = await proxy.get(TAG)
    assert (answer.status, answer.code) == (code, "UNAVAILABLE")
    assert b"html" not in answer.body


async def test_a_read_timeout_is_504(settings: Callable[..., Settings], registry: FakeRegistry) -> None:
    """An upstream that takes a request and stays silent is 504."""
    gate = Gate(0)

    async def silent(_request: web.BaseRequest) -> web.StreamResponse:
        await gate(0)
        raise ConnectionResetError

    registry.answer = silent  # type: ignore[method-assign,assignment]
    async with running(settings({"read_timeout": "100ms"})) as proxy:
        answer = await proxy.get(TAG)
        assert (answer.status, answer.code) == (504, "UNAVAILABLE")
        gate.open()
