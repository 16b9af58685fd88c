"""What breaks off is gone on with at the missing byte; nothing that has arrived is thrown away or asked for again."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
from aiohttp import web

from proxy.settings import Settings
from tests.fakes.acts import Act, BlobRequest
from tests.fakes.content import digest_of, random_bytes
from tests.fakes.proxy import Proxy, running
from tests.fakes.reader import Reader
from tests.fakes.registry import FakeRegistry, FakeStorage
from tests.fakes.server import Gate
from tests.scenarios.fills import MIB, came_in, leave, no_fill_runs, put

BLOB = random_bytes(6 * MIB, 400)
DIGEST = digest_of(BLOB)
# In the middle of the first range, of a block and of a packet.
ODD = 1_234_567

pytestmark = pytest.mark.usefixtures("quick")


async def fetched_over_a_fault(proxy: Proxy, registry: FakeRegistry, act: Act, gate: Gate) -> BlobRequest:
    """Pull the blob while its first connection meets `act` once ODD bytes have come in; gives the request after it."""
    path = put(registry, BLOB)
    registry.script = [act]
    reading = asyncio.create_task(proxy.get(path))
    await gate.reached.wait()
    await came_in(proxy, ODD)
    gate.open()
    answer = await reading
    assert (answer.status, answer.body) == (200, BLOB)
    await proxy.stored(1)
    return registry.record.requests[1]


@pytest.mark.parametrize("act", [Act(fin_at=ODD), Act(rst_at=ODD)])
async def test_a_connection_that_ends(proxy: Proxy, registry: FakeRegistry, act: Act) -> None:
    """FIN or RST in the middle: the next range begins at the very byte that is missing; the client notices nothing."""
    gate = Gate(ODD)
    resumed = await fetched_over_a_fault(proxy, registry, replace(act, gate=gate), gate)
    assert resumed.start == ODD
    assert registry.record.times_sent(DIGEST) == [(0, len(BLOB), 1)]
    assert await proxy.metric("pullthrough_fill_resumes_total") == 1


async def test_a_connection_that_falls_silent(settings: Callable[..., Settings], registry: FakeRegistry) -> None:
    """An upstream that stalls for `read_timeout` is as good as gone: another connection goes on at the missing byte."""
    gate = Gate(ODD)
    async with running(settings({"read_timeout": "100ms"})) as proxy:
        resumed = await fetched_over_a_fault(proxy, registry, Act(gate=gate, stall_at=ODD), gate)
        assert resumed.start == ODD
        assert registry.record.times_sent(DIGEST) == [(0, len(BLOB), 1)]
        assert await proxy.metric("pullthrough_fill_resumes_total") >= 1


@pytest.mark.parametrize("act", [Act(status=500), Act(status=503), Act(status=429), Act(drop=True)])
async def test_errors_on_the_way(proxy: Proxy, registry: FakeRegistry, act: Act) -> None:
    """A few errors between two ranges, or connections that end before their head, cost tries and no bytes."""
    path = put(registry, BLOB)
    registry.script = [Act(), act, act]
    answer = await proxy.get(path)
    assert (answer.status, answer.body) == (200, BLOB)
    await proxy.stored(1)
    assert registry.record.times_sent(DIGEST) == [(0, len(BLOB), 1)]


async def test_an_upstream_that_breaks_off_over_and_over(proxy: Proxy, registry: FakeRegistry) -> None:
    """Far more breaks than tries: with progress between them the count begins anew, and every byte comes once."""
    path = put(registry, BLOB)
    registry.script = lambda request: Act(fin_at=request.start + 100_003)
    assert (await proxy.get(path)).body == BLOB
    await proxy.stored(1)
    assert len(registry.record.requests) > 50
    assert registry.record.times_sent(DIGEST) == [(0, len(BLOB), 1)]


async def test_an_upstream_that_sends_less_than_was_asked(proxy: Proxy, registry: FakeRegistry) -> None:
    """A 206 shorter than the range is taken for what it is; the rest is asked for."""
    path = put(registry, BLOB)
    registry.script = lambda request: Act(most=300_001)
    assert (await proxy.get(path)).body == BLOB
    await proxy.stored(1)
    assert registry.record.times_sent(DIGEST) == [(0, len(BLOB), 1)]


@pytest.mark.parametrize(
    "content_range",
    [
        f"bytes 0-{6 * MIB - 1}/{6 * MIB}",
        f"bytes {2 * MIB}-{6 * MIB - 1}/{6 * MIB}",
        f"bytes {4 * MIB}-{6 * MIB}/{6 * MIB + 1}",
        "bytes */*",
        "nonsense",
    ],
)
async def test_an_answer_to_another_range_is_not_used(proxy: Proxy, registry: FakeRegistry, content_range: str) -> None:
    """A Content-Range that is not what was asked for, or another size: nothing of it reaches a client."""
    path = put(registry, BLOB)
    wrong = random_bytes(6 * MIB, 401)
    registry.script = [Act(), Act(content_range=content_range, body=wrong)]
    reader = await Reader.open(proxy, path)
    body = await reader.rest()
    assert BLOB.startswith(body)
    assert reader.end in {"whole", "fin"}
    await no_fill_runs(proxy)
    proxy.clock.advance(120)
    again = await proxy.get(path)
    assert (again.status, again.body) == (200, BLOB)
    assert await proxy.metric("pullthrough_digest_mismatches_total") == 0


async def test_a_first_answer_to_another_range(proxy: Proxy, registry: FakeRegistry) -> None:
    """An upstream that answers another range than it was asked for is asked without one, and the blob is right."""
    path = put(registry, BLOB)
    registry.script = lambda request: (
        Act(content_range=f"bytes 5-{len(BLOB) - 1}/{len(BLOB)}") if request.ranged else Act()
    )
    answer = await proxy.get(path)
    assert (answer.status, answer.body) == (200, BLOB)
    await proxy.stored(1)
    assert [request.ranged for request in registry.record.requests] == [True, False]


@pytest.mark.parametrize("status", [500, 502, 503])
async def test_before_the_first_head_nothing_is_tried_again(proxy: Proxy, registry: FakeRegistry, status: int) -> None:
    """An error as the first answer is 502 at once, after one request."""
    path = put(registry, BLOB)
    registry.script = lambda request: Act(status=status)
    answer = await proxy.get(path)
    assert (answer.status, answer.code) == (502, "UNAVAILABLE")
    assert len(registry.record.requests) == 1


async def test_silence_before_the_first_head(settings: Callable[..., Settings], registry: FakeRegistry) -> None:
    """An upstream that takes the request and says nothing is 504 after `read_timeout`."""
    path = put(registry, BLOB)
    gate = Gate(0)
    registry.script = lambda request: Act(head_gate=gate)
    async with running(settings({"read_timeout": "100ms"})) as proxy:
        answer = await proxy.get(path)
        assert (answer.status, answer.code) == (504, "UNAVAILABLE")


async def test_without_progress_the_body_is_cut_and_what_came_stays(proxy: Proxy, registry: FakeRegistry) -> None:
    """When nothing more comes, bodies end with FIN after what has arrived; the next request fetches only the rest."""
    path = put(registry, BLOB)
    registry.script = lambda request: Act(fin_at=3 * MIB)
    one, two = await Reader.open(proxy, path), await Reader.open(proxy, path, MIB)
    assert await one.rest() == BLOB[: 3 * MIB]
    assert await two.rest() == BLOB[MIB : 3 * MIB]
    assert (one.end, two.end) == ("fin", "fin")
    await no_fill_runs(proxy)
    tries = len(registry.record.requests)
    assert 3 <= tries <= 10
    registry.script = None
    proxy.clock.advance(120)
    assert (await proxy.get(path)).body == BLOB
    await proxy.stored(1)
    assert registry.record.requests[tries].start == 3 * MIB
    assert registry.record.times_sent(DIGEST) == [(0, len(BLOB), 1)]


async def test_what_was_cut_is_gone_on_with_from_where_a_client_was(proxy: Proxy, registry: FakeRegistry) -> None:
    """As containerd does it: a body that was cut is asked for again from its offset, and completes."""
    path = put(registry, BLOB)
    registry.script = lambda request: Act(fin_at=ODD)
    reader = await Reader.open(proxy, path)
    begun = await reader.rest()
    assert begun == BLOB[:ODD]
    await no_fill_runs(proxy)
    registry.script = None
    proxy.clock.advance(120)
    rest = await proxy.get(path, Range=f"bytes={len(begun)}-")
    assert (rest.status, begun + rest.body) == (206, BLOB)
    await proxy.stored(1)
    assert registry.record.times_sent(DIGEST) == [(0, len(BLOB), 1)]


async def test_a_fill_is_resumed_for_nobody(proxy: Proxy, registry: FakeRegistry) -> None:
    """The only client has left when the upstream breaks off: the fill goes on all the same."""
    path = put(registry, BLOB)
    gate = Gate(ODD)
    registry.script = [Act(gate=gate, fin_at=ODD)]
    reader = await Reader.open(proxy, path)
    await gate.reached.wait()
    await leave(reader)
    gate.open()
    await proxy.stored(1)
    assert registry.record.times_sent(DIGEST) == [(0, len(BLOB), 1)]


async def test_the_blob_is_gone_in_the_middle(proxy: Proxy, registry: FakeRegistry) -> None:
    """404 on a resume ends the body with FIN after what had come; asked anew it is 404."""
    path = put(registry, BLOB)
    gate = Gate(ODD)
    registry.script = [Act(gate=gate, fin_at=ODD)]
    reader = await Reader.open(proxy, path)
    await gate.reached.wait()
    await came_in(proxy, ODD)
    registry.members.clear()
    gate.open()
    body = await reader.rest()
    assert (BLOB.startswith(body), reader.end) == (True, "fin")
    await no_fill_runs(proxy)
    proxy.clock.advance(1000)
    assert (await proxy.get(path)).status == 404


async def test_an_upstream_without_ranges_that_breaks_off(proxy: Proxy, registry: FakeRegistry) -> None:
    """It can only be read from the start again, which no client notices."""
    registry.honour_ranges = False
    path = put(registry, BLOB)
    registry.script = [Act(fin_at=ODD)]
    answer = await proxy.get(path)
    assert (answer.status, answer.body) == (200, BLOB)
    await proxy.stored(1)
    assert len(registry.record.requests) == 2


async def test_an_upstream_that_comes_back_at_another_offset(proxy: Proxy, registry: FakeRegistry) -> None:
    """While an upstream is away, a reader far ahead waits with the rest; all complete when it is back."""
    path = put(registry, BLOB)
    gate = Gate(ODD)
    registry.script = [Act(gate=gate, fin_at=ODD), *[Act(status=503)] * 3]
    front = await Reader.open(proxy, path)
    await gate.reached.wait()
    far = await Reader.send(proxy, path, 5 * MIB)
    gate.open()
    await far.head()
    assert await far.rest() == BLOB[5 * MIB :]
    assert await front.rest() == BLOB
    await proxy.stored(1)
    assert registry.record.sent_twice(DIGEST) == []


# Redirects and tokens.


async def test_an_address_that_has_expired(
    settings: Callable[..., Settings], registry: FakeRegistry, storage: FakeStorage
) -> None:
    """A signed address that is over (403) is asked afresh of the registry, and the blob goes on at the missing byte."""
    registry.storage = storage
    path = put(registry, BLOB)
    gate = Gate(ODD)
    storage.script = [Act(gate=gate, fin_at=ODD)]
    async with running(settings()) as proxy:
        reading = asyncio.create_task(proxy.get(path))
        await gate.reached.wait()
        await came_in(proxy, ODD)
        storage.expire()
        gate.open()
        assert (await reading).body == BLOB
        await proxy.stored(1)
    assert storage.record.times_sent(DIGEST) == [(0, len(BLOB), 1)]
    assert ODD in {start for start, _ in storage.record.asked(DIGEST)}
    assert not any("Authorization" in seen.headers for seen in storage.seen)


async def test_an_address_that_expires_between_ranges(
    settings: Callable[..., Settings], registry: FakeRegistry, storage: FakeStorage
) -> None:
    """Addresses that are good for one request only bring the blob all the same, each byte once."""
    registry.storage = storage
    path = put(registry, BLOB)

    def script(request: BlobRequest) -> Act:
        storage.expire()
        return Act(most=700_000)

    storage.script = script
    async with running(settings()) as proxy:
        assert (await proxy.get(path)).body == BLOB
        await proxy.stored(1)
    assert storage.record.times_sent(DIGEST) == [(0, len(BLOB), 1)]


async def test_storage_that_fails_at_the_address(
    settings: Callable[..., Settings], registry: FakeRegistry, storage: FakeStorage
) -> None:
    """5xx where the redirect led is tried again like the registry's own."""
    registry.storage = storage
    path = put(registry, BLOB)
    storage.script = [Act(rst_at=0), Act(), Act(status=503), Act(status=503)]
    async with running(settings()) as proxy:
        answer = await proxy.get(path)
        assert (answer.status, answer.body) == (200, BLOB)
        await proxy.stored(1)
    assert storage.record.times_sent(DIGEST) == [(0, len(BLOB), 1)]


async def test_a_token_that_has_expired(proxy: Proxy, registry: FakeRegistry) -> None:
    """401 in the middle of a fill is answered with a new token, and the blob goes on at the missing byte."""
    registry.private = {"team/app": {""}}
    gate = Gate(ODD)
    path = put(registry, BLOB)
    registry.script = [Act(gate=gate, fin_at=ODD)]
    reading = asyncio.create_task(proxy.get(path))
    await gate.reached.wait()
    await came_in(proxy, ODD)
    registry.revoke_tokens()
    gate.open()
    assert (await reading).body == BLOB
    await proxy.stored(1)
    assert registry.count("GET", "/token") == 2
    assert registry.record.requests[1].start == ODD
    assert registry.record.times_sent(DIGEST) == [(0, len(BLOB), 1)]


async def test_a_token_server_that_is_down_for_a_while(proxy: Proxy, registry: FakeRegistry) -> None:
    """Without a token there is no progress for a few tries; once it answers again the blob completes."""
    registry.private = {"team/app": {""}}
    gate = Gate(ODD)
    path = put(registry, BLOB)
    registry.script = [Act(gate=gate, fin_at=ODD)]
    reading = asyncio.create_task(proxy.get(path))
    await gate.reached.wait()
    registry.revoke_tokens()
    failures = iter(range(2))

    def fault(request: web.BaseRequest) -> web.Response | None:
        down = request.rel_url.path == "/token" and next(failures, None) is not None
        return web.Response(status=503) if down else None

    registry.fault = fault
    gate.open()
    assert (await reading).body == BLOB
    await proxy.stored(1)
    assert registry.record.times_sent(DIGEST) == [(0, len(BLOB), 1)]
