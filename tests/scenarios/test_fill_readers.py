"""Readers never drive or harm a fill: they come, stop early, stall and leave, and the fill goes on."""

import asyncio

from tests.fakes.acts import Act
from tests.fakes.content import digest_of, random_bytes
from tests.fakes.proxy import Proxy
from tests.fakes.reader import Reader
from tests.fakes.registry import FakeRegistry
from tests.fakes.server import Gate
from tests.scenarios.fills import BLOCK, MIB, leave, put, until

# Much more than the buffers of a connection hold, so that a reader that stalls does stall.
BLOB = random_bytes(8 * MIB, 600)
DIGEST = digest_of(BLOB)


async def test_a_client_that_stalls_costs_the_others_nothing(proxy: Proxy, registry: FakeRegistry) -> None:
    """The client that caused the fill reads nothing: others have the blob, it is stored, and the first may go on."""
    path = put(registry, BLOB)
    stalled = await Reader.open(proxy, path)
    assert (await proxy.get(path)).body == BLOB
    await proxy.stored(1)
    assert await stalled.rest() == BLOB
    assert registry.record.times_sent(DIGEST) == [(0, len(BLOB), 1)]


async def test_nobody_has_to_read_for_a_fill_to_end(proxy: Proxy, registry: FakeRegistry) -> None:
    """All clients of a fill stall; the blob is stored all the same."""
    path = put(registry, BLOB)
    readers = [await Reader.open(proxy, path, start) for start in (None, MIB, 5 * MIB)]
    await proxy.stored(1)
    for reader in readers:
        assert await reader.rest() == BLOB[reader.start :]
    assert registry.record.sent_twice(DIGEST) == []


async def test_the_fill_goes_on_when_all_have_left(proxy: Proxy, registry: FakeRegistry) -> None:
    """Clients at several offsets leave in the middle; the blob comes whole, each byte once."""
    path = put(registry, BLOB)
    gate = Gate(0)
    registry.script = lambda request: Act(gate=gate)
    readers = [await Reader.open(proxy, path, start) for start in (6 * MIB, 3 * MIB, None)]
    await until(lambda: gate.waiting == len(readers))
    await leave(*readers)
    gate.open()
    await proxy.stored(1)
    assert registry.record.times_sent(DIGEST) == [(0, len(BLOB), 1)]
    assert (await proxy.get(path)).state == "pullthrough; hit"


async def test_a_client_that_leaves_before_its_head(proxy: Proxy, registry: FakeRegistry) -> None:
    """The client that caused a fill leaves before the upstream has answered; who joined it is served."""
    path = put(registry, BLOB)
    gate = Gate(0)
    registry.script = [Act(head_gate=gate)]
    first = await Reader.send(proxy, path)
    await gate.reached.wait()
    second = asyncio.create_task(proxy.get(path))
    await leave(first)
    gate.open()
    assert (await second).body == BLOB
    assert registry.record.times_sent(DIGEST) == [(0, len(BLOB), 1)]


async def test_a_far_reader_that_leaves(proxy: Proxy, registry: FakeRegistry) -> None:
    """A reader far ahead leaves: what was begun for it is kept, and the reader at the front has it all."""
    path = put(registry, BLOB)
    gate = Gate(BLOCK)
    registry.script = [Act(gate=gate)]
    front = await Reader.open(proxy, path)
    await gate.reached.wait()
    far = await Reader.open(proxy, path, 6 * MIB)
    await far.read(1000)
    await leave(far)
    gate.open()
    assert await front.rest() == BLOB
    await proxy.stored(1)
    assert registry.record.times_sent(DIGEST) == [(0, len(BLOB), 1)]


async def test_readers_that_come_late(proxy: Proxy, registry: FakeRegistry) -> None:
    """A reader that joins when most has arrived shares the fill, and says so."""
    path = put(registry, BLOB)
    gate = Gate(7 * MIB)
    registry.script = lambda request: Act(gate=gate)
    first = await Reader.open(proxy, path)
    await gate.reached.wait()
    late = await Reader.open(proxy, path)
    assert first.headers["cache-status"] == "pullthrough; fwd=miss; stored"
    assert late.headers["cache-status"] == "pullthrough; fwd=miss; collapsed"
    assert await late.to(7 * MIB - BLOCK) == BLOB[: 7 * MIB - BLOCK]
    gate.open()
    assert await late.rest() == await first.rest() == BLOB
    assert registry.record.times_sent(DIGEST) == [(0, len(BLOB), 1)]


async def test_a_hundred_short_visits(proxy: Proxy, registry: FakeRegistry) -> None:
    """Clients that ask for a little somewhere and leave cost no byte more than the blob."""
    path = put(registry, BLOB)

    async def visit(number: int) -> None:
        start = number * 7919 * 13 % len(BLOB)
        reader = await Reader.open(proxy, path, start)
        count = min(10_000, len(BLOB) - start)
        assert await reader.read(count) == BLOB[start : start + count]
        await leave(reader)

    await asyncio.gather(*(visit(number) for number in range(100)))
    await proxy.stored(1)
    assert registry.record.sent_twice(DIGEST) == []
