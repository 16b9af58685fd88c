"""One fill serves readers at any offset, at once, and asks for no byte twice."""

import asyncio
import random

import pytest

from tests.fakes.acts import Act, BlobRequest
from tests.fakes.content import digest_of, random_bytes
from tests.fakes.proxy import Proxy
from tests.fakes.reader import Reader
from tests.fakes.registry import FakeRegistry
from tests.fakes.server import Gate
from tests.scenarios.fills import BLOCK, KIB, MIB, came_in, leave, put, until

BLOB = random_bytes(8 * MIB, 200)
DIGEST = digest_of(BLOB)


async def test_every_request_upstream_is_a_bounded_range(proxy: Proxy, registry: FakeRegistry) -> None:
    """From the first one on the upstream is asked by ranges that end, one after the other, each byte once."""
    path = put(registry, BLOB)
    assert (await proxy.get(path)).body == BLOB
    await proxy.stored(1)
    requests = registry.record.requests
    assert all(request.bounded for request in requests)
    assert len(requests) >= 2
    assert registry.record.times_sent(DIGEST) == [(0, len(BLOB), 1)]


async def test_a_far_reader_does_not_wait_for_the_front(proxy: Proxy, registry: FakeRegistry) -> None:
    """While the front of a blob is stuck a reader further on gets its bytes, to the last one, and none comes twice."""
    path = put(registry, BLOB)
    gate = Gate(BLOCK)
    registry.script = [Act(gate=gate)]
    front = asyncio.create_task(proxy.get(path))
    await gate.reached.wait()
    far = await proxy.get(path, Range=f"bytes={6 * MIB}-")
    assert (far.status, far.body) == (206, BLOB[6 * MIB :])
    assert far.headers["Content-Range"] == f"bytes {6 * MIB}-{len(BLOB) - 1}/{len(BLOB)}"
    gate.open()
    assert (await front).body == BLOB
    await proxy.stored(1)
    assert registry.record.times_sent(DIGEST) == [(0, len(BLOB), 1)]


async def test_a_reader_far_inside_a_range_gets_one_of_its_own(proxy: Proxy, registry: FakeRegistry) -> None:
    """A reader that waits megabytes ahead within a range that is stuck is served by another range that begins there."""
    path = put(registry, BLOB)
    gate = Gate(BLOCK)
    registry.script = [Act(gate=gate)]
    front = await Reader.open(proxy, path)
    await gate.reached.wait()
    far = await Reader.open(proxy, path, 3 * MIB, 4 * MIB)
    assert await far.rest() == BLOB[3 * MIB : 4 * MIB]
    first, second = registry.record.requests[:2]
    assert first.start == 0
    assert first.start < second.start <= 3 * MIB
    gate.open()
    assert await front.rest() == BLOB
    await proxy.stored(1)
    assert registry.record.sent_twice(DIGEST) == []


@pytest.mark.parametrize("offset", [5 * MIB, 5 * MIB + 1, 6 * MIB - 1])
async def test_a_cold_fill_begins_where_its_first_reader_is(proxy: Proxy, registry: FakeRegistry, offset: int) -> None:
    """The first range starts at the first reader's own position, or less than a block before it."""
    path = put(registry, BLOB)
    answer = await proxy.get(path, Range=f"bytes={offset}-")
    assert (answer.status, answer.body) == (206, BLOB[offset:])
    await proxy.stored(1)
    first = registry.record.requests[0]
    assert offset - BLOCK < first.start <= offset
    assert registry.record.times_sent(DIGEST) == [(0, len(BLOB), 1)]
    again = await proxy.get(path)
    assert (again.body, again.state) == (BLOB, "pullthrough; hit")


async def test_the_end_of_a_cold_blob_by_its_length(proxy: Proxy, registry: FakeRegistry) -> None:
    """A suffix range of a blob nobody has asked for yet is its end, and the blob comes whole, each byte once."""
    path = put(registry, BLOB)
    answer = await proxy.get(path, Range="bytes=-100")
    assert (answer.status, answer.body) == (206, BLOB[-100:])
    assert answer.headers["Content-Range"] == f"bytes {len(BLOB) - 100}-{len(BLOB) - 1}/{len(BLOB)}"
    await proxy.stored(1)
    assert registry.record.sent_twice(DIGEST) == []


@pytest.mark.parametrize("offset", [8 * MIB, 8 * MIB + 1, 100 * MIB])
async def test_past_the_end_of_a_cold_blob(proxy: Proxy, registry: FakeRegistry, offset: int) -> None:
    """A range that starts past the end of a blob not heard of before is 416 with the right size; the next is served."""
    path = put(registry, BLOB)
    answer = await proxy.get(path, Range=f"bytes={offset}-")
    assert (answer.status, answer.code) == (416, "RANGE_INVALID")
    assert answer.headers["Content-Range"] == f"bytes */{len(BLOB)}"
    assert (await proxy.get(path)).body == BLOB
    await proxy.stored(1)
    assert registry.record.sent_twice(DIGEST) == []


@pytest.mark.parametrize("says_size", [True, False])
async def test_past_the_end_where_the_upstream_hides_the_size(
    proxy: Proxy, registry: FakeRegistry, says_size: bool
) -> None:
    """An upstream's bare 416 leaves the size to be found out another way; the client gets 416 with it."""
    path = put(registry, BLOB)
    registry.script = [Act(status=416, headers={"Content-Range": f"bytes */{len(BLOB)}"} if says_size else {})]
    answer = await proxy.get(path, Range="bytes=99999999-")
    assert (answer.status, answer.headers["Content-Range"]) == (416, f"bytes */{len(BLOB)}")


async def test_a_range_of_a_blob_that_is_not_there(proxy: Proxy, registry: FakeRegistry) -> None:
    """404 is 404 whatever range is asked for."""
    put(registry, b"something else")
    for header in ("bytes=0-", "bytes=5000000-", "bytes=-5"):
        answer = await proxy.get(f"/v2/team/app/blobs/{DIGEST}", Range=header)
        assert (answer.status, answer.code) == (404, "BLOB_UNKNOWN")


async def test_an_empty_blob_known_by_416(proxy: Proxy, registry: FakeRegistry) -> None:
    """416 with `*/0` means an empty blob: 200 with length 0, and it is kept."""
    path = put(registry, b"")
    answer = await proxy.get(path)
    assert (answer.status, answer.body, answer.headers["Content-Length"]) == (200, b"", "0")
    assert registry.record.requests[0].status == 416
    await proxy.stored(1)
    assert (await proxy.get(path)).state == "pullthrough; hit"


async def test_an_empty_blob_from_an_upstream_without_ranges(proxy: Proxy, registry: FakeRegistry) -> None:
    """200 with length 0 is an empty blob too."""
    registry.honour_ranges = False
    path = put(registry, b"")
    answer = await proxy.get(path)
    assert (answer.status, answer.body) == (200, b"")
    await proxy.stored(1)


async def test_no_other_content_is_taken_for_an_empty_blob(proxy: Proxy, registry: FakeRegistry) -> None:
    """416 with `*/0` for a digest that is not that of nothing is a wrong blob, and is not kept."""
    path = put(registry, BLOB)
    registry.script = [Act(status=416, headers={"Content-Range": "bytes */0"})]
    reader = await Reader.open(proxy, path)
    # The end of an empty body cannot be held back: it must not be a success.
    assert reader.status == 502 or (await reader.rest() == b"" and reader.end != "whole")
    reader.leave()
    assert (await proxy.get(path)).body == BLOB


async def test_what_has_arrived_is_served_while_the_rest_is_stuck(proxy: Proxy, registry: FakeRegistry) -> None:
    """A reader of bytes that are here gets them at once, and nothing is asked upstream for it."""
    path = put(registry, BLOB)
    registry.pause = gate = Gate(2 * MIB)
    first = await Reader.open(proxy, path)
    await gate.reached.wait()
    await first.to(2 * MIB - BLOCK)
    part = await proxy.get(path, Range=f"bytes=1000-{MIB - 1}")
    assert part.body == BLOB[1000:MIB]
    assert registry.count("GET", "/blobs/") == 1
    gate.open()
    assert await first.rest() == BLOB
    assert registry.record.times_sent(DIGEST) == [(0, len(BLOB), 1)]


@pytest.mark.parametrize("seed", range(4))
async def test_readers_at_random_offsets(proxy: Proxy, registry: FakeRegistry, seed: int) -> None:
    """Readers come at random offsets while every stream is stuck: each gets its bytes, none is asked for twice."""
    path = put(registry, BLOB)
    offsets = random.Random(seed).sample(range(len(BLOB)), 6)
    gate = Gate(0)
    registry.script = lambda request: Act(gate=gate)
    readers = [await Reader.send(proxy, path, offset) for offset in offsets]
    await until(lambda: gate.waiting > 0)
    gate.open()
    for reader in readers:
        await reader.head()
        assert reader.status == 206
    bodies = await asyncio.gather(*(reader.rest() for reader in readers))
    assert all(body == BLOB[offset:] for body, offset in zip(bodies, offsets, strict=True))
    await proxy.stored(1)
    assert registry.record.sent_twice(DIGEST) == []


async def test_from_the_back_to_the_front(proxy: Proxy, registry: FakeRegistry) -> None:
    """Readers that come one before the other, each stream stuck at its start, cost exactly the blob."""
    path = put(registry, BLOB)
    gates = [Gate(offset + KIB) for offset in (7 * MIB, 5 * MIB, 2 * MIB, 0)]
    registry.script = [Act(gate=gate) for gate in gates]
    readers = []
    for gate in gates:
        readers.append(await Reader.open(proxy, path, gate.offset - KIB))
        await gate.reached.wait()
    assert registry.record.open_now == len(gates)
    for gate in gates:
        gate.open()
    for reader in readers:
        assert await reader.rest() == BLOB[reader.start :]
    await proxy.stored(1)
    assert registry.record.times_sent(DIGEST) == [(0, len(BLOB), 1)]


async def test_a_parallel_fetch_of_one_layer(proxy: Proxy, registry: FakeRegistry) -> None:
    """As containerd does it: open-ended ranges, one a chunk, each closed early. 206 for all, no byte asked twice."""
    path = put(registry, BLOB)
    first = await Reader.open(proxy, path, 0)
    assert first.status == 206

    async def chunk(reader: Reader) -> bytes:
        data = await reader.read(MIB)
        await leave(reader)
        return data

    others = await asyncio.gather(*(Reader.open(proxy, path, start) for start in range(MIB, len(BLOB), MIB)))
    assert {reader.status for reader in others} == {206}
    chunks = await asyncio.gather(*(chunk(reader) for reader in (first, *others)))
    assert b"".join(chunks) == BLOB
    await proxy.stored(1)
    assert registry.record.sent_twice(DIGEST) == []


async def test_an_upstream_that_ignores_ranges(proxy: Proxy, registry: FakeRegistry) -> None:
    """Where the first range is answered with 200 one stream brings it all, and readers further on wait for theirs."""
    registry.honour_ranges = False
    path = put(registry, BLOB)
    registry.pause = gate = Gate(MIB)
    far = await Reader.open(proxy, path, 6 * MIB)
    await gate.reached.wait()
    near = await Reader.open(proxy, path, 0)
    assert await near.to(MIB - BLOCK) == BLOB[: MIB - BLOCK]
    assert (far.status, near.status) == (206, 206)
    gate.open()
    assert await far.rest() == BLOB[6 * MIB :]
    assert await near.rest() == BLOB
    await proxy.stored(1)
    assert [request.status for request in registry.record.requests] == [200]
    assert registry.sent == len(BLOB)


async def test_an_upstream_that_stops_honouring_ranges(proxy: Proxy, registry: FakeRegistry) -> None:
    """A 200 to a later range is not taken for that range: the body is right."""
    path = put(registry, BLOB)

    def script(request: BlobRequest) -> Act:
        return Act(whole=request.number > 0)

    registry.script = script
    assert (await proxy.get(path)).body == BLOB
    await proxy.stored(1)


async def test_a_head_starts_no_fill(proxy: Proxy, registry: FakeRegistry) -> None:
    """HEAD of a cold blob is answered by HEAD, with the size; nothing is fetched."""
    path = put(registry, BLOB)
    answer = await proxy.head(path)
    assert (answer.status, answer.headers["Content-Length"]) == (200, str(len(BLOB)))
    assert await proxy.metric("pullthrough_fills_active") == 0
    assert (registry.count("GET", "/blobs/"), registry.count("HEAD", "/blobs/")) == (0, 1)
    assert await proxy.metric("pullthrough_cache_bytes") == 0


async def test_a_head_beside_a_fill(proxy: Proxy, registry: FakeRegistry) -> None:
    """HEAD of a blob that is being filled asks the upstream nothing."""
    path = put(registry, BLOB)
    registry.pause = gate = Gate(MIB)
    reader = await Reader.open(proxy, path)
    await gate.reached.wait()
    answer = await proxy.head(path)
    assert (answer.status, answer.headers["Content-Length"]) == (200, str(len(BLOB)))
    assert len(registry.seen) == 1
    gate.open()
    assert await reader.rest() == BLOB


async def test_nothing_is_promised_before_the_upstream_has_answered(proxy: Proxy, registry: FakeRegistry) -> None:
    """A reader gets its head when the upstream has confirmed the blob and its length, before any of its bytes."""
    path = put(registry, BLOB)
    head, body = Gate(0), Gate(0)
    registry.script = [Act(head_gate=head, gate=body)]
    reader = await Reader.send(proxy, path, 2 * MIB)
    await head.reached.wait()
    waiting = asyncio.create_task(reader.head())
    await asyncio.sleep(0)
    assert not waiting.done()
    head.open()
    await waiting
    assert (reader.status, reader.headers["content-range"]) == (206, f"bytes {2 * MIB}-{len(BLOB) - 1}/{len(BLOB)}")
    assert await proxy.metric("pullthrough_upstream_bytes_total") == 0
    body.open()
    assert await reader.rest() == BLOB[2 * MIB :]


async def test_fifty_readers_cost_one_blob(proxy: Proxy, registry: FakeRegistry) -> None:
    """Fifty readers that want the whole of a cold blob cost its bytes once."""
    path = put(registry, BLOB[: 2 * MIB])
    digest = path.rpartition("/")[2]
    registry.pause = gate = Gate(MIB)
    readers = await asyncio.gather(*(Reader.open(proxy, path) for _ in range(50)))
    await came_in(proxy, MIB)
    gate.open()
    bodies = await asyncio.gather(*(reader.rest() for reader in readers))
    assert all(body == BLOB[: 2 * MIB] for body in bodies)
    assert registry.record.times_sent(digest) == [(0, 2 * MIB, 1)]
