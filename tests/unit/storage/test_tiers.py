"""Blobs in two tiers: what is published gets to the object store, and the local store is what counts here."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from proxy.oci.digest import Digest
from proxy.storage.base import StorageError
from proxy.storage.directory import CacheDirectory, open_directory
from proxy.storage.disk import DiskBlobs
from proxy.storage.tiers import TieredBlobs
from proxy.telemetry.events import Event, ObjectUploaded
from tests.conformance.test_blob_stores import add, content, stored
from tests.fakes.clock import ManualClock
from tests.fakes.region import FakeObjects, failing

FIRST, SECOND, THIRD = content(1, 400), content(2, 400), content(3, 400)
MAX_SIZE = 1000

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither between blobs nor before another try is there a pause."""
    monkeypatch.setattr("proxy.storage.tiers._PACE", 0)
    monkeypatch.setattr("proxy.storage.tiers._AGAIN", 0)


@pytest.fixture
async def directory(tmp_path: Path) -> AsyncIterator[CacheDirectory]:
    opened = await asyncio.to_thread(open_directory, tmp_path / "cache")
    yield opened
    opened.close()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def local(directory: CacheDirectory, clock: ManualClock) -> AsyncIterator[DiskBlobs]:
    store = DiskBlobs(directory, MAX_SIZE, 0, clock=clock)
    await store.start()
    yield store
    await store.close()


@pytest.fixture
def objects() -> FakeObjects:
    return FakeObjects()


@pytest.fixture
def told() -> list[Event]:
    return []


@pytest.fixture
async def tiers(local: DiskBlobs, objects: FakeObjects, told: list[Event]) -> AsyncIterator[TieredBlobs]:
    """Started with nothing in it, by a process that does not look at what is there."""
    store = TieredBlobs(local, objects, told.append, first=False)
    await store.start()
    yield store
    await store.close()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for `condition`, which uploads bring about."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


def outcomes(told: list[Event]) -> list[str]:
    return [event.outcome for event in told if isinstance(event, ObjectUploaded)]


def damage(directory: CacheDirectory, digest: Digest) -> None:
    """Another byte in its file, of the same length."""
    file = directory.blobs / digest.algorithm / digest.hex[:2] / digest.hex
    file.chmod(0o600)
    file.write_bytes(b"!" + file.read_bytes()[1:])


async def test_what_is_published_is_uploaded(tiers: TieredBlobs, objects: FakeObjects, told: list[Event]) -> None:
    """Once, whole, and nobody waits for it."""
    gate = objects.gates["store"] = asyncio.Event()
    digest = await add(tiers, FIRST)
    await until(lambda: objects.asked("store") == 1)
    assert await stored(tiers, digest) == FIRST
    assert objects.blobs == {}
    gate.set()
    await until(lambda: outcomes(told) == ["stored"])
    assert objects.blobs == {digest: FIRST}
    assert tiers.pending == 0
    assert objects.calls == [("store", digest)]


async def test_what_is_not_published_is_not_uploaded(tiers: TieredBlobs, objects: FakeObjects) -> None:
    """A fill that is left, or gone on with by whoever attaches to it, is uploaded when it is published there."""
    digest = Digest.of(FIRST)
    assert tiers.claim(digest)
    fill = await tiers.begin(digest, len(FIRST))
    await asyncio.to_thread(fill.write, 0, FIRST[:100])
    fill.map.record(0, 100)
    fill.close()
    tiers.release(digest)
    assert await tiers.attach(Digest.of(SECOND)) is None
    again = await tiers.attach(digest)
    assert again is not None
    assert (again.size, again.map.arrived) == (len(FIRST), 100)
    assert tiers.pending == 0
    assert tiers.claim(digest)
    await asyncio.to_thread(again.write, 0, FIRST)
    await again.publish()
    again.close()
    await until(lambda: digest in objects.blobs)
    assert objects.asked("store") == 1


async def test_what_is_there_already(tiers: TieredBlobs, objects: FakeObjects, told: list[Event]) -> None:
    """Another replica was faster: that is no failure."""
    objects.blobs[Digest.of(FIRST)] = FIRST
    await add(tiers, FIRST)
    await until(lambda: outcomes(told) == ["there"])


async def test_what_could_not_be_uploaded_is_tried_again(
    tiers: TieredBlobs, objects: FakeObjects, told: list[Event]
) -> None:
    """For as long as it is here; others that wait have their turn meanwhile."""
    objects.faults["store"] = failing("5xx")
    first = await add(tiers, FIRST)
    second = await add(tiers, SECOND)
    await until(lambda: min(objects.calls.count(("store", one)) for one in (first, second)) > 2)
    assert set(outcomes(told)) == {"failed"}
    objects.faults.clear()
    await until(lambda: len(objects.blobs) == 2)
    await until(lambda: outcomes(told).count("stored") == 2)
    before = len(objects.calls)
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(objects.calls) == before


async def test_what_was_not_tried_is_not_counted(tiers: TieredBlobs, objects: FakeObjects, told: list[Event]) -> None:
    """A store that is left alone for a while has not failed anybody meanwhile."""
    objects.faults["store"] = failing("open")
    await add(tiers, FIRST)
    await until(lambda: objects.asked("store") > 3)
    assert outcomes(told) == []
    objects.faults.clear()
    await until(lambda: outcomes(told) == ["stored"])


async def test_a_damaged_file(
    tiers: TieredBlobs, objects: FakeObjects, directory: CacheDirectory, told: list[Event]
) -> None:
    """Its bytes get nowhere, and it is fetched again: it goes out of the local store."""
    gate = objects.gates["store"] = asyncio.Event()
    digest = await add(tiers, FIRST)
    await until(lambda: objects.asked("store") == 1)
    await asyncio.to_thread(damage, directory, digest)
    gate.set()
    await until(lambda: outcomes(told) == ["failed"])
    await until(lambda: not tiers.holds(digest))
    assert objects.blobs == {}
    assert await stored(tiers, digest) is None


async def test_a_purge_is_of_both(tiers: TieredBlobs, objects: FakeObjects) -> None:
    """Gives whether one of them had it."""
    digest = await add(tiers, FIRST)
    await until(lambda: digest in objects.blobs)
    assert await tiers.remove(digest, "purge")
    assert objects.blobs == {}
    assert await stored(tiers, digest) is None
    assert not await tiers.remove(digest, "purge")
    objects.blobs[digest] = FIRST
    assert await tiers.remove(digest, "purge")


async def test_what_is_purged_is_not_uploaded(tiers: TieredBlobs, objects: FakeObjects) -> None:
    """What waited for that does not wait any more."""
    objects.faults["store"] = failing("open")
    digest = await add(tiers, FIRST)
    await until(lambda: objects.asked("store") > 0)
    assert await tiers.remove(digest, "purge")
    objects.faults.clear()
    await until(lambda: tiers.pending == 0)
    assert await add(tiers, SECOND) == Digest.of(SECOND)
    await until(lambda: bool(objects.blobs))
    assert list(objects.blobs) == [Digest.of(SECOND)]


async def test_a_purge_that_the_object_store_cannot_do(tiers: TieredBlobs, objects: FakeObjects) -> None:
    """Whoever asked is told; here it is gone."""
    digest = await add(tiers, FIRST)
    await until(lambda: digest in objects.blobs)
    objects.faults["remove"] = failing()
    with pytest.raises(StorageError):
        await tiers.remove(digest, "purge")
    assert await stored(tiers, digest) is None


async def test_an_eviction_takes_nothing_from_the_object_store(tiers: TieredBlobs, objects: FakeObjects) -> None:
    """Nor does whatever else removes it here."""
    digests = [await add(tiers, one) for one in (FIRST, SECOND)]
    await until(lambda: len(objects.blobs) == 2)
    digests.append(await add(tiers, THIRD))
    await until(lambda: len(objects.blobs) == 3)
    assert not tiers.holds(digests[0])
    assert (await tiers.usage()).blobs == len(await tiers.listed("", 10)) == 2
    assert await tiers.remove(digests[1], "digest")
    assert len(objects.blobs) == 3
    assert objects.asked("remove") == 0


async def test_what_was_evicted_before(tiers: TieredBlobs, objects: FakeObjects, told: list[Event]) -> None:
    """There is nothing to upload, and that is no failure."""
    tiers.published(Digest.of(FIRST))
    await until(lambda: tiers.pending == 0)
    await add(tiers, SECOND)
    await until(lambda: outcomes(told) == ["stored"])
    assert objects.calls == [("store", Digest.of(SECOND))]


async def test_after_a_restart_everything_is_looked_at(
    local: DiskBlobs, objects: FakeObjects, told: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one process of the replica, page by page: what an earlier run did not upload gets there, once."""
    monkeypatch.setattr("proxy.storage.tiers._PAGE", 1)
    first, second = await add(local, FIRST), await add(local, SECOND)
    objects.blobs[first] = FIRST
    other, one = (TieredBlobs(local, objects, told.append, first) for first in (False, True))
    await other.start()
    await one.start()
    await until(lambda: len(told) == 2)
    assert sorted(outcomes(told)) == ["stored", "there"]
    assert objects.blobs == {first: FIRST, second: SECOND}
    await one.close()
    await other.close()
    assert objects.asked("store") == 2


async def test_after_a_restart_the_store_fails(local: DiskBlobs, objects: FakeObjects, told: list[Event]) -> None:
    """Each is tried again with those that are published."""
    objects.faults["store"] = failing()
    for one in (FIRST, SECOND):
        await add(local, one)
    tiers = TieredBlobs(local, objects, told.append)
    await tiers.start()
    await until(lambda: objects.asked("store") > 4)
    objects.faults.clear()
    await until(lambda: len(objects.blobs) == 2)
    await tiers.close()


async def test_too_many_wait(
    tiers: TieredBlobs, told: list[Event], objects: FakeObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory does not grow with an outage: the rest is looked at after the next start, which is told."""
    monkeypatch.setattr("proxy.storage.tiers._MOST_WAITING", 1)
    for one in (FIRST, SECOND):
        tiers.published(Digest.of(one))
    assert tiers.pending == 1
    assert outcomes(told) == ["dropped"]
    await until(lambda: tiers.pending == 0)


async def test_it_ends_in_the_middle_of_an_upload(local: DiskBlobs, objects: FakeObjects, told: list[Event]) -> None:
    """Its tasks and its files are closed with it."""
    before = asyncio.all_tasks(), descriptors()
    objects.gates["store"] = asyncio.Event()
    tiers = TieredBlobs(local, objects, told.append)
    await tiers.start()
    await add(tiers, FIRST)
    await until(lambda: objects.asked("store") > 0)
    await tiers.close()
    assert asyncio.all_tasks() == before[0]
    assert descriptors() == before[1]
    assert objects.blobs == {}
    assert not objects.closed


def descriptors() -> int:
    """Those of blobs that this process has open."""
    links = (os.readlink(f"/proc/self/fd/{one}") for one in os.listdir("/proc/self/fd") if _exists(one))
    return sum("/blobs/" in link for link in links)


def _exists(descriptor: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{descriptor}")


async def peeked(local: DiskBlobs, digest: Digest) -> BinaryIO:
    file = await local.peek(digest)
    assert file is not None
    return file


async def test_a_peek_is_no_use(local: DiskBlobs, clock: ManualClock) -> None:
    """What is uploaded is evicted in its turn: opened it would have been the last one."""
    first = await add(local, FIRST)
    clock.advance(100)
    second = await add(local, SECOND)
    clock.advance(100)
    used = [one.used for one in await local.listed("", 10)]
    (await peeked(local, first)).close()
    assert [one.used for one in await local.listed("", 10)] == used
    await add(local, THIRD)
    assert not local.holds(first)
    assert local.holds(second)


async def test_a_peek_keeps_nothing_from_eviction(local: DiskBlobs, clock: ManualClock) -> None:
    """An upload that takes long costs no room: its bytes stay readable, and the blob is gone."""
    first = await add(local, FIRST)
    clock.advance(100)
    await add(local, SECOND)
    file = await peeked(local, first)
    await add(local, THIRD)
    assert not local.holds(first)
    assert await asyncio.to_thread(file.read) == FIRST
    file.close()


async def test_a_peek_at_nothing(local: DiskBlobs, directory: CacheDirectory) -> None:
    """None for what is not there; what is no file is no blob."""
    digest = Digest.of(FIRST)
    assert await local.peek(digest) is None
    (directory.blobs / digest.algorithm / digest.hex[:2] / digest.hex).mkdir(parents=True)
    assert await local.peek(digest) is None
