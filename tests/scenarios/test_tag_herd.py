"""A region wakes up: hundreds of nodes ask for tags that have all just expired, of one worker or of two."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from tests.fakes.clock import ManualClock
from tests.fakes.content import make_image
from tests.fakes.fleet import Fleet, fleet, write_config
from tests.fakes.proxy import make_settings, running
from tests.fakes.reader import Reader
from tests.fakes.registry import FakeRegistry
from tests.fakes.server import Gate

NODES, TAGS = 200, 10
OLD = [make_image(100, seed=number) for number in range(TAGS)]
NEW = [make_image(100, seed=100 + number) for number in range(TAGS)]
PATHS = [f"/v2/team/app/manifests/v{number}" for number in range(TAGS)]


@asynccontextmanager
async def woken(directory: Path, registry: FakeRegistry, workers: int) -> AsyncIterator[Fleet]:
    """A proxy whose cache has all the tags, last checked eleven minutes ago."""
    for number, image in enumerate(OLD):
        registry.push("team/app", f"v{number}", image)
    upstreams = {"registry.test": {"url": registry.url}}
    async with running(make_settings(directory / "cache", upstreams), ManualClock(time.time() - 660)) as before:
        for path in PATHS:
            assert (await before.get(path)).status == 200
    registry.seen.clear()
    async with fleet(write_config(directory, upstreams, workers=workers)) as started:
        yield started


async def herd(proxy: Fleet, method: str = "GET") -> list[bytes]:
    """Every node asks for every tag at once, on a connection of its own."""

    async def node() -> list[bytes]:
        options = aiohttp.ClientTimeout(total=20)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1), timeout=options) as session:
            found = []
            for path in PATHS:
                async with session.request(method, proxy.url + path) as answer:
                    assert answer.status == 200
                    found.append(await answer.read())
            return found

    return [body for found in await asyncio.gather(*(node() for _ in range(NODES))) for body in found]


def hold_heads(registry: FakeRegistry, gate: Gate) -> None:
    """HEADs are answered once the gate is open."""
    answer = registry.answer

    async def held(request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "HEAD":
            await gate(0)
        return await answer(request)

    registry.answer = held  # type: ignore[method-assign]


@pytest.mark.parametrize("workers", [1, 2])
async def test_nothing_has_changed(tmp_path: Path, registry: FakeRegistry, workers: int) -> None:
    """Two thousand requests cost ten HEADs and not one GET."""
    async with woken(tmp_path, registry, workers) as proxy:
        bodies = await herd(proxy)
        assert sorted(set(bodies)) == sorted(image.manifest for image in OLD)
        assert len(bodies) == NODES * TAGS
        assert sorted((seen.method, seen.path) for seen in registry.seen) == [("HEAD", path) for path in PATHS]


@pytest.mark.parametrize("workers", [1, 2])
async def test_all_of_them_have_changed(tmp_path: Path, registry: FakeRegistry, workers: int) -> None:
    """Ten HEADs, and ten GETs by digest; from then on everybody has the new ones without asking."""
    async with woken(tmp_path, registry, workers) as proxy:
        for number, image in enumerate(NEW):
            registry.push("team/app", f"v{number}", image)
        await herd(proxy)
        expected = [("HEAD", path) for path in PATHS]
        expected += [("GET", f"/v2/team/app/manifests/{image.digest}") for image in NEW]
        assert sorted((seen.method, seen.path) for seen in registry.seen) == sorted(expected)
        assert sorted(set(await herd(proxy))) == sorted(image.manifest for image in NEW)
        assert len(registry.seen) == 2 * TAGS


async def test_the_other_worker_waits_for_the_first_one(tmp_path: Path, registry: FakeRegistry) -> None:
    """While one worker's HEAD is under way a request at the other one asks for nothing, and leaves with what is cached
    before the first one does; what that was told then counts for both."""
    async with woken(tmp_path, registry, 2) as proxy:
        gate = Gate(0)
        hold_heads(registry, gate)
        one, other = proxy.workers()
        first = await proxy.reader_at(one, PATHS[0])
        await gate.reached.wait()
        second = await proxy.reader_at(other, PATHS[0])
        await second.head()
        assert second.headers["cache-status"] == "pullthrough; fwd=stale; detail=stale-timeout"
        # The first one still waits.
        gate.open()
        await first.head()
        assert first.headers["cache-status"].startswith("pullthrough; fwd=stale; fwd-status=200")
        third = await proxy.reader_at(other, PATHS[0])
        await third.head()
        assert third.headers["cache-status"].startswith("pullthrough; hit; ttl=")
        assert len(registry.seen) == 1
        for reader in (first, second, third):
            reader.leave()


async def test_a_worker_that_hangs_holds_nobody_up(tmp_path: Path, registry: FakeRegistry) -> None:
    """It is stopped with the turn in its hands: nobody who has a stale answer waits for it."""
    async with woken(tmp_path, registry, 2) as proxy:
        gate = Gate(0)
        hold_heads(registry, gate)
        one, other = proxy.workers()
        first = await proxy.reader_at(one, PATHS[0])
        await gate.reached.wait()
        second = await Reader.connect(proxy)
        while await proxy.accepted(second) != other:
            second.leave()
            second = await Reader.connect(proxy)
        os.kill(one, signal.SIGSTOP)
        second.ask(PATHS[0])
        await second.head()
        assert second.status == 200
        os.kill(one, signal.SIGKILL)
        gate.open()
        # With its end its turn is over, and whoever waited for it goes on.
        async with asyncio.timeout(10):
            while registry.count("HEAD", PATHS[0]) < 2:
                await asyncio.sleep(0.01)
        first.leave()
        second.leave()
