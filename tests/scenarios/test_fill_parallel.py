"""Large blobs come by several streams, and by fewer where the upstream wants that."""

import asyncio
from collections.abc import Callable

import pytest

from proxy.settings import Settings
from tests.fakes.acts import Act, BlobRequest
from tests.fakes.content import digest_of, random_bytes
from tests.fakes.proxy import Proxy, running
from tests.fakes.reader import Reader
from tests.fakes.registry import FakeRegistry
from tests.fakes.server import Gate
from tests.scenarios.fills import KIB, MIB, put, until

LARGE = random_bytes(40 * MIB, 300)
DIGEST = digest_of(LARGE)


class Barrier:
    """Every request waits after its head until `wanted` of them wait at once; then all of them go on."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self._waiting: list[Gate] = []

    def __call__(self, request: BlobRequest) -> Act:
        gate = Gate(request.start)
        self._waiting.append(gate)
        if len(self._waiting) == self.wanted:
            self.open()
        return Act(gate=gate)

    def open(self) -> None:
        """Let go of those that wait, and of all that come."""
        for gate in self._waiting:
            gate.open()
        self._waiting = []


async def test_four_streams_at_a_time(proxy: Proxy, registry: FakeRegistry) -> None:
    """A blob of 40 MiB is fetched by four ranges at once, never more, and each byte comes once."""
    path = put(registry, LARGE)
    barrier = Barrier(4)
    # The first one has to be answered before it is known that others are worth it.
    registry.script = barrier
    reading = asyncio.create_task(proxy.get(path))
    await until(lambda: registry.record.most_open == 4)
    barrier.wanted = 1
    barrier.open()
    assert (await reading).body == LARGE
    await proxy.stored(1)
    assert registry.record.most_open == 4
    assert registry.record.times_sent(DIGEST) == [(0, len(LARGE), 1)]


@pytest.mark.parametrize("parallel", [1, 2])
async def test_as_many_streams_as_are_configured(
    settings: Callable[..., Settings], registry: FakeRegistry, parallel: int
) -> None:
    """`parallel` is how many ranges of a large blob are asked for at a time."""
    path = put(registry, LARGE)
    barrier = Barrier(parallel)
    registry.script = barrier
    async with running(settings({"parallel": parallel})) as proxy:
        reading = asyncio.create_task(proxy.get(path))
        await until(lambda: registry.record.most_open == parallel)
        barrier.wanted = 1
        barrier.open()
        assert (await reading).body == LARGE
        await proxy.stored(1)
    assert registry.record.most_open == parallel
    assert registry.record.sent_twice(DIGEST) == []


async def test_a_small_blob_comes_by_one_stream(proxy: Proxy, registry: FakeRegistry) -> None:
    """Up to 32 MiB several streams are not worth their connections."""
    content = LARGE[: 16 * MIB]
    path = put(registry, content)
    assert (await proxy.get(path)).body == content
    await proxy.stored(1)
    assert registry.record.most_open == 1
    assert registry.record.times_sent(digest_of(content)) == [(0, len(content), 1)]


async def test_a_reader_at_the_end_has_a_stream_of_its_own(proxy: Proxy, registry: FakeRegistry) -> None:
    """While all streams of a large blob are stuck, a reader far from each of them is served."""
    path = put(registry, LARGE)
    gate = Gate(0)
    registry.script = lambda request: Act(gate=gate if request.start < 38 * MIB else None)
    front = asyncio.create_task(proxy.get(path))
    await until(lambda: registry.record.open_now == 4)
    end = await proxy.get(path, Range=f"bytes={39 * MIB}-")
    assert end.body == LARGE[39 * MIB :]
    gate.open()
    assert (await front).body == LARGE
    await proxy.stored(1)
    assert registry.record.sent_twice(DIGEST) == []


@pytest.mark.parametrize("allowed", [1, 2])
async def test_an_upstream_that_refuses_several_streams(
    proxy: Proxy, registry: FakeRegistry, quick: None, allowed: int
) -> None:
    """429 on the further ranges: fewer are asked for, the blob completes, and no byte comes twice."""
    path = put(registry, LARGE)

    def script(request: BlobRequest) -> Act:
        return Act(status=429) if registry.record.open_now > allowed else Act()

    registry.script = script
    answer = await proxy.get(path)
    assert (answer.status, answer.body) == (200, LARGE)
    await proxy.stored(1)
    assert registry.record.times_sent(DIGEST) == [(0, len(LARGE), 1)]
    # It is not asked for the refused ones over and over.
    assert sum(request.status == 429 for request in registry.record.requests) <= 12


async def test_an_upstream_that_drops_several_streams(proxy: Proxy, registry: FakeRegistry, quick: None) -> None:
    """Connections that end before their head while another brings bytes are no failure of the blob."""
    path = put(registry, LARGE)
    registry.script = lambda request: Act(drop=registry.record.open_now > 1)
    assert (await proxy.get(path)).body == LARGE
    await proxy.stored(1)
    assert registry.record.times_sent(DIGEST) == [(0, len(LARGE), 1)]


async def test_a_large_blob_from_an_upstream_without_ranges(proxy: Proxy, registry: FakeRegistry) -> None:
    """200 to the first range: one stream, one request, each byte once."""
    registry.honour_ranges = False
    path = put(registry, LARGE)
    assert (await proxy.get(path)).body == LARGE
    await proxy.stored(1)
    assert [request.status for request in registry.record.requests] == [200]


async def test_one_stuck_stream_holds_up_only_its_own_bytes(proxy: Proxy, registry: FakeRegistry) -> None:
    """With the first stream of a large blob stuck the others bring the rest, which readers there are given."""
    path = put(registry, LARGE)
    gate = Gate(MIB)
    registry.script = [Act(gate=gate)]
    front = await Reader.open(proxy, path)
    await gate.reached.wait()
    assert (await proxy.get(path, Range=f"bytes={20 * MIB}-")).body == LARGE[20 * MIB :]
    assert await front.to(MIB - 256 * KIB) == LARGE[: MIB - 256 * KIB]
    gate.open()
    assert await front.rest() == LARGE
    await proxy.stored(1)
    assert registry.record.sent_twice(DIGEST) == []


async def test_a_stream_that_breaks_is_gone_on_with(proxy: Proxy, registry: FakeRegistry, quick: None) -> None:
    """Of several streams one is cut by FIN in the middle: only what it lacked is asked for again."""
    path = put(registry, LARGE)

    def script(request: BlobRequest) -> Act:
        return Act(fin_at=request.start + 700_001) if request.number == 2 else Act()

    registry.script = script
    assert (await proxy.get(path)).body == LARGE
    await proxy.stored(1)
    assert registry.record.times_sent(DIGEST) == [(0, len(LARGE), 1)]


async def test_several_fills_share_the_connections(settings: Callable[..., Settings], registry: FakeRegistry) -> None:
    """With two connections for four blobs all of them come, and never more than two bodies are open."""
    contents = [random_bytes(2 * MIB, seed) for seed in range(301, 305)]
    paths = [put(registry, content) for content in contents]
    async with running(settings({"max_connections": 2})) as proxy:
        answers = await asyncio.gather(*(proxy.get(path) for path in paths))
        assert [answer.body for answer in answers] == contents
    assert registry.record.most_open <= 2
    assert all(registry.record.sent_twice(digest_of(content)) == [] for content in contents)
