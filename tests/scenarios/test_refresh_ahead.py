"""Popular tags are checked before their time is over, so that nobody ever waits for the upstream."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from aiohttp import web

from proxy.settings import Settings
from tests.fakes.clock import ManualClock
from tests.fakes.content import make_image
from tests.fakes.fleet import fleet, write_config
from tests.fakes.proxy import Proxy, make_settings, running
from tests.fakes.registry import FakeRegistry
from tests.fakes.server import Gate

OLD, NEW = make_image(10, seed=1), make_image(10, seed=2)
TAG = "/v2/team/app/manifests/latest"
AHEAD = {"refresh_ahead": "10%", "proof_ttl": "1h"}


@pytest.fixture
async def proxy(settings: Callable[..., Settings], registry: FakeRegistry) -> AsyncIterator[Proxy]:
    """A proxy that has had the tag, and refreshes in the last minute of its ten."""
    registry.push("team/app", "latest", OLD)
    async with running(settings(manifests=AHEAD)) as started:
        await started.get(TAG)
        yield started


async def is_quiet() -> None:
    """Wait until no attempt is under way."""
    async with asyncio.timeout(5):
        while any(task.get_name().startswith("manifest ") for task in asyncio.all_tasks()):
            await asyncio.sleep(0)


async def test_it_is_a_hit_at_once_and_checked_behind_it(proxy: Proxy, registry: FakeRegistry) -> None:
    """The answer does not wait for the HEAD, which makes the tag fresh for a whole TTL again."""
    proxy.clock.advance(539)
    await proxy.get(TAG)
    await is_quiet()
    assert len(registry.seen) == 1
    gate, answer = Gate(0), registry.answer

    async def held(request: web.BaseRequest) -> web.StreamResponse:
        await gate(0)
        return await answer(request)

    registry.answer = held  # type: ignore[method-assign]
    proxy.clock.advance(1)
    # One HEAD, however many ask while it is under way.
    for _ in range(5):
        assert (await proxy.get(TAG)).state == "pullthrough; hit; ttl=60"
    await gate.reached.wait()
    gate.open()
    await is_quiet()
    assert (await proxy.get(TAG)).state == "pullthrough; hit; ttl=600"
    proxy.clock.advance(539)
    await proxy.get(TAG)
    await is_quiet()
    assert [seen.method for seen in registry.seen] == ["GET", "HEAD"]


async def test_what_has_changed_counts_at_once(proxy: Proxy, registry: FakeRegistry) -> None:
    """HEAD, GET by digest, and the next request has the new one, although the old one was fresh still."""
    registry.push("team/app", "latest", NEW)
    proxy.clock.advance(550)
    assert (await proxy.get(TAG)).body == OLD.manifest
    await is_quiet()
    answer = await proxy.get(TAG)
    assert (answer.body, answer.state, answer.headers["Age"]) == (NEW.manifest, "pullthrough; hit; ttl=600", "0")
    assert [(seen.method, seen.path) for seen in registry.seen[1:]] == [
        ("HEAD", TAG),
        ("GET", f"/v2/team/app/manifests/{NEW.digest}"),
    ]


@pytest.mark.parametrize("status", [429, 503])
async def test_it_leaves_a_failing_upstream_alone(proxy: Proxy, registry: FakeRegistry, status: int) -> None:
    """One attempt a back-off step, whoever asks; clients have hits all the while."""
    registry.fault = lambda request: web.Response(status=status)
    proxy.application._learnt.circuits._jitter = lambda: 0.5
    proxy.clock.advance(541)
    asked_at = []
    for second in range(14):
        before = len(registry.seen)
        for _ in range(3):
            assert (await proxy.get(TAG)).state == f"pullthrough; hit; ttl={59 - second}"
            await is_quiet()
        asked_at += [second] * (len(registry.seen) - before)
        proxy.clock.advance(1)
    assert asked_at == [0, 1, 3, 7]


async def test_it_has_the_rights_of_who_asked(settings: Callable[..., Settings], registry: FakeRegistry) -> None:
    """A client's own Authorization goes with the HEAD; a refusal ends its right, and no one else's."""
    registry.push("team/app", "latest", OLD)
    registry.private = {"team/app": {"me"}}
    token = f"Bearer {registry.token('me', 'team/app')}"
    async with running(settings(manifests=AHEAD)) as proxy:
        await proxy.get(TAG, Authorization=token)
        proxy.clock.advance(550)
        assert (await proxy.get(TAG, Authorization=token)).state == "pullthrough; hit; ttl=50"
        await is_quiet()
        assert [seen.headers.get("Authorization") for seen in registry.seen] == [token, token]
        registry.revoke_tokens()
        proxy.clock.advance(550)
        assert (await proxy.get(TAG, Authorization=token)).status == 200
        await is_quiet()
        assert (await proxy.get(TAG, Authorization=token)).status == 401


async def test_what_nobody_asks_for_is_left_alone(settings: Callable[..., Settings], registry: FakeRegistry) -> None:
    """A tag without a request in its last minute is asked for when the next one comes."""
    registry.push("team/app", "latest", OLD)
    async with running(settings(manifests=AHEAD)) as proxy:
        await proxy.get(TAG)
        proxy.clock.advance(600)
        assert len(registry.seen) == 1


async def test_two_workers_ask_once(tmp_path: Path, registry: FakeRegistry) -> None:
    """Requests at both of them in the last minute cost one HEAD."""
    registry.push("team/app", "latest", OLD)
    upstreams = {"registry.test": {"url": registry.url}}
    config = make_settings(tmp_path / "cache", upstreams)
    async with running(config, ManualClock(time.time() - 270)) as before:
        await before.get(TAG)
    registry.seen.clear()
    gate, answer = Gate(0), registry.answer

    async def held(request: web.BaseRequest) -> web.StreamResponse:
        await gate(0)
        return await answer(request)

    registry.answer = held  # type: ignore[method-assign]
    times = {"refresh_ahead": "90%", "proof_ttl": "1h"}
    async with fleet(write_config(tmp_path, upstreams, manifests=times)) as proxy:
        for worker in proxy.workers() * 3:
            reader = await proxy.reader_at(worker, TAG)
            await reader.head()
            assert reader.headers["cache-status"].startswith("pullthrough; hit; ttl=3")
            reader.leave()
        await gate.reached.wait()
        gate.open()
        for worker in proxy.workers():
            while True:
                reader = await proxy.reader_at(worker, TAG)
                await reader.head()
                reader.leave()
                if reader.headers["cache-status"].startswith(("pullthrough; hit; ttl=6", "pullthrough; hit; ttl=59")):
                    break
        assert [seen.method for seen in registry.seen] == ["HEAD"]
