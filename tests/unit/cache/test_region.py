"""Where the bytes of a fill come from: in which order, what is looked at again, and what is waited for."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from proxy.cache.ask import Ask
from proxy.cache.place import Place, RangeReply
from proxy.cache.region import _PATIENCE, Places, Region, Wanted
from proxy.oci.digest import Digest
from proxy.oci.reference import Repository
from proxy.policy.access import ANONYMOUS
from proxy.policy.freshness import lifetimes_of
from proxy.settings import ManifestSettings
from proxy.storage.base import StorageError, WrongObject
from proxy.telemetry.events import Event, ObjectMismatch, SharedBytes, SharedStoreFailed
from proxy.upstream.errors import UpstreamFailure, UpstreamMissing
from proxy.upstream.replicas import Dropped, ReplicaUnreachable
from proxy.upstream.slots import Slots
from tests.fakes.clock import LoopClock
from tests.fakes.content import random_bytes
from tests.fakes.region import Common, FakeObjects, FakeReplicas, Member, failing

BLOB = random_bytes(200_000, 1)
DIGEST = Digest.of(BLOB)
SOURCE = bytes(range(16))
NAME = f"fill:{SOURCE.hex()}:{DIGEST}"
ASK = Ask(Repository("reg.test", "a"), ANONYMOUS, lifetimes_of(ManifestSettings()))
HERE, THERE, ELSEWHERE = "http://here", "http://there", "http://elsewhere"
UNREACHABLE = ReplicaUnreachable("connect", "no such replica")
SILENT = UpstreamFailure("timeout", "it says nothing")


@asynccontextmanager
async def _not_asked(*_: object) -> AsyncIterator[RangeReply]:
    raise AssertionError("the upstream is nobody's to ask here")
    yield


UPSTREAM = Place("upstream", _not_asked, Slots(1), 1)


class Fixture:
    """A region seen from `HERE`, and the places of one fill there."""

    def __init__(self) -> None:
        self.common = Common()
        self.member = Member(self.common, HERE)
        self.there = Member(self.common, THERE)
        self.elsewhere = Member(self.common, ELSEWHERE)
        self.replicas = FakeReplicas()
        self.objects = FakeObjects()
        self.told: list[Event] = []
        self.region = Region(self.told.append, self.member, self.member, self.replicas, self.objects)
        self.stack = AsyncExitStack()
        self.ensured = 0
        self.refusal: UpstreamMissing | None = None
        self.places = self.fill()

    def fill(self) -> Places:
        """The places of another fill of the blob."""
        return self.region.places(Wanted(DIGEST, SOURCE, UPSTREAM, self._ensure), self.stack)

    async def _ensure(self) -> None:
        assert not self.objects.asked("read")
        self.ensured += 1
        if self.refusal is not None:
            raise self.refusal

    async def has(self, member: Member) -> None:
        """The replica has all of the blob, and has said so."""
        self.replicas.has[member.address] = {DIGEST: BLOB}
        await member.add(DIGEST)

    async def kinds(self, count: int) -> list[str]:
        """The next places, where none of them brings anything."""
        found = list[str]()
        for _ in range(count):
            place = await self.places.next()
            found.append(place.kind)
            if place.kind != "upstream":
                await brought(place)
        return found


@pytest.fixture
async def one(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fixture]:
    """Whoever cannot be reached is not waited for between two tries."""
    monkeypatch.setattr("proxy.cache.region._PAUSE", 0)
    fixture = Fixture()
    yield fixture
    await fixture.stack.aclose()


async def brought(place: Place, span: tuple[int, int] | None = (0, len(BLOB))) -> bytes:
    """What a place sends of a range, up to where it fails."""
    received = bytearray()
    try:
        async with place.request(ASK, span, None) as reply:
            async for piece in reply.pieces():
                received += piece
    except UpstreamFailure:
        pass
    return bytes(received)


async def test_alone_there_is_the_upstream() -> None:
    """A region of one has no other place, at no cost."""
    async with AsyncExitStack() as stack:
        fixture = Fixture()
        region = Region(fixture.told.append)
        places = region.places(Wanted(DIGEST, SOURCE, UPSTREAM, fixture._ensure), stack)
        assert [await places.next() for _ in range(3)] == [UPSTREAM] * 3
    assert fixture.ensured == 0
    await region.stored(DIGEST)
    await region.lost(DIGEST)
    assert await region.purge(DIGEST) == []
    assert await region.address(DIGEST, 0) is None


async def test_who_has_the_lease_asks_the_upstream(one: Fixture) -> None:
    """Nobody has the blob: the lease is had before the upstream is asked, and until the fill has ended."""
    assert await one.places.next() is UPSTREAM
    assert one.common.leases == {NAME: HERE}
    assert await one.places.next() is UPSTREAM
    assert one.member.taken == [NAME]
    await one.stack.aclose()
    assert not one.common.leases


async def test_a_replica_that_has_it_comes_first(one: Fixture) -> None:
    """Then the object store, then the upstream; each is tried once where it brings nothing."""
    await one.has(one.there)
    one.replicas.faults[THERE] = UNREACHABLE
    one.objects.blobs[DIGEST] = BLOB
    one.objects.faults["read"] = failing()
    assert await one.kinds(4) == ["replica", "object", "upstream", "upstream"]
    assert one.replicas.asked == [THERE]
    assert one.objects.asked("read") == 1


async def test_the_bytes_of_a_replica(one: Fixture) -> None:
    """The range that is asked for; nothing is leased, nothing asked of the object store, and no right ensured."""
    await one.has(one.there)
    place = await one.places.next()
    assert await brought(place, (5, 100_000)) == BLOB[5:100_000]
    assert one.replicas.spans == [(5, 100_000)]
    # One that only fills it has nothing for who has not looked at the lease: two would read from each other.
    assert one.replicas.sources == [None]
    assert not place.vouches
    assert (one.ensured, one.objects.calls, one.member.taken) == (0, [], [])


@pytest.mark.parametrize("span", [(0, 200_000), (0, 1), (70_000, 200_000), (199_999, 200_000), (100, 4_000_000), None])
async def test_the_bytes_of_the_object_store(one: Fixture, span: tuple[int, int] | None) -> None:
    """The range that is asked for, as an answer of HTTP, and counted."""
    one.objects.blobs[DIGEST] = BLOB
    place = await one.places.next()
    start, stop = span or (0, len(BLOB))
    stop = min(stop, len(BLOB))
    async with place.request(ASK, span, None) as reply:
        whole = (start, stop) == (0, len(BLOB))
        assert reply.status == (200 if whole else 206)
        assert reply.headers.get("Content-Range") == (None if whole else f"bytes {start}-{stop - 1}/{len(BLOB)}")
        assert reply.content_length == stop - start
        assert b"".join([piece async for piece in reply.pieces()]) == BLOB[start:stop]
    assert sum(event.count for event in one.told if isinstance(event, SharedBytes)) == stop - start


async def test_rights_are_asked_before_the_object_store_is_read(one: Fixture) -> None:
    """Bytes are not fetched for those who have no right to them; the upstream's refusal ends the fill."""
    one.objects.blobs[DIGEST] = BLOB
    one.refusal = UpstreamMissing("no such repository")
    with pytest.raises(UpstreamMissing):
        await one.places.next()
    assert one.ensured == 1
    assert not one.objects.asked("read")
    one.refusal = None
    one.places = one.fill()
    assert (await one.places.next()).kind == "object"
    assert one.ensured == 2


async def test_what_another_one_leases_is_read_from_it(one: Fixture) -> None:
    """As it comes, for as long as it has the lease; then who waited has it, and asks the upstream."""
    await one.there.take(NAME)
    one.replicas.has[THERE] = {DIGEST: BLOB}
    one.replicas.breaks_at[THERE] = 100_000
    for _ in range(3):
        place = await one.places.next()
        assert place.kind == "replica"
        assert await brought(place) == BLOB[:100_000]
    assert one.replicas.sources == [SOURCE] * 3
    await one.there.release(NAME)
    assert await one.places.next() is UPSTREAM
    assert one.common.leases == {NAME: HERE}


async def test_after_a_lease_was_waited_for_all_is_looked_at_again(one: Fixture) -> None:
    """Who had it before may have brought all of it meanwhile: the upstream is not asked for it again."""
    await one.there.take(NAME)
    assert (await one.places.next()).kind == "replica"
    await one.there.release(NAME)
    await one.has(one.elsewhere)
    assert await brought(await one.places.next()) == BLOB
    assert one.replicas.asked == [ELSEWHERE]


async def test_it_is_looked_at_again_once_the_lease_is_had(one: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the first look and the lease a blob may have been stored."""
    take = one.member.take

    async def after_it_was_stored(name: str) -> str | None:
        one.objects.blobs[DIGEST] = BLOB
        return await take(name)

    monkeypatch.setattr(one.member, "take", after_it_was_stored)
    assert await one.kinds(2) == ["object", "upstream"]


async def test_a_holder_that_cannot_be_reached(one: Fixture, timers: LoopClock) -> None:
    """It keeps the others from the upstream for a few seconds, after which they ask without the lease."""
    await one.there.take(NAME)
    one.replicas.faults[THERE] = UNREACHABLE
    assert await one.kinds(3) == ["replica"] * 3
    await timers.advance(_PATIENCE - 0.2)
    assert await one.kinds(1) == ["replica"]
    await timers.advance(0.3)
    assert await one.kinds(2) == ["upstream"] * 2
    assert one.common.leases == {NAME: THERE}


async def test_a_holder_that_is_silent_is_waited_for(one: Fixture, timers: LoopClock) -> None:
    """As long as it has the lease it is there: a slow upstream is no reason for all to ask it."""
    await one.there.take(NAME)
    one.replicas.faults[THERE] = SILENT
    for _ in range(10):
        assert await one.kinds(1) == ["replica"]
        await timers.advance(2)
    assert one.replicas.asked == [THERE] * 10


async def test_a_pause_before_an_unreachable_holder_is_asked_again(
    one: Fixture, timers: LoopClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may just be starting; others are not to be asked as fast as they can say no."""
    monkeypatch.setattr("proxy.cache.region._PAUSE", 5.0)
    await one.there.take(NAME)
    assert await brought(await one.places.next()) == b""
    asking = asyncio.create_task(one.places.next())
    for _ in range(10):
        await asyncio.sleep(0)
    await timers.advance(4)
    assert not asking.done()
    await timers.advance(2)
    assert (await asking).kind == "replica"


async def test_a_silent_replica_is_asked_again_while_it_is_there(one: Fixture) -> None:
    """It has the blob, and is busy: twenty times, and not for ever."""
    await one.has(one.there)
    one.replicas.faults[THERE] = SILENT
    assert await one.kinds(21) == ["replica"] * 20 + ["upstream"]
    assert await one.there.of(DIGEST) == []
    assert await one.member.of(DIGEST) == []


async def test_a_silent_replica_that_is_gone_is_not_asked_again(one: Fixture) -> None:
    """It says no more that it is there."""
    await one.has(one.there)
    one.replicas.faults[THERE] = SILENT
    assert await one.kinds(2) == ["replica"] * 2
    one.common.there.remove(THERE)
    assert await one.kinds(1) == ["upstream"]


async def test_a_replica_that_has_it_no_more(one: Fixture) -> None:
    """It says so, is not asked again, and nobody else is sent there; the next one is asked."""
    await one.has(one.elsewhere)
    await one.has(one.there)
    del one.replicas.has[THERE][DIGEST]
    assert await brought(await one.places.next()) == b""
    assert await brought(await one.places.next()) == BLOB
    assert one.replicas.asked == [THERE, ELSEWHERE]
    assert await one.member.of(DIGEST) == [ELSEWHERE]


async def test_without_the_server_for_leases(one: Fixture) -> None:
    """Every replica asks the object store, and then the upstream."""
    await one.has(one.there)
    one.common.away = True
    one.objects.blobs[DIGEST] = BLOB
    assert await one.kinds(3) == ["object", "upstream", "upstream"]
    assert one.replicas.asked == []


async def test_an_object_store_that_fails(one: Fixture) -> None:
    """Is as good as empty."""
    one.objects.blobs[DIGEST] = BLOB
    one.objects.faults["find"] = failing("denied")
    assert await one.kinds(1) == ["upstream"]
    # Whoever guards it has told of it.
    assert not any(isinstance(event, SharedStoreFailed) for event in one.told)
    assert one.ensured == 0


async def test_an_object_store_that_breaks_off(one: Fixture) -> None:
    """What came is kept by whoever asked; what is missing comes from elsewhere."""
    one.objects.blobs[DIGEST] = BLOB
    one.objects.faults["read"], one.objects.breaks_at = failing("timeout"), 100_000
    assert await brought(await one.places.next()) == BLOB[:100_000]
    assert await one.places.next() is UPSTREAM


@pytest.mark.parametrize("when", ["find", "read"])
async def test_a_wrong_object_is_dropped_and_counted(one: Fixture, when: str) -> None:
    """It is of no use to anybody: whoever has the blob stores it anew."""
    one.objects.blobs[DIGEST] = BLOB
    one.objects.faults[when] = WrongObject("other bytes")
    assert await one.kinds(2 if when == "read" else 1) == [*(["object"] if when == "read" else []), "upstream"]
    assert one.objects.blobs == {}
    # Where it was found wrong before the lease was had, it is looked for once more.
    assert one.told.count(ObjectMismatch()) == one.objects.asked("remove") == (1 if when == "read" else 2)


async def test_a_wrong_object_that_cannot_be_dropped(one: Fixture) -> None:
    """Is no place all the same."""
    one.objects.blobs[DIGEST] = BLOB
    one.objects.faults |= {"find": WrongObject("other bytes"), "remove": failing()}
    assert await one.kinds(1) == ["upstream"]


async def test_what_was_wrong_is_had_from_the_upstream_for_a_while(one: Fixture, timers: LoopClock) -> None:
    """Of that blob only, whoever has it; a minute later it may be had from the region again."""
    await one.has(one.there)
    one.objects.blobs[DIGEST] = BLOB
    one.region.distrust(DIGEST)
    assert one.region.distrusts(DIGEST)
    assert not one.region.distrusts(Digest.of(b"another"))
    assert await one.kinds(3) == ["upstream"] * 3
    assert (one.member.taken, one.objects.calls, one.replicas.asked) == ([], [], [])
    await timers.advance(59)
    assert await one.kinds(1) == ["upstream"]
    await timers.advance(2)
    assert not one.region.distrusts(DIGEST)
    assert await one.kinds(1) == ["replica"]
    one.region.distrust(Digest.of(b"another"))
    assert len(one.region._distrusted) == 1


async def test_a_purge_is_of_all_replicas(one: Fixture) -> None:
    """Also of those that have not said that they have it; gives what became of it at each."""
    await one.has(one.there)
    assert await one.region.purge(DIGEST) == [Dropped.GONE, Dropped.NONE]
    assert sorted(one.replicas.removed) == [(ELSEWHERE, DIGEST), (THERE, DIGEST)]
    assert await one.member.of(DIGEST) == []
    assert await one.region.purge(DIGEST) == [Dropped.NONE, Dropped.NONE]


async def test_a_purge_that_one_replica_cannot_do(one: Fixture) -> None:
    """The others do it, and whoever asked is told that it may be left."""
    await one.has(one.there)
    await one.has(one.elsewhere)
    one.replicas.faults[ELSEWHERE] = UNREACHABLE
    with pytest.raises(StorageError):
        await one.region.purge(DIGEST)
    assert one.replicas.has[THERE] == {}
    assert len(one.replicas.removed) == 2
    assert await one.member.of(DIGEST) == []


async def test_a_purge_without_the_server_for_leases(one: Fixture) -> None:
    """Nobody knows who is there: it may be left anywhere."""
    one.common.away = True
    with pytest.raises(StorageError):
        await one.region.purge(DIGEST)


async def test_who_has_it_is_said(one: Fixture) -> None:
    """And said when it has it no more."""
    await one.region.stored(DIGEST)
    assert await one.there.of(DIGEST) == [HERE]
    await one.region.lost(DIGEST)
    assert await one.there.of(DIGEST) == []


@pytest.mark.parametrize(("least", "given"), [(200_000, True), (200_001, False)])
async def test_an_address_of_what_is_large_enough(one: Fixture, least: int, given: bool) -> None:
    """A small blob is better given from here than by another connection."""
    one.objects.blobs[DIGEST] = BLOB
    assert (await one.region.address(DIGEST, least) is not None) is given


async def test_no_address(one: Fixture) -> None:
    """Of what is not there, and where the store fails."""
    assert await one.region.address(DIGEST, 0) is None
    one.objects.blobs[DIGEST] = BLOB
    one.objects.faults["address"] = failing()
    assert await one.region.address(DIGEST, 0) is None
