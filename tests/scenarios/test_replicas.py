"""Several replicas of a region: what one asks the upstream for the others read from it, and go on by themselves."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from aiohttp import web

from proxy.oci.digest import Digest
from proxy.policy.replica import SCHEME, region_key
from tests.fakes.acts import Act
from tests.fakes.clock import ManualClock
from tests.fakes.content import digest_of, random_bytes
from tests.fakes.reader import Reader
from tests.fakes.region import FakeObjects
from tests.fakes.registry import FakeRegistry
from tests.fakes.replicas import FakeRegion, Replica
from tests.fakes.server import Gate
from tests.scenarios.fills import MIB, digest_in, no_fill_runs, put, until
from tests.scenarios.operators import call

BLOB = random_bytes(6 * MIB, 700)
DIGEST = digest_of(BLOB)
SMALL = random_bytes(100_000, 701)
# In the middle of the first range, of a block and of a packet.
ODD = 1_234_567

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def region(tmp_path: Path, registry: FakeRegistry, other: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> FakeRegion:
    upstreams = {"registry.test": registry, "other.test": other}
    described = {
        name: {"url": one.url, "connect_timeout": "1s", "read_timeout": "5s"} for name, one in upstreams.items()
    }
    return FakeRegion(tmp_path, described, monkeypatch)


@pytest.fixture
async def three(region: FakeRegion) -> AsyncIterator[list[Replica]]:
    """Replicas with empty disks."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(region.replica(name)) for name in ("a", "b", "c")]


def blob_target(replica: Replica, content: bytes, registry: str = "registry.test") -> str:
    """What another replica would ask for it."""
    return f"/v1/blobs/{digest_of(content)}?source={replica.source(registry).hex()}"


async def gated(registry: FakeRegistry, replica: Replica, path: str) -> tuple[Gate, Reader]:
    """A fill of the blob that has begun at `replica`, and stands at ODD; and a client of it."""
    gate = Gate(ODD)
    registry.script = [Act(gate=gate)]
    reader = await Reader.send(replica, path)
    async with asyncio.timeout(10):
        await gate.reached.wait()
    return gate, reader


async def shared_bytes(*replicas: Replica) -> float:
    """What came from within the region."""
    return sum([await one.metric("pullthrough_shared_bytes_total") for one in replicas])


async def removed(replica: Replica) -> int:
    """What an operator is answered who removes the blob there, once nobody reads it any more."""
    async with asyncio.timeout(10):
        while (status := (await call(replica, "DELETE", f"blobs/{DIGEST}"))[0]) == 409:
            await asyncio.sleep(0)
    return int(status)


# One of all asks the upstream.


async def test_a_cold_blob_at_all_at_once(region: FakeRegion, three: list[Replica], registry: FakeRegistry) -> None:
    """The upstream sends it once, everybody gets it right, and all replicas have it then."""
    path = put(registry, BLOB)
    answers = await asyncio.gather(*(one.get(path) for one in three for _ in range(3)))
    assert all((answer.status, answer.body) == (200, BLOB) for answer in answers)
    for one in three:
        await one.stored(1)
    assert registry.record.times_sent(DIGEST) == [(0, len(BLOB), 1)]
    assert await shared_bytes(*three) == 2 * len(BLOB)
    assert region.common.leases == {}
    assert len(region.common.holders[Digest.parse(DIGEST)]) == 3


async def test_what_one_has_the_others_read(three: list[Replica], registry: FakeRegistry) -> None:
    """A blob that is stored somewhere is not asked of the upstream, nor leased: only whether it may be had."""
    path = put(registry, BLOB)
    assert (await three[0].get(path)).body == BLOB
    await three[0].stored(1)
    before = len(registry.record.requests)
    reader = await Reader.open(three[1], path, 5 * MIB)
    assert await reader.rest() == BLOB[5 * MIB :]
    assert (await three[1].get(path)).body == BLOB
    assert len(registry.record.requests) == before
    assert registry.count("HEAD", "/blobs/") == 1


async def test_a_follower_reads_what_has_come(three: list[Replica], registry: FakeRegistry) -> None:
    """Not at the end of the other's fill, but as it comes."""
    path = put(registry, BLOB)
    gate, reader = await gated(registry, three[0], path)
    following = await Reader.open(three[1], path)
    assert await following.to(ODD) == BLOB[:ODD]
    gate.open()
    assert await following.rest() == BLOB
    await reader.head()
    assert await reader.rest() == BLOB
    assert registry.record.times_sent(DIGEST) == [(0, len(BLOB), 1)]
    for one in three[:2]:
        await one.stored(1)


async def test_who_fills_stops_in_the_middle(three: list[Replica], registry: FakeRegistry) -> None:
    """One of the others goes on at the missing byte, the rest reads from that one; their clients notice nothing."""
    path = put(registry, BLOB)
    _, reader = await gated(registry, three[0], path)
    following = [await Reader.open(one, path) for one in three[1:]]
    for one in following:
        assert await one.to(ODD) == BLOB[:ODD]
    await three[0].leave()
    for one in following:
        assert await one.rest() == BLOB
        assert one.end == "whole"
    assert registry.record.times_sent(DIGEST) == [(0, len(BLOB), 1)]
    assert registry.record.requests[1].start == ODD
    reader.leave()
    for replica in three[1:]:
        await replica.stored(1)


async def test_a_client_that_leaves_ends_nothing(three: list[Replica], registry: FakeRegistry) -> None:
    """Neither the fill nor what other replicas read of it."""
    path = put(registry, BLOB)
    gate, reader = await gated(registry, three[0], path)
    following = await Reader.open(three[1], path)
    reader.leave()
    gate.open()
    assert await following.rest() == BLOB
    assert registry.record.times_sent(DIGEST) == [(0, len(BLOB), 1)]
    for one in three[:2]:
        await one.stored(1)


async def test_without_the_server_for_leases(region: FakeRegion, three: list[Replica], registry: FakeRegistry) -> None:
    """Each replica asks the upstream: that costs bytes, and nothing else."""
    region.common.away = True
    path = put(registry, SMALL)
    answers = await asyncio.gather(*(one.get(path) for one in three))
    assert all(answer.body == SMALL for answer in answers)
    assert registry.record.times_sent(digest_in(path)) == [(0, len(SMALL), 3)]


async def test_an_upstream_that_fails_at_who_has_the_lease(three: list[Replica], registry: FakeRegistry) -> None:
    """Its client is told; the next replica tries for itself, and is told the same by the upstream."""
    path = put(registry, BLOB)
    registry.fault = lambda request: web.Response(status=503) if request.method == "GET" else None
    statuses = [answer.status for answer in await asyncio.gather(*(one.get(path) for one in three))]
    assert all(status >= 500 for status in statuses)
    registry.fault = None
    for one in three:
        one.clock.advance(120)
    assert (await three[2].get(path)).body == BLOB


async def test_bytes_of_a_replica_that_are_wrong(three: list[Replica], registry: FakeRegistry, tmp_path: Path) -> None:
    """Nobody gets all of them, nobody blames the upstream, and the next request has the blob from there."""
    path = put(registry, SMALL)
    await three[0].get(path)
    await three[0].stored(1)
    (file,) = [one for one in (tmp_path / "a" / "blobs").rglob("*") if one.is_file()]
    await asyncio.to_thread(file.chmod, 0o600)
    await asyncio.to_thread(file.write_bytes, b"!" + SMALL[1:])
    reader = await Reader.open(three[1], path)
    assert len(await reader.rest()) < len(SMALL)
    await no_fill_runs(three[1])
    again = await three[1].get(path)
    assert (again.status, again.body) == (200, SMALL)
    assert await three[1].metric("pullthrough_digest_mismatches_total") == 0
    await three[1].stored(1)


# Whose right it is.


async def test_a_right_is_the_upstream_s_word(three: list[Replica], registry: FakeRegistry) -> None:
    """That another replica has the bytes says nothing about who may have them here."""
    path = put(registry, SMALL)
    await three[0].get(path)
    await three[0].stored(1)
    registry.put("team/mine", "application/octet-stream", b"something else")
    answer = await three[1].get(f"/v2/team/mine/blobs/{digest_in(path)}")
    assert (answer.status, answer.code) == (404, "BLOB_UNKNOWN")
    assert (await three[1].get(path)).body == SMALL


async def test_a_fill_of_another_source(three: list[Replica], registry: FakeRegistry, other: FakeRegistry) -> None:
    """Until it is hashed it is nothing to show to those who asked elsewhere: they ask there, and both get it right."""
    path = put(registry, BLOB)
    put(other, BLOB, "team/theirs")
    gate, reader = await gated(registry, three[0], path)
    target = blob_target(three[0], BLOB, "other.test")
    assert (await three[0].asked("GET", target)).status == 404
    assert (await three[0].asked("GET", target.partition("?")[0])).status == 404
    assert (await three[0].asked("GET", blob_target(three[0], BLOB), "bytes=0-9")).body == BLOB[:10]
    answer = await three[1].get(f"/v2/team/theirs/blobs/{DIGEST}?ns=other.test")
    assert (answer.status, answer.body) == (200, BLOB)
    assert other.record.times_sent(DIGEST) == [(0, len(BLOB), 1)]
    gate.open()
    await reader.head()
    assert await reader.rest() == BLOB
    await three[0].stored(1)
    # Once it is hashed it is everybody's.
    assert (await three[0].asked("GET", target)).body == BLOB


# The object store.


async def test_the_object_store_comes_before_the_upstream(region: FakeRegion, registry: FakeRegistry) -> None:
    """A replica with an empty disk has it from there, for those who may have it; what is filled gets there once."""
    objects = region.objects = FakeObjects()
    path = put(registry, BLOB)
    async with region.replica("a") as one:
        assert (await one.get(path)).body == BLOB
        await until(lambda: bool(objects.blobs))
    assert registry.record.times_sent(DIGEST) == [(0, len(BLOB), 1)]
    async with region.replica("b") as one:
        refused = await one.get(f"/v2/team/mine/blobs/{DIGEST}")
        assert (refused.status, objects.asked("read")) == (404, 0)
        assert (await one.get(path)).body == BLOB
        await one.stored(1)
        assert await shared_bytes(one) == len(BLOB)
    assert registry.record.times_sent(DIGEST) == [(0, len(BLOB), 1)]


async def test_a_purge_is_of_the_region(region: FakeRegion, registry: FakeRegistry) -> None:
    """Out of every replica and of the object store; what is read at another replica is not gone, which is told."""
    objects = region.objects = FakeObjects()
    path = put(registry, BLOB)
    async with region.replica("a") as one, region.replica("b") as two:
        assert (await two.get(path)).body == BLOB
        await until(lambda: bool(objects.blobs))
        reader = await Reader.open(two, path)
        status, refused = await call(one, "DELETE", f"blobs/{DIGEST}")
        assert (status, list(refused)) == (409, ["error"])
        assert objects.blobs == {}
        reader.leave()
        assert await removed(one) == 200
        await two.stored(0)
        assert await removed(one) == 404
        assert (await one.get(path)).body == BLOB
        await one.stored(1)
        assert await removed(two) == 200
        await one.stored(0)
    assert registry.record.times_sent(DIGEST) == [(0, len(BLOB), 2)]


# The listener for replicas.


async def test_who_is_let_in(three: list[Replica], registry: FakeRegistry) -> None:
    """Whoever has the secret, for the very request that was signed, in that minute; all else is 401."""
    one = three[0]
    await one.get(put(registry, SMALL))
    await one.stored(1)
    target, late = blob_target(one, SMALL), ManualClock()
    assert (await one.asked("GET", target)).body == SMALL
    late.advance(120)
    refused = [
        await one.asked("GET", target, authorization=""),
        await one.asked("GET", target, authorization=f"{SCHEME} 1 2 3"),
        await one.asked("GET", target, authorization="Bearer x"),
        await one.asked("GET", target, key=region_key(b"another secret", "replicas")),
        await one.asked("GET", target, clock=late),
        await one.asked("GET", target, signed=f"/v1/blobs/{digest_of(b'')}"),
        await one.asked("GET", "/", authorization=""),
        await one.asked("DELETE", target.partition("?")[0], authorization=""),
    ]
    assert [answer.status for answer in refused] == [401] * len(refused)
    assert all(SMALL[:100] not in answer.body for answer in refused)
    assert (await one.asked("GET", target)).body == SMALL


async def test_ranges(three: list[Replica], registry: FakeRegistry) -> None:
    """As HTTP has them."""
    one = three[0]
    await one.get(put(registry, SMALL))
    await one.stored(1)
    target = blob_target(one, SMALL)
    ranged = await one.asked("GET", target, "bytes=10-19")
    assert (ranged.status, ranged.body) == (206, SMALL[10:20])
    assert ranged.headers["Content-Range"] == f"bytes 10-19/{len(SMALL)}"
    beyond = await one.asked("GET", target, f"bytes={len(SMALL)}-")
    assert (beyond.status, beyond.headers["Content-Range"]) == (416, f"bytes */{len(SMALL)}")


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/blobs/", 404),
        ("GET", "/v1/blobs/latest", 404),
        ("GET", "/v1/blobs/sha256:00", 404),
        ("GET", f"/v1/blobs/{DIGEST}/..", 404),
        ("GET", f"/v1/blobs/{DIGEST}?source=xy", 404),
        ("GET", f"/v1/blobs/{DIGEST}?source=0", 404),
        ("DELETE", "/v1/blobs/", 404),
        ("POST", f"/v1/blobs/{DIGEST}", 405),
        ("HEAD", f"/v1/blobs/{DIGEST}", 405),
    ],
)
async def test_requests_that_mean_nothing(three: list[Replica], method: str, target: str, status: int) -> None:
    """Signed or not, they are answered, and nothing comes of them."""
    assert (await three[0].asked(method, target)).status == status
    assert (await three[0].asked(method, target, authorization="")).status == 401


async def test_no_fill_begins_for_a_replica(three: list[Replica], registry: FakeRegistry) -> None:
    """Nobody's rights are behind it: what is not here is 404, and the upstream hears nothing of it."""
    put(registry, SMALL)
    target = blob_target(three[0], SMALL)
    for asked in (target, target.partition("?")[0]):
        assert (await three[0].asked("GET", asked)).status == 404
    assert registry.seen == []
    assert await three[0].metric("pullthrough_fills_active") == 0


async def test_a_blob_is_dropped(three: list[Replica], registry: FakeRegistry) -> None:
    """Where somebody reads it, it is not; what is not here is not found."""
    one = three[0]
    path = put(registry, BLOB)
    target = f"/v1/blobs/{DIGEST}"
    assert (await one.asked("DELETE", target)).status == 404
    await one.get(path)
    await one.stored(1)
    reader = await Reader.open(one, path)
    assert (await one.asked("DELETE", target)).status == 409
    assert await reader.rest() == BLOB
    async with asyncio.timeout(10):
        while (dropped := await one.asked("DELETE", target)).status == 409:
            await asyncio.sleep(0)
    assert dropped.status == 204
    await one.stored(0)
    assert (await one.asked("GET", blob_target(one, BLOB))).status == 404
