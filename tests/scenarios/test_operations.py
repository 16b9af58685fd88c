"""What operators stand on: health, readiness, metrics, logs, the lock, the end."""

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from proxy.app import Application
from proxy.server.listener import ListenError
from proxy.settings import Settings
from proxy.sharing import StartError
from proxy.storage.base import StorageError
from proxy.telemetry.events import RequestFinished
from proxy.telemetry.logs import flush_logging, setup_logging
from tests.fakes.content import digest_of, make_image, random_bytes
from tests.fakes.proxy import Proxy, running
from tests.fakes.registry import FakeRegistry
from tests.fakes.server import Gate

BLOB = random_bytes(2_000_000, 20)


async def admin(proxy: Proxy, path: str, method: str = "GET") -> tuple[int, str]:
    async with proxy.session.request(method, proxy.admin_url + path) as response:
        return response.status, await response.text()


async def test_health_readiness_and_nothing_else(proxy: Proxy) -> None:
    """/healthz and /readyz say ok; other paths are 404, other methods 405."""
    assert await admin(proxy, "/healthz") == (200, "ok\n")
    assert await admin(proxy, "/readyz") == (200, "ok\n")
    assert (await admin(proxy, "/metrics"))[0] == 200
    assert (await admin(proxy, "/nothing"))[0] == 404
    assert (await admin(proxy, "/metrics", "POST"))[0] == 405


async def test_a_request_is_counted_once(proxy: Proxy, registry: FakeRegistry) -> None:
    """Requests, bytes both ways and seconds have their labels."""
    digest = registry.put("team/app", "application/octet-stream", BLOB)
    await proxy.get(f"/v2/team/app/blobs/{digest}")
    labels = 'cache="miss",cluster="default",kind="blob",method="GET",registry="registry.test",status="200"'
    assert await proxy.metric(f"pullthrough_requests_total{{{labels}}}") == 1
    sent = 'pullthrough_client_bytes_total{cache="miss",cluster="default",kind="blob",registry="registry.test"}'
    assert await proxy.metric(sent) == len(BLOB)
    assert await proxy.metric('pullthrough_request_seconds_count{cache="miss",kind="blob"}') == 1
    assert await proxy.metric("pullthrough_upstream_bytes_total") == len(BLOB)


async def test_rate_limits_are_shown(proxy: Proxy, registry: FakeRegistry) -> None:
    """What the upstream says is left becomes a metric."""
    from aiohttp import web

    registry.fault = lambda request: web.Response(status=404, headers={"ratelimit-remaining": "76;w=21600"})
    await proxy.get("/v2/team/app/manifests/v1")
    assert await proxy.metric("pullthrough_upstream_ratelimit_remaining") == 76


async def test_the_end_lets_bodies_finish(settings: Callable[..., Settings], registry: FakeRegistry) -> None:
    """On the way out readiness turns first; a body that runs is sent to its end, and then the drain is over."""
    digest = registry.put("team/app", "application/octet-stream", BLOB)
    registry.pause = gate = Gate(1_000_000)
    async with running(settings()) as proxy:
        body = asyncio.create_task(proxy.get(f"/v2/team/app/blobs/{digest}"))
        await gate.reached.wait()
        drain = asyncio.create_task(proxy.application.drain())
        await asyncio.sleep(0)
        assert (await admin(proxy, "/readyz")) == (503, "shutting down\n")
        assert not drain.done()
        gate.open()
        assert (await body).body == BLOB
        await drain


async def test_the_end_does_not_wait_for_ever(settings: Callable[..., Settings], registry: FakeRegistry) -> None:
    """A body that does not end within shutdown_timeout is cut."""
    digest = registry.put("team/app", "application/octet-stream", BLOB)
    registry.pause = gate = Gate(1_000_000)
    async with running(settings(shutdown_timeout="50ms")) as proxy:
        async with proxy.session.get(f"{proxy.url}/v2/team/app/blobs/{digest}") as response:
            await response.content.readexactly(10)
            await proxy.application.drain()
            await proxy.application.close()
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()
    gate.open()


async def test_a_directory_serves_one_process(settings: Callable[..., Settings]) -> None:
    """A second proxy on the same cache directory is refused, with one line."""
    async with running(settings()):
        with pytest.raises(StorageError, match="in use by another process"):
            await Application(settings()).start()


async def test_an_address_in_use_is_one_line(settings: Callable[..., Settings], tmp_path: Path) -> None:
    """An address that is taken is a ListenError, and leaves nothing open behind it."""
    async with running(settings()) as proxy:
        taken = str(proxy.application.listeners[0].address)
        other = settings(listen=[{"address": taken}], cache={"directory": str(tmp_path / "other")})
        with pytest.raises(ListenError, match=taken):
            await Application(other).start()


async def test_a_missing_ca_is_one_line(settings: Callable[..., Settings], tmp_path: Path) -> None:
    """A `ca` that is not there is a StartError that names the registry."""
    with pytest.raises(StartError, match=r"registry\.test"):
        await Application(settings({"ca": str(tmp_path / "none.crt")})).start()


async def test_the_access_line(proxy: Proxy, registry: FakeRegistry, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON logs have one line a request with everything that tells it from others, and no secret."""
    root, handlers, level = logging.getLogger(), list(logging.getLogger().handlers), logging.getLogger().level
    setup_logging("info", "json", True)
    try:
        image = make_image(5, seed=1)
        registry.push("team/app", "v1", image)
        await proxy.get("/v2/team/app/manifests/v1", Authorization="Bearer very-secret")
        await proxy.get("/v2/team/app/manifests/v1")
        blob = f"/v2/team/app/blobs/{digest_of(image.blobs[0])}"
        await proxy.get(blob)
        async with asyncio.timeout(5):
            while await proxy.metric("pullthrough_requests_total") < 3:
                await asyncio.sleep(0)
        flush_logging()
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    text = capsys.readouterr().err
    assert "very-secret" not in text
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["cache"] for line in lines] == ["miss", "revalidated", "miss"]
    wanted = {"cluster", "registry", "repository", "reference", "status", "cache", "bytes", "seconds"}
    assert all(wanted <= line.keys() for line in lines)
    assert (lines[1]["reference"], lines[1]["bytes"]) == ("v1", len(image.manifest))


async def test_what_is_tallied_is_read_at_once(proxy: Proxy, registry: FakeRegistry) -> None:
    """Requests that were counted in a batch are in the next page of metrics, and in the hit ratio."""
    event = RequestFinished(
        "", "default", "registry.test", "blob", "GET", "team/app", "v1", 200, "hit", "", 5_000_000, 0.0, 0.0
    )
    sent = 'pullthrough_client_bytes_total{cache="hit",cluster="default",kind="blob",registry="registry.test"}'
    tally = proxy.application.tallies.of(event)
    for count in (1, 2):
        tally.add("192.0.2.1", 0.0001)
        assert await proxy.metric(sent) == count * 5_000_000
    tally.add("192.0.2.1", 0.0001)
    _, text = await admin(proxy, "/api/v1/stats")
    (cluster,) = json.loads(text)["clusters"]
    assert "15000000" in json.dumps(cluster)


async def test_the_end_tells_what_was_tallied(
    settings: Callable[..., Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither counts nor access lines are lost."""
    root, handlers, level = logging.getLogger(), list(logging.getLogger().handlers), logging.getLogger().level
    setup_logging("info", "text", True)
    try:
        async with running(settings()) as proxy:
            event = RequestFinished("", "default", "", "ping", "GET", "", "", 200, "pass", "", 2, 0.0, 0.0)
            proxy.application.tallies.of(event).add("192.0.2.1", 0.0001)
            metrics = proxy.application._metrics
            assert b'kind="ping"' not in metrics.render()
            assert "kind=ping" not in capsys.readouterr().err
        assert b'kind="ping"' in metrics.render()
        assert "kind=ping" in capsys.readouterr().err
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
