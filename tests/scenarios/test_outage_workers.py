"""Two workers and upstreams that fail: together they try as often as one would, and whoever has something is answered.

The theory (`policy.backoff`): after the nth failure in a row nobody asks for 2^(n-1) seconds, a quarter less or more by
jitter; then one probe goes out, whose failure is the next. What neither worker could know yet comes on top of that: the
one that waited for the other's very first attempt may ask before it has heard how that ended.
"""

import asyncio
import itertools
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp import web

from tests.fakes.clock import ManualClock
from tests.fakes.content import make_image
from tests.fakes.fleet import Fleet, fleet, write_config
from tests.fakes.proxy import make_settings, running
from tests.fakes.registry import FakeRegistry

IMAGE = make_image(100, seed=1)
TAGS = [f"v{number}" for number in range(4)]
# Of each registry: enough that both workers have some.
CLIENTS = 8
# Seconds: of the outage, between two requests of a client, and until what the first failure taught is known to both.
OUTAGE, PAUSE, TOLD = 8.0, 0.06, 0.5
# The first step, in seconds, by jitter.
SHORTEST, LONGEST = 0.75, 1.25
# Proofs count throughout, so that only tags have ended: a 5xx does not speak for who is not proved to read.
TIMES = {"manifests": {"proof_ttl": "1d"}}

Answering = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Failing(FakeRegistry):
    """A registry that fails once `fails` is given; `asked_at` is when it was asked since then."""

    def __init__(self) -> None:
        super().__init__()
        self.fails: Answering | None = None
        self.asked_at: list[float] = []

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if self.fails is None:
            return await super().answer(request)
        self.asked_at.append(time.monotonic())
        return await self.fails(request)


def answering(status: int, after: float = 0.0) -> Answering:
    async def fail(_request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(after)
        return web.Response(status=status)

    return fail


async def silence(_request: web.BaseRequest) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


FAILURES = {
    "broken.test": answering(503),
    # So slow that both workers find it due before the probe of one has failed.
    "slow.test": answering(503, after=0.3),
    "limited.test": answering(429),
    "silent.test": silence,
}
DOWN = "down.test"


@asynccontextmanager
async def out_of_order(directory: Path) -> AsyncIterator[tuple[Fleet, dict[str, Failing]]]:
    """Two workers whose tags have all ended, and registries that fail from now on."""
    async with AsyncExitStack() as stack:
        registries = {name: Failing() for name in (*FAILURES, DOWN)}
        for registry in registries.values():
            await registry.start()
            stack.push_async_callback(registry.stop)
            for tag in TAGS:
                registry.push("team/app", tag, IMAGE)
        upstreams = {name: {"url": registry.url} for name, registry in registries.items()}
        settings = make_settings(directory / "cache", upstreams, **TIMES)
        async with running(settings, ManualClock(time.time() - 660)) as before:
            for name in registries:
                for tag in TAGS:
                    assert (await before.get(f"/v2/{name}/team/app/manifests/{tag}")).status == 200
        for name, fails in FAILURES.items():
            registries[name].fails = fails
        await registries[DOWN].stop()
        yield await stack.enter_async_context(fleet(write_config(directory, upstreams, **TIMES))), registries


async def load(proxy: Fleet, name: str, until: float) -> list[float]:
    """Clients that ask for the tags of one registry again and again; gives how long they waited for stale answers."""

    async def client() -> list[float]:
        took: list[float] = []
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
            while (began := time.monotonic()) < until:
                tag = TAGS[len(took) % len(TAGS)]
                async with session.head(f"{proxy.url}/v2/{name}/team/app/manifests/{tag}") as answer:
                    assert answer.status == 200
                    assert "detail=stale-" in answer.headers["Cache-Status"], name
                took.append(time.monotonic() - began)
                await asyncio.sleep(PAUSE)
        return took

    return [one for took in await asyncio.gather(*(client() for _ in range(CLIENTS))) for one in took]


def steps(seconds: float, first: float) -> int:
    """How many attempts there are in so many seconds: the first step takes `first`, each next one twice as long."""
    return 1 + int(math.log2(seconds / first + 1))


async def test_two_workers_try_as_often_as_one(tmp_path: Path) -> None:
    """Eight seconds of load on both: one attempt a back-off step for the two together, at most one more at the first;
    and 99 of 100 stale answers leave within a second."""
    async with out_of_order(tmp_path) as (proxy, registries):
        until = time.monotonic() + OUTAGE
        waited = await asyncio.gather(*(load(proxy, name, until) for name in registries))
        for took in waited:
            assert sorted(took)[int(len(took) * 0.99)] < 1
        for name in ("broken.test", "slow.test", "limited.test"):
            began, *others = registries[name].asked_at
            probes = [at for at in others if at - began > TOLD]
            assert len(others) - len(probes) <= 1, name
            assert steps(OUTAGE - 2, LONGEST) <= 1 + len(probes) <= steps(OUTAGE, SHORTEST), (name, probes)
            for number, (before, at) in enumerate(itertools.pairwise([began, *probes])):
                assert at - before >= SHORTEST * 2**number, (name, number, at - before)
        # Nobody listens there, so that the proxy's own count has to do.
        tried = f'pullthrough_upstream_requests_total{{kind="manifest",method="HEAD",registry="{DOWN}",status="connect"'
        assert steps(OUTAGE - 2, LONGEST) <= await proxy.metric(tried) <= 1 + steps(OUTAGE, SHORTEST)
        # Until it is noticed that nothing comes, every tag is asked for, each once; those attempts are under way yet.
        assert len(registries["silent.test"].asked_at) <= len(TAGS)
