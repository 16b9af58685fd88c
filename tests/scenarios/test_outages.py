"""Five minutes without an upstream: what is cached is served at once, and the upstream is tried once a step."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from proxy.settings import Settings
from proxy.upstream.client import HEAD_LIMIT
from tests.fakes.clock import LoopClock
from tests.fakes.content import digest_of, make_image
from tests.fakes.proxy import Answer, Proxy, running
from tests.fakes.registry import FakeRegistry
from tests.fakes.server import Gate

NODES, TAGS = 200, 10
IMAGE = make_image(100, seed=1)
PATHS = [f"/v2/team/app/manifests/v{number}" for number in range(TAGS)]
COLD = "/v2/team/app/manifests/cold"
MINUTES = 5 * 60
# Seconds at which it is tried, by steps of 1, 2, 4, 8, 16, 32, 60, 60, … seconds.
STEPS = [0, 1, 3, 7, 15, 31, 63, 123, 183, 243]

Break = Callable[[FakeRegistry], None]


@pytest.fixture
def make(settings: Callable[..., Settings]) -> Callable[..., Any]:
    """A proxy that believes proofs for the whole test, so that only tags end."""

    def running_with(**times: str) -> Any:
        return running(settings({"read_timeout": "1h"}, manifests={"proof_ttl": "1d"} | times))

    return running_with


@pytest.fixture
async def proxy(make: Callable[..., Any], registry: FakeRegistry) -> AsyncIterator[Proxy]:
    """A proxy whose tags have all just ended."""
    async with make() as started:
        await fill(started, registry)
        yield started


async def fill(proxy: Proxy, registry: FakeRegistry) -> None:
    proxy.application._learnt.circuits._jitter = lambda: 0.5
    for number, path in enumerate(PATHS):
        registry.push("team/app", f"v{number}", IMAGE)
        assert (await proxy.get(path)).status == 200
    registry.seen.clear()
    proxy.clock.advance(601)


def answering(status: int, **headers: str) -> Break:
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    def fail(registry: FakeRegistry) -> None:
        registry.fault = lambda request: web.Response(status=status, headers=named)

    return fail


class Silence:
    """The registry takes requests and says nothing; `waiting` is how many it has."""

    def __init__(self, registry: FakeRegistry) -> None:
        self.waiting = 0
        registry.answer = self._answer  # type: ignore[method-assign,assignment]

    async def _answer(self, _request: web.BaseRequest) -> web.StreamResponse:
        self.waiting += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.waiting -= 1
        raise AssertionError

    async def settled(self) -> None:
        """Wait until all attempts have come to the registry, and it has noticed which have ended."""
        async with asyncio.timeout(10):
            while attempts() != self.waiting:
                await asyncio.sleep(0)


@pytest.fixture
async def patient(proxy: Proxy) -> AsyncIterator[Proxy]:
    """A client without limits of its own: of connections, or of time, which a test sets forward."""
    connector, options = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=options) as session:
        yield Proxy(proxy.application, proxy.clock, session)


def attempts() -> int:
    """How many are under way."""
    return sum(task.get_name().startswith("manifest ") for task in asyncio.all_tasks())


async def is_quiet() -> None:
    """Wait until no attempt is under way."""
    async with asyncio.timeout(5):
        while attempts():
            await asyncio.sleep(0)


def is_stale(answer: Answer) -> bool:
    return answer.status == 200 and answer.body == IMAGE.manifest and "detail=stale-" in answer.state


@pytest.mark.parametrize(
    ("fail", "steps"),
    [
        (answering(500), STEPS),
        (answering(503), STEPS),
        (answering(503, Retry_After="100"), [0, 100, 200]),
        (answering(429), STEPS),
        (answering(429, Retry_After="100"), [0, 100, 200]),
    ],
    ids=["500", "503", "503 for 100 s", "429", "429 for 100 s"],
)
async def test_an_upstream_that_answers_with_errors(
    proxy: Proxy, registry: FakeRegistry, fail: Break, steps: list[int]
) -> None:
    """Every second somebody asks for each of ten tags: all are served, and one attempt a step reaches the upstream."""
    fail(registry)
    asked_at: list[int] = []
    for second in range(MINUTES):
        before = len(registry.seen)
        for path in PATHS:
            assert is_stale(await proxy.get(path))
            await is_quiet()
        asked_at += [second] * (len(registry.seen) - before)
        proxy.clock.advance(1)
    assert asked_at == steps
    assert {seen.method for seen in registry.seen} == {"HEAD"}


async def test_an_upstream_that_nobody_listens_for(proxy: Proxy, registry: FakeRegistry) -> None:
    """The same, counted by the metric: no connection is made that a registry could count."""
    await registry.stop()
    asked_at: list[int] = []
    for second in range(MINUTES):
        for path in [*PATHS, COLD]:
            answer = await proxy.get(path)
            assert is_stale(answer) if path != COLD else (answer.status, answer.code) == (502, "UNAVAILABLE")
            await is_quiet()
        tried = int(await proxy.metric('pullthrough_upstream_requests_total{kind="manifest",method="HEAD"'))
        asked_at += [second] * (tried - len(asked_at))
        proxy.clock.advance(1)
    # What is not cached takes its turn as well, and never more than one a step in all.
    failed = 'method="GET",registry="registry.test",status="connect"'
    cold = await proxy.metric(f'pullthrough_upstream_requests_total{{kind="manifest",{failed}')
    assert len(asked_at) + cold == len(STEPS)
    assert set(asked_at) <= set(STEPS)


@pytest.mark.parametrize(
    ("fail", "status", "code"),
    [(answering(503), 502, "UNAVAILABLE"), (answering(429), 429, "TOOMANYREQUESTS")],
    ids=["503", "429"],
)
async def test_what_is_not_cached_is_a_clear_error(
    proxy: Proxy, registry: FakeRegistry, fail: Break, status: int, code: str
) -> None:
    """Nodes that try again every second get one at once, which says when to come back; the upstream hears of it once
    a step."""
    fail(registry)
    asked_at: list[int] = []
    for second in range(MINUTES):
        before = len(registry.seen)
        answer = await proxy.get(COLD)
        assert (answer.status, answer.code) == (status, code)
        assert second == 0 or int(answer.headers.get("Retry-After", "1")) >= 1
        asked_at += [second] * (len(registry.seen) - before)
        proxy.clock.advance(1)
    assert asked_at == STEPS


async def test_a_herd_when_the_upstream_falls_silent(patient: Proxy, registry: FakeRegistry, timers: LoopClock) -> None:
    """Two hundred nodes ask for a tag at the moment at which that begins: 99 of 100 leave within a second, the one who
    began with revalidate_timeout; who comes later leaves at once."""
    silence, handlers = Silence(registry), patient.application._handlers
    assert handlers is not None
    herd = [asyncio.create_task(patient.get(PATHS[0])) for _ in range(NODES)]
    async with asyncio.timeout(10):
        while handlers._active < NODES or not silence.waiting:
            await asyncio.sleep(0)
    # All of them wait by now, none for longer than the machine has taken.
    await patient.application._records.get("nothing")
    await timers.advance(1.0)
    async with asyncio.timeout(1):
        while sum(task.done() for task in herd) < NODES - 1:
            await asyncio.sleep(0)
    (late,) = [task for task in herd if not task.done()]
    for _ in range(20):
        assert (await patient.get(PATHS[0])).state == "pullthrough; hit; ttl=-1; detail=stale-timeout"
    await timers.advance(2.1)
    assert all(is_stale(answer) for answer in await asyncio.gather(*herd))
    assert late in herd
    assert len(registry.seen) == 1


async def test_five_minutes_of_silence(patient: Proxy, registry: FakeRegistry, timers: LoopClock) -> None:
    """An attempt takes as long as a head may; the steps grow all the same, and nobody but the first waits."""
    silence, start = Silence(registry), timers()
    ahead = patient.clock.now - start
    first = asyncio.create_task(patient.get(PATHS[0]))
    async with asyncio.timeout(10):
        while not silence.waiting:
            await asyncio.sleep(0)
    asked_at = [0.0]
    while asked_at[-1] < 230:
        if first.done():
            for path in PATHS:
                async with asyncio.timeout(0.9):
                    assert is_stale(await patient.get(path))
        await silence.settled()
        now = timers() - start
        asked_at += [now] * (len(registry.seen) - len(asked_at))
        await timers.advance(0.5)
        # The timers' clock goes on by itself as well.
        patient.clock.now = ahead + timers()
        assert now < MINUTES
    assert is_stale(await first)
    # The first one is given up after 3 seconds and ends after 24, as all do. Each end begins the next step, if none is
    # under way: 1, 2, 4, 8, … seconds. It is looked twice a second, so an attempt may begin a little later than due.
    expected = [0, 4, 26, 32, 58, 98, 154, 238]
    assert len(asked_at) == len(expected)
    for place, (at, due) in enumerate(zip(asked_at, expected, strict=True)):
        assert due - 0.5 <= at <= due + 1.5 * place


async def test_nothing_is_cached_and_nobody_answers(patient: Proxy, registry: FakeRegistry, timers: LoopClock) -> None:
    """A 504 before 25 seconds are over, since clients give up at 30."""
    silence = Silence(registry)
    asked = asyncio.create_task(patient.get(COLD))
    async with asyncio.timeout(10):
        while not silence.waiting:
            await asyncio.sleep(0)
    await timers.advance(HEAD_LIMIT - 1)
    assert not asked.done()
    await timers.advance(1)
    answer = await asked
    assert (answer.status, answer.code) == (504, "UNAVAILABLE")
    assert HEAD_LIMIT < 25


@pytest.mark.parametrize("mode", ["transparent", "metadata-only"])
async def test_blobs_wait_for_one_probe_too(
    settings: Callable[..., Settings], registry: FakeRegistry, mode: str
) -> None:
    """Nodes that start an image whose layers are not here, once a connection may be tried again: one of them tries."""
    layers = [f"/v2/team/app/blobs/{digest_of(bytes([number]))}" for number in range(TAGS)]
    async with running(settings(clusters=[{"name": "default", "mode": mode}])) as proxy:
        proxy.application._learnt.circuits._jitter = lambda: 0.5
        await registry.stop()
        assert (await proxy.get(layers[0])).status == 502
        for attempts_made, step in ((2, 1), (3, 2)):
            proxy.clock.advance(step)
            answers = await asyncio.gather(*(proxy.get(layer) for layer in layers))
            assert {(answer.status, answer.code) for answer in answers} == {(502, "UNAVAILABLE")}
            assert await proxy.metric('pullthrough_upstream_requests_total{kind="blob"') == attempts_made


async def test_what_was_asked_for_before_ends_no_retry_after(proxy: Proxy, registry: FakeRegistry) -> None:
    """A layer that was on its way when manifests were limited says nothing of that limit."""
    layer, gate, answer = f"/v2/team/app/blobs/{digest_of(IMAGE.blobs[1])}", Gate(0), registry.answer
    asked: list[str] = []

    async def limited(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == layer:
            await gate(0)
            return await answer(request)
        asked.append(request.path)
        return web.Response(status=429, headers={"Retry-After": "100"})

    registry.answer = limited  # type: ignore[method-assign]
    pulled = asyncio.create_task(proxy.get(layer))
    await gate.reached.wait()
    assert is_stale(await proxy.get(PATHS[0]))
    gate.open()
    assert (await pulled).body == IMAGE.blobs[1]
    proxy.clock.advance(99)
    for path in PATHS:
        assert is_stale(await proxy.get(path))
        await is_quiet()
    assert asked == PATHS[:1]
