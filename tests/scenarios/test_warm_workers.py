"""Warm jobs of several worker processes: each is run by one, and by another one where that dies."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.acts import Act
from tests.fakes.content import digest_of, make_image
from tests.fakes.fleet import Fleet, eventually, fleet, write_config
from tests.fakes.registry import FakeRegistry
from tests.fakes.server import Gate
from tests.scenarios.fills import KIB, MIB
from tests.scenarios.warming import NAME, api, begin, came, ended, job

SIZE = 6 * MIB
HALF = 3 * MIB
IMAGE = make_image(SIZE, seed=40)
LAYER = digest_of(IMAGE.blobs[1])


@pytest.fixture
async def two(tmp_path: Path, registry: FakeRegistry) -> AsyncIterator[Fleet]:
    """A proxy of two workers."""
    registry.push("team/app", "v1", IMAGE)
    async with fleet(write_config(tmp_path, {"registry.test": {"url": registry.url}})) as started:
        yield started


def fillers(proxy: Fleet) -> list[int]:
    """The workers that have the layer's fill open."""
    name = LAYER.partition(":")[2]

    def has_it_open(pid: int) -> bool:
        links = []
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                links.append(os.readlink(descriptor))
            except OSError:
                continue
        return any("/fills/" in link and name in link for link in links)

    return [pid for pid in proxy.workers() if has_it_open(pid)]


async def halfway(proxy: Fleet, registry: FakeRegistry) -> tuple[str, int, Gate]:
    """A job whose layer has come by half; gives it, the worker that runs it, and the gate that the rest waits at."""
    gate = Gate(HALF)
    registry.script = lambda asked: Act(gate=gate) if asked.digest == LAYER else None
    named = await begin(proxy, f"{NAME}:v1")
    await gate.reached.wait()
    while await came(proxy) < HALF:
        await asyncio.sleep(0)
    (runner,) = fillers(proxy)
    return named, runner, gate


async def test_another_worker_goes_on(two: Fleet, registry: FakeRegistry) -> None:
    """Where the worker that runs a job is killed the other one takes it over, at the byte that is missing."""
    named, runner, gate = await halfway(two, registry)
    assert (await job(two, named))["state"] == "running"
    second = len(registry.record.of(LAYER))
    os.kill(runner, signal.SIGKILL)
    await eventually(lambda: len(registry.record.of(LAYER)) > second)
    gate.open()
    found = await ended(two, named)
    assert (found["state"], found["bytes"]["done"]) == ("done", sum(map(len, IMAGE.blobs)))
    # What was on its way when it died may have come twice, nothing else.
    assert registry.record.asked(LAYER)[second][0] >= HALF - MIB
    assert [len(registry.record.of(digest_of(blob))) for blob in IMAGE.blobs[:1]] == [1]


async def test_stopped_by_another_worker(two: Fleet, registry: FakeRegistry) -> None:
    """Whichever worker is asked, the job stops, and so does its fill."""
    named, runner, gate = await halfway(two, registry)
    before = len(registry.record.of(LAYER))
    os.kill(runner, signal.SIGKILL)
    # The other one runs it from now on; the first, which is asked, is another process.
    await eventually(lambda: len(registry.record.of(LAYER)) > before and len(two.workers()) == 2)
    async with asyncio.timeout(20):
        while (await api(two, "GET", f"warm/{named}"))[0] != 200:
            await asyncio.sleep(0.01)
    status, stopped = await api(two, "DELETE", f"warm/{named}")
    assert (status, stopped["state"]) == (200, "stopped")
    await eventually(lambda: not fillers(two))
    gate.open()


async def test_a_reader_at_another_worker_lifts_the_speed(two: Fleet, registry: FakeRegistry) -> None:
    """A fill that is held back is brought at full speed as soon as a client of any worker waits for it."""
    named = await begin(two, f"{NAME}:v1", bandwidth=64 * KIB)
    await eventually(lambda: len(fillers(two)) == 1)
    (runner,) = fillers(two)
    (other,) = [pid for pid in two.workers() if pid != runner]
    reader = await two.reader_at(other, f"/v2/team/app/blobs/{LAYER}")
    async with asyncio.timeout(20):
        await reader.head()
        assert await reader.rest() == IMAGE.blobs[1]
    assert registry.record.times_sent(LAYER) == [(0, SIZE, 1)]
    await api(two, "DELETE", f"warm/{named}")
