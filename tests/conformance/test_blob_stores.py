"""What every BlobStore does."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, Protocol

import pytest

from proxy.oci.digest import Digest
from proxy.storage.base import BlobStore, NoRoom, PartialBlob, Usage, User
from proxy.storage.directory import open_directory
from proxy.storage.disk import DiskBlobs
from proxy.storage.eviction import ANY, Policy
from proxy.storage.fillmap import FillState
from proxy.telemetry.events import BlobEvicted, Event
from tests.conformance.memory import MemoryBlobs, Shelf


class Start(Protocol):
    """Opens a store, also a further one on the same shelf: as after a restart, or as another process. Bytes."""

    async def __call__(self, max_size: int = 1000, min_free: int = 0, policy: Policy = ANY) -> BlobStore: ...


class Kind:
    """One implementation; `told` is what its stores told, `now` their time."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make
        self._open: list[Any] = []
        self.told: list[Event] = []
        self.now = 0.0

    def clock(self) -> float:
        """Every look at it is a little later than the one before."""
        self.now += 0.001
        return self.now

    async def start(self, max_size: int = 1000, min_free: int = 0, policy: Policy = ANY) -> BlobStore:
        store: Any = self._make(max_size, min_free, self.told.append, policy=policy, clock=self.clock)
        await store.start()
        self._open.append(store)
        ready: BlobStore = store
        return ready

    async def close(self) -> None:
        for store in self._open:
            await store.close()

    def forget(self) -> None:
        """Those that were closed are not closed again."""
        self._open.clear()

    @property
    def evicted(self) -> list[str]:
        return [event.reason for event in self.told if isinstance(event, BlobEvicted)]


@pytest.fixture(params=["disk", "memory"])
async def kind(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Kind]:
    if request.param == "memory":
        yield Kind(partial(MemoryBlobs, Shelf()))
        return
    directory = await asyncio.to_thread(open_directory, tmp_path / "cache")
    kind = Kind(partial(DiskBlobs, directory))
    yield kind
    await kind.close()
    directory.close()


@pytest.fixture
def start(kind: Kind) -> Start:
    return kind.start


def content(seed: int, size: int) -> bytes:
    return (seed.to_bytes(4, "big") * (size // 4 + 1))[:size]


def read(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()


async def write(partial: PartialBlob, offset: int, data: bytes) -> None:
    await asyncio.to_thread(partial.write, offset, data)


async def add(store: BlobStore, data: bytes, user: User | None = None) -> Digest:
    """Store `data` as a fill does: begin, write, publish, close."""
    digest = Digest.of(data)
    fill = await store.begin(digest, len(data), user)
    await write(fill, 0, data)
    await fill.publish()
    await fill.discard()
    fill.close()
    return digest


async def stored(store: BlobStore, digest: Digest) -> bytes | None:
    blob = await store.open(digest)
    if blob is None:
        return None
    try:
        assert blob.size == len(read(blob.file))
        return read(blob.file)
    finally:
        blob.close()


@pytest.mark.parametrize("size", [0, 1, 999, 1000])
async def test_bytes_come_back(start: Start, size: int) -> None:
    """From nothing to all that fits."""
    store = await start()
    data = content(1, size)
    digest = await add(store, data)
    assert store.holds(digest)
    assert await stored(store, digest) == data
    assert await store.usage() == Usage(size, 1)


async def test_digests_of_both_algorithms(start: Start) -> None:
    """sha512 is as good as sha256, and the same bytes under both are two blobs."""
    store = await start()
    for algorithm in ("sha256", "sha512"):
        digest = Digest.of(b"x", algorithm)
        fill = await store.begin(digest, 1)
        await write(fill, 0, b"x")
        await fill.publish()
        fill.close()
        assert await stored(store, digest) == b"x"
    assert await store.usage() == Usage(2, 2)


async def test_absent_is_none(start: Start) -> None:
    """Never an error, and neither is removing it."""
    store = await start()
    digest = Digest.of(b"missing")
    assert await store.open(digest) is None
    assert not store.holds(digest)
    assert not await store.remove(digest, "age")


async def test_everything_is_there_after_a_restart(start: Start) -> None:
    """Finished blobs, and what was being filled with its map and its room: it can be gone on with."""
    store = await start()
    digests = [await add(store, content(number, 100)) for number in range(3)]
    half = await store.begin(Digest.of(b"half"), 500)
    await write(half, 0, b"ha")
    half.map.record(0, 2)
    half.close()
    store = await start()
    assert [await stored(store, digest) for digest in digests] == [content(number, 100) for number in range(3)]
    assert await store.usage() == Usage(800, 3)
    again = await store.attach(Digest.of(b"half"))
    assert again is not None
    assert (again.size, again.map.arrived, again.file.read(3)) == (500, 2, b"ha\0")
    again.close()


async def test_a_blob_is_invisible_until_it_is_published(start: Start) -> None:
    """Its room is reserved from the beginning; it is read by those who write it only."""
    store = await start()
    digest = Digest.of(b"abcdef")
    fill = await store.begin(digest, 6)
    assert await store.usage() == Usage(6, 0)
    assert read(fill.file) == bytes(6)
    await write(fill, 4, b"ef")
    await write(fill, 0, b"ab")
    assert read(fill.file) == b"ab\0\0ef"
    assert await store.open(digest) is None
    await write(fill, 2, b"cd")
    await fill.publish()
    assert await stored(store, digest) == b"abcdef"
    assert read(fill.file) == b"abcdef"
    await fill.discard()
    fill.close()
    assert await store.usage() == Usage(6, 1)


async def test_discarded_is_gone_and_its_room_is_back(start: Start) -> None:
    """Twice is no error, and it stays open for those who read it; its map tells them."""
    store = await start(max_size=10)
    digest = Digest.of(b"x" * 10)
    fill = await store.begin(digest, 10)
    await write(fill, 0, b"x" * 10)
    await fill.discard()
    await fill.discard()
    assert await store.usage() == Usage(0, 0)
    assert await store.open(digest) is None
    assert await store.attach(digest) is None
    assert fill.map.state is FillState.DROPPED
    assert read(fill.file) == b"x" * 10
    fill.close()
    fill.close()
    again = await store.begin(digest, 10)
    await again.discard()
    again.close()


async def test_no_room(start: Start) -> None:
    """Larger than the cache, or nothing left that may go: NoRoom, and nothing was evicted for it."""
    store = await start(max_size=10)
    digest = await add(store, b"x" * 5)
    for size in (11, 1 << 60):
        with pytest.raises(NoRoom):
            await store.begin(Digest.of(b"big"), size)
    fill = await store.begin(Digest.of(b"five"), 5)
    with pytest.raises(NoRoom):
        await store.begin(Digest.of(b"ten"), 10)
    assert store.holds(digest)
    assert await store.usage() == Usage(10, 1)
    await fill.discard()
    fill.close()


async def test_the_least_recently_used_goes_first(start: Start, kind: Kind) -> None:
    """Opening is use, holding and looking at usage are not; each eviction is told with its reason."""
    store = await start(max_size=40)
    digests = [await add(store, content(number, 10)) for number in range(4)]
    await stored(store, digests[0])
    assert store.holds(digests[1])
    await add(store, content(9, 20))
    assert [store.holds(digest) for digest in digests] == [True, False, False, True]
    assert kind.evicted == ["size", "size"]
    assert await store.usage() == Usage(40, 3)


async def test_a_blob_in_use_is_never_evicted_or_removed(start: Start) -> None:
    """Until the last of its readers has closed it; closing twice counts once."""
    store = await start(max_size=20)
    old, new = await add(store, content(1, 10)), await add(store, content(2, 10))
    first, second = await store.open(old), await store.open(old)
    assert first is not None
    assert second is not None
    await stored(store, new)
    first.close()
    first.close()
    assert not await store.remove(old, "age")
    await add(store, content(3, 10))
    assert (store.holds(old), store.holds(new)) == (True, False)
    assert read(second.file) == content(1, 10)
    second.close()
    assert await store.remove(old, "age")
    assert await store.open(old) is None
    assert await store.usage() == Usage(10, 1)


async def test_min_free_makes_room_too(start: Start, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file system keeps `min_free`, whatever `max_size` says; where eviction cannot help there is no room."""
    free = 1000
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=free))
    store = await start(max_size=10_000, min_free=500)
    digests = [await add(store, content(number, 10)) for number in range(3)]
    free = 510
    await add(store, content(8, 10))
    assert kind.evicted == []
    free = 505
    await add(store, content(9, 10))
    assert [store.holds(digest) for digest in digests] == [False, True, True]
    assert kind.evicted == ["free"]
    free = 100
    with pytest.raises(NoRoom):
        await store.begin(Digest.of(b"x"), 1)
    assert store.holds(digests[1])


async def test_a_start_evicts_down_to_the_limits(start: Start, kind: Kind) -> None:
    """`max_size` may have been lowered; the blobs used longest ago go."""
    store = await start(max_size=100)
    for number in range(10):
        await add(store, content(number, 10))
    store = await start(max_size=35)
    assert await store.usage() == Usage(30, 3)
    assert kind.evicted == ["size"] * 7


async def test_the_same_blob_again_replaces_it(start: Start) -> None:
    """Two fills of one digest may meet: the room is counted once, and who reads the first goes on reading."""
    store = await start(max_size=20)
    data = content(1, 10)
    digest = await add(store, data)
    reader = await store.open(digest)
    assert reader is not None
    await add(store, data)
    assert await store.usage() == Usage(10, 1)
    assert read(reader.file) == data
    reader.close()
    assert await stored(store, digest) == data


async def test_who_begins_at_once_shares_the_room(start: Start) -> None:
    """Room for ten: ten get it, whatever their order, and no byte more than `max_size` is ever promised."""
    store = await start(max_size=100)
    digests = [Digest.of(content(number, 10)) for number in range(25)]
    found = await asyncio.gather(*(store.begin(digest, 10) for digest in digests), return_exceptions=True)
    fills = [fill for fill in found if not isinstance(fill, BaseException)]
    assert len(fills) == 10
    assert all(isinstance(error, NoRoom) for error in found if isinstance(error, BaseException))
    assert await store.usage() == Usage(100, 0)
    await asyncio.gather(*(fill.discard() for fill in fills))
    for fill in fills:
        fill.close()
    assert await store.usage() == Usage(0, 0)


async def test_who_begins_at_once_in_a_full_cache_shares_what_is_evicted(start: Start) -> None:
    """Making room takes time, and meanwhile nobody else is promised the same room."""
    store = await start(max_size=100)
    for number in range(10):
        await add(store, content(number, 10))
    waits = (store.begin(Digest.of(content(100 + number, 20)), 20) for number in range(8))
    found = await asyncio.gather(*waits, return_exceptions=True)
    fills = [fill for fill in found if not isinstance(fill, BaseException)]
    assert len(fills) == 5
    assert await store.usage() == Usage(100, 0)
    await asyncio.gather(*(fill.discard() for fill in fills))
    for fill in fills:
        fill.close()


async def test_readers_writers_and_eviction_at_once(start: Start) -> None:
    """Whatever is opened has the right bytes, and the room adds up in the end."""
    store = await start(max_size=200)

    async def use(number: int) -> None:
        data = content(number % 12, 20)
        digest = Digest.of(data)
        if await stored(store, digest) not in {None, data}:
            raise AssertionError("wrong bytes")
        if not store.claim(digest):
            return
        try:
            await add(store, data)
        except NoRoom:
            return
        finally:
            store.release(digest)
        assert await stored(store, digest) in {None, data}

    await asyncio.gather(*(use(number) for number in range(120)))
    usage = await store.usage()
    assert usage.bytes <= 200
    assert usage.bytes == usage.blobs * 20


async def test_one_at_a_time_has_a_claim(start: Start) -> None:
    """Over all stores on one shelf, and within one; giving it up, and closing, gives it to the next."""
    store, other = await start(), await start()
    digest = Digest.of(b"x")
    assert store.claim(digest)
    assert not store.claim(digest)
    assert not other.claim(digest)
    assert other.claim(Digest.of(b"y"))
    store.release(digest)
    assert other.claim(digest)
    assert not store.claim(digest)
    store.release(digest)
    assert not store.claim(digest)
    other.release(digest)
    other.release(digest)
    assert store.claim(digest)


async def test_what_one_publishes_the_other_opens(start: Start) -> None:
    """Without having heard of it; `holds` is what one knows without looking."""
    store, other = await start(), await start()
    digest = await add(store, b"hello")
    assert await stored(other, digest) == b"hello"
    assert other.holds(digest)
    assert await other.usage() == Usage(5, 1)
    assert await store.remove(digest, "age")
    assert await other.open(digest) is None
    assert not other.holds(digest)


async def test_a_fill_that_another_attaches_to(start: Start) -> None:
    """Bytes, what has arrived and what became of it are seen by all who have it open; the bytes stay good."""
    store, other = await start(), await start()
    digest = Digest.of(b"hello")
    assert await other.attach(digest) is None
    fill = await store.begin(digest, 5)
    attached = await other.attach(digest)
    assert attached is not None
    await write(fill, 0, b"hel")
    fill.map.record(0, 3)
    assert (attached.map.readable(0, 5), attached.file.read(3)) == (3, b"hel")
    attached.map.demand(1, [3])
    assert fill.map.demanded() == [3]
    await write(fill, 3, b"lo")
    fill.map.record(3, 2)
    await fill.publish()
    fill.close()
    assert attached.map.state is FillState.VERIFIED
    assert read(attached.file) == b"hello"
    attached.close()
    assert await other.attach(digest) is None
    assert await stored(other, digest) == b"hello"


async def test_a_fill_that_was_left_behind_is_published_by_another(start: Start) -> None:
    """What the first one fetched is not fetched again."""
    store, other = await start(), await start()
    digest = Digest.of(b"hello")
    fill = await store.begin(digest, 5)
    await write(fill, 0, b"hel")
    fill.map.record(0, 3)
    fill.close()
    attached = await other.attach(digest)
    assert attached is not None
    assert attached.map.gap(0) == (3, 5)
    await write(attached, 3, b"lo")
    await attached.publish()
    attached.close()
    assert await stored(store, digest) == b"hello"
    assert await store.usage() == Usage(5, 1)


async def test_beginning_anew_replaces_what_was_left_behind(start: Start) -> None:
    """Its room is counted once; who still has the old one open sees that it is dropped."""
    store, other = await start(max_size=10), await start(max_size=10)
    digest = Digest.of(b"x")
    old = await store.begin(digest, 10)
    await write(old, 0, b"old")
    new = await other.begin(digest, 7)
    assert old.map.state is FillState.DROPPED
    assert (read(old.file)[:3], read(new.file)) == (b"old", bytes(7))
    assert await store.usage() == Usage(7, 0)
    await old.discard()
    attached = await store.attach(digest)
    assert attached is not None
    assert attached.size == 7
    for fill in (old, new, attached):
        fill.close()


async def test_what_was_left_behind_goes_before_any_blob(start: Start, kind: Kind) -> None:
    """But neither what somebody has claimed nor what somebody has open."""
    store = await start(max_size=40)
    blob = await add(store, content(1, 10))
    claimed, held, left = Digest.of(b"claimed"), Digest.of(b"open"), Digest.of(b"left")
    assert store.claim(claimed)
    (await store.begin(claimed, 10)).close()
    reading = await store.begin(held, 10)
    (await store.begin(left, 10)).close()
    fill = await store.begin(Digest.of(b"new"), 10)
    assert await store.attach(left) is None
    assert store.holds(blob)
    assert kind.evicted == ["size"]
    with pytest.raises(NoRoom):
        await store.begin(Digest.of(b"large"), 20)
    assert store.holds(blob)
    for each in (reading, fill):
        await each.discard()
        each.close()


async def test_who_reads_keeps_a_blob_from_all(start: Start) -> None:
    """Eviction by another process spares it too."""
    store, other = await start(max_size=20), await start(max_size=20)
    old, new = await add(store, content(1, 10)), await add(store, content(2, 10))
    reader = await store.open(old)
    assert reader is not None
    await add(other, content(3, 10))
    assert await stored(store, old) == content(1, 10)
    assert await stored(store, new) is None
    assert not await other.remove(old, "age")
    reader.close()
    assert await other.remove(old, "age")


async def test_what_a_kept_repository_uses_stays(start: Start) -> None:
    """Whoever stored it first; where all of the rest is kept there is no room."""
    policy = Policy(keep=("docker.io/library/base*",))
    base, app = User("docker.io", "library/base-image", "c"), User("docker.io", "library/app", "c")
    store = await start(max_size=30, policy=policy)
    kept, taken = await add(store, content(1, 10), base), await add(store, content(2, 10), app)
    other = await add(store, content(3, 10), app)
    for user in (base, app):
        blob = await store.open(taken, user)
        assert blob is not None
        blob.close()
    blob = await store.open(other, app)
    assert blob is not None
    blob.close()
    last = await add(store, content(4, 10), base)
    assert [store.holds(digest) for digest in (kept, taken, other, last)] == [True, True, False, True]
    with pytest.raises(NoRoom):
        await store.begin(Digest.of(b"x"), 1)


async def test_blobs_used_once_go_before_blobs_used_again(start: Start, kind: Kind) -> None:
    """Used again: a minute or more after they were stored. Pulling everything once flushes nothing."""
    store = await start(max_size=100)
    again = await add(store, content(1, 10))
    kind.now += 61
    assert await stored(store, again) is not None
    kind.now += 1000
    for number in range(2, 30):
        await add(store, content(number, 10))
    assert store.holds(again)


async def test_used_is_as_good_as_opened(start: Start, kind: Kind) -> None:
    """Who was given a blob from memory has used it: for eviction that is the same, and no file is needed for it."""
    store = await start(max_size=40)
    user = User("docker.io", "library/app", "c")
    digests = [await add(store, content(number, 10)) for number in range(4)]
    store.used(digests[0], user)
    store.used(digests[2], user)
    await add(store, content(9, 20))
    assert [store.holds(digest) for digest in digests] == [True, False, True, False]
    assert kind.evicted == ["size", "size"]


async def test_the_order_of_uses(start: Start, kind: Kind) -> None:
    """The last one counts, to the second, however often a blob was used before, and whether it was opened or not."""
    store = await start(max_size=30)
    user = User("docker.io", "library/app", "c")
    first, second, third = [await add(store, content(number, 10)) for number in range(3)]
    for _ in range(5):
        store.used(first, user)
    kind.now += 2
    await stored(store, second)
    kind.now += 2
    store.used(third, user)
    kind.now += 2
    store.used(second, user)
    await add(store, content(8, 10))
    assert [store.holds(digest) for digest in (first, second, third)] == [False, True, True]
    await add(store, content(9, 10))
    assert [store.holds(digest) for digest in (second, third)] == [True, False]


async def test_used_by_whom(start: Start, kind: Kind) -> None:
    """It is read by that user: a blob that a kept repository is given from memory is kept."""
    policy = Policy(keep=("docker.io/library/base*",))
    base, app = User("docker.io", "library/base-image", "c"), User("docker.io", "library/app", "c")
    store = await start(max_size=20, policy=policy)
    old, new = await add(store, content(1, 10), app), await add(store, content(2, 10), app)
    store.used(old, base)
    await stored(store, new)
    await add(store, content(3, 10), app)
    assert [store.holds(digest) for digest in (old, new)] == [True, False]


async def test_what_is_not_there_cannot_be_used(start: Start) -> None:
    """Nor does that make it be there, or be counted."""
    store = await start()
    store.used(Digest.of(b"missing"), User("docker.io", "library/app", "c"))
    assert not store.holds(Digest.of(b"missing"))
    assert await store.open(Digest.of(b"missing")) is None
    assert await store.usage() == Usage(0, 0)


async def test_used_survives_the_end(start: Start, kind: Kind) -> None:
    """What was used last stays when another store, opened later, has to make room."""
    store = await start(max_size=20)
    old, new = await add(store, content(1, 10)), await add(store, content(2, 10))
    store.used(old, User("docker.io", "library/app", "c"))
    await kind.close()
    kind.forget()
    store = await start(max_size=10)
    assert [store.holds(digest) for digest in (old, new)] == [True, False]
