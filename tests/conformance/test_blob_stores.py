"""What every BlobStore does."""

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, Protocol

import pytest

from proxy.oci.digest import Digest
from proxy.storage.base import BlobStore, NoRoom, PartialBlob, Usage
from proxy.storage.directory import open_directory
from proxy.storage.disk import DiskBlobs
from proxy.telemetry.events import BlobEvicted, Event
from tests.conformance.memory import MemoryBlobs


class Start(Protocol):
    """Opens the store, also again, as after a restart; sizes in bytes."""

    async def __call__(self, max_size: int = 1000, min_free: int = 0) -> BlobStore: ...


class Kind:
    """One implementation; `told` is what its stores told."""

    def __init__(self, make: Callable[[int, int], Any], told: list[Event]) -> None:
        self._make = make
        self.told = told

    async def start(self, max_size: int = 1000, min_free: int = 0) -> BlobStore:
        store: Any = self._make(max_size, min_free)
        await store.start()
        ready: BlobStore = store
        return ready

    @property
    def evicted(self) -> list[str]:
        return [event.reason for event in self.told if isinstance(event, BlobEvicted)]


@pytest.fixture(params=["disk", "memory"])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kind]:
    told: list[Event] = []
    shelf: dict[Digest, bytes] = {}
    if request.param == "memory":
        yield Kind(lambda max_size, min_free: MemoryBlobs(shelf, max_size, min_free, told.append), told)
        return
    directory = open_directory(tmp_path / "cache")
    yield Kind(lambda max_size, min_free: DiskBlobs(directory, max_size, min_free, told.append), told)
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


async def add(store: BlobStore, data: bytes) -> Digest:
    """Store `data` as a fill does: begin, write, publish, discard."""
    digest = Digest.of(data)
    partial = await store.begin(digest, len(data))
    await write(partial, 0, data)
    await partial.publish()
    await partial.discard()
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
    assert store.usage() == Usage(size, 1)


async def test_digests_of_both_algorithms(start: Start) -> None:
    """sha512 is as good as sha256, and the same bytes under both are two blobs."""
    store = await start()
    for algorithm in ("sha256", "sha512"):
        digest = Digest.of(b"x", algorithm)
        partial = await store.begin(digest, 1)
        await write(partial, 0, b"x")
        await partial.publish()
        await partial.discard()
        assert await stored(store, digest) == b"x"
    assert store.usage() == Usage(2, 2)


async def test_absent_is_none(start: Start) -> None:
    """Never an error, and neither is removing it."""
    store = await start()
    digest = Digest.of(b"missing")
    assert await store.open(digest) is None
    assert not store.holds(digest)
    assert not await store.remove(digest, "age")


async def test_everything_is_there_after_a_restart(start: Start) -> None:
    """Finished blobs, and no others: what was being written is gone, its room too."""
    store = await start()
    digests = [await add(store, content(number, 100)) for number in range(3)]
    half = await store.begin(Digest.of(b"half"), 500)
    half.file.close()  # as the end of a process does
    store = await start()
    assert [await stored(store, digest) for digest in digests] == [content(number, 100) for number in range(3)]
    assert store.usage() == Usage(300, 3)


async def test_a_blob_is_invisible_until_it_is_published(start: Start) -> None:
    """Its room is reserved from the beginning; it is read by those who write it only."""
    store = await start()
    digest = Digest.of(b"abcdef")
    partial = await store.begin(digest, 6)
    assert store.usage() == Usage(6, 0)
    assert read(partial.file) == bytes(6)
    await write(partial, 4, b"ef")
    await write(partial, 0, b"ab")
    assert read(partial.file) == b"ab\0\0ef"
    assert await store.open(digest) is None
    await write(partial, 2, b"cd")
    await partial.publish()
    assert await stored(store, digest) == b"abcdef"
    await partial.discard()
    assert store.usage() == Usage(6, 1)


async def test_discarded_is_gone_and_its_room_is_back(start: Start) -> None:
    """Twice is no error."""
    store = await start(max_size=10)
    digest = Digest.of(b"x" * 10)
    partial = await store.begin(digest, 10)
    await write(partial, 0, b"x" * 10)
    await partial.discard()
    await partial.discard()
    assert store.usage() == Usage(0, 0)
    assert await store.open(digest) is None
    await (await store.begin(digest, 10)).discard()


async def test_no_room(start: Start) -> None:
    """Larger than the cache, or nothing left that may go: NoRoom, and nothing was evicted for it."""
    store = await start(max_size=10)
    digest = await add(store, b"x" * 5)
    for size in (11, 1 << 60):
        with pytest.raises(NoRoom):
            await store.begin(Digest.of(b"big"), size)
    partial = await store.begin(Digest.of(b"five"), 5)
    with pytest.raises(NoRoom):
        await store.begin(Digest.of(b"ten"), 10)
    assert store.holds(digest)
    assert store.usage() == Usage(10, 1)
    await partial.discard()


async def test_the_least_recently_used_goes_first(start: Start, kind: Kind) -> None:
    """Opening is use, holding and looking at usage are not; each eviction is told with its reason."""
    store = await start(max_size=40)
    digests = [await add(store, content(number, 10)) for number in range(4)]
    await stored(store, digests[0])
    assert store.holds(digests[1])
    await add(store, content(9, 20))
    assert [store.holds(digest) for digest in digests] == [True, False, False, True]
    assert kind.evicted == ["size", "size"]
    assert store.usage() == Usage(40, 3)


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
    assert store.usage() == Usage(10, 1)


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
    assert store.usage() == Usage(30, 3)
    assert kind.evicted == ["size"] * 7


async def test_the_same_blob_again_replaces_it(start: Start) -> None:
    """Two fills of one digest may meet: the room is counted once, and who reads the first goes on reading."""
    store = await start(max_size=20)
    data = content(1, 10)
    digest = await add(store, data)
    reader = await store.open(digest)
    assert reader is not None
    await add(store, data)
    assert store.usage() == Usage(10, 1)
    assert read(reader.file) == data
    reader.close()
    assert await stored(store, digest) == data


async def test_who_begins_at_once_shares_the_room(start: Start) -> None:
    """Room for ten: ten get it, whatever their order, and no byte more than `max_size` is ever promised."""
    store = await start(max_size=100)
    digests = [Digest.of(content(number, 10)) for number in range(25)]
    found = await asyncio.gather(*(store.begin(digest, 10) for digest in digests), return_exceptions=True)
    partials = [partial for partial in found if not isinstance(partial, BaseException)]
    assert len(partials) == 10
    assert all(isinstance(error, NoRoom) for error in found if isinstance(error, BaseException))
    assert store.usage() == Usage(100, 0)
    await asyncio.gather(*(partial.discard() for partial in partials))
    assert store.usage() == Usage(0, 0)


async def test_who_begins_at_once_in_a_full_cache_shares_what_is_evicted(start: Start) -> None:
    """Making room takes time, and meanwhile nobody else is promised the same room."""
    store = await start(max_size=100)
    for number in range(10):
        await add(store, content(number, 10))
    waits = (store.begin(Digest.of(content(100 + number, 20)), 20) for number in range(8))
    found = await asyncio.gather(*waits, return_exceptions=True)
    partials = [partial for partial in found if not isinstance(partial, BaseException)]
    assert len(partials) == 5
    assert store.usage() == Usage(100, 0)
    await asyncio.gather(*(partial.discard() for partial in partials))


async def test_readers_writers_and_eviction_at_once(start: Start) -> None:
    """Whatever is opened has the right bytes, and the room adds up in the end."""
    store = await start(max_size=200)

    async def use(number: int) -> None:
        data = content(number % 12, 20)
        digest = Digest.of(data)
        if await stored(store, digest) not in {None, data}:
            raise AssertionError("wrong bytes")
        try:
            await add(store, data)
        except NoRoom:
            return
        assert await stored(store, digest) in {None, data}

    await asyncio.gather(*(use(number) for number in range(120)))
    usage = store.usage()
    assert usage.bytes <= 200
    assert usage.bytes == usage.blobs * 20
