"""Readers of blobs on disk: when one is opened without a thread, what they keep from being removed, what they use."""

import asyncio
import fcntl
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from proxy.oci.digest import Digest
from proxy.storage.base import NoRoom, User
from proxy.storage.directory import CacheDirectory, open_directory
from proxy.storage.disk import DiskBlobs
from proxy.storage.index import Use
from proxy.storage.uses import Uses
from tests.conformance.test_blob_stores import add
from tests.fakes.clock import ManualClock

USER, OTHER = User("docker.io", "library/app", "c"), User("docker.io", "library/base", "c")


@pytest.fixture
async def directory(tmp_path: Path) -> AsyncIterator[CacheDirectory]:
    opened = await asyncio.to_thread(open_directory, tmp_path / "cache")
    yield opened
    opened.close()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def store(directory: CacheDirectory, clock: ManualClock) -> AsyncIterator[DiskBlobs]:
    opened = DiskBlobs(directory, 10, 0, clock=clock)
    await opened.start()
    yield opened
    await opened.close()


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done in threads."""
    found: list[str] = []
    to_thread = asyncio.to_thread

    async def counting(job: Any, *arguments: Any) -> Any:
        found.append(job.__name__)
        return await to_thread(job, *arguments)

    monkeypatch.setattr(asyncio, "to_thread", counting)
    return found


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Use]:
    """Every use that is noted."""
    found: list[Use] = []
    add = Uses.add

    def adds(uses: Uses, use: Use, due: bool) -> None:
        found.append(use)
        add(uses, use, due)

    monkeypatch.setattr(Uses, "add", adds)
    return found


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def place(directory: CacheDirectory, digest: Digest) -> Path:
    return directory.blobs / digest.algorithm / digest.hex[:2] / digest.hex


async def read(store: DiskBlobs, digest: Digest, user: User | None = None) -> bytes | None:
    blob = await store.open(digest, user)
    if blob is None:
        return None
    try:
        return os.pread(blob.file.fileno(), blob.size + 1, 0)
    finally:
        blob.close()


# Threads.


async def test_what_was_opened_a_moment_ago_needs_no_thread(
    store: DiskBlobs, clock: ManualClock, threads: list[str]
) -> None:
    """For five seconds from the first time on; then it may have left the memory of the system, and is waited for."""
    digest = await add(store, b"hello")
    threads.clear()
    for _ in range(10):
        assert await read(store, digest) == b"hello"
    assert threads == ["_open_blob"]
    clock.advance(4.9)
    assert await read(store, digest) == b"hello"
    assert threads == ["_open_blob"]
    clock.advance(0.2)
    assert await read(store, digest) == b"hello"
    assert threads == ["_open_blob"] * 2


async def test_a_clock_that_is_set_back(store: DiskBlobs, clock: ManualClock, threads: list[str]) -> None:
    """Nothing is at hand by a time that is yet to come."""
    digest = await add(store, b"hello")
    await read(store, digest)
    threads.clear()
    clock.advance(-1)
    assert await read(store, digest) == b"hello"
    assert threads == ["_open_blob"]


async def test_the_loop_does_not_wait_for_a_lock(
    store: DiskBlobs, directory: CacheDirectory, threads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody has the file locked, to see whether it may go: that is waited for in a thread, and the blob is given."""
    digest = await add(store, b"hello")
    await read(store, digest)
    threads.clear()
    descriptor = os.open(place(directory, digest), os.O_RDONLY)
    flock = fcntl.flock
    flock(descriptor, fcntl.LOCK_EX)

    def never_in_the_loop(file: int, how: int) -> None:
        assert how & fcntl.LOCK_NB or threading.current_thread() is not threading.main_thread()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", never_in_the_loop)
    opening = asyncio.create_task(read(store, digest))
    async with asyncio.timeout(10):
        while not threads and not opening.done():
            await asyncio.sleep(0)
    assert not opening.done()
    os.close(descriptor)
    assert await opening == b"hello"
    assert threads == ["_open_blob"]


@pytest.mark.parametrize("what", ["gone", "truncated"])
async def test_what_happened_to_a_file_at_hand(store: DiskBlobs, directory: CacheDirectory, what: str) -> None:
    """It is noticed as ever: there is no such blob, and it is not counted any more."""
    digest = await add(store, b"hello")
    before = descriptors()
    await read(store, digest)
    file = place(directory, digest)
    file.unlink()
    if what == "truncated":
        file.write_bytes(b"hell")
    assert await read(store, digest) is None
    assert not store.holds(digest)
    assert (await store.usage()).bytes == 0
    assert descriptors() == before


# What they keep.


async def test_every_reader_closes_its_own_file(store: DiskBlobs) -> None:
    """None is left open when all have left, in whatever order, and those who are there go on reading."""
    digest = await add(store, b"hello")
    before = descriptors()
    readers = [await store.open(digest) for _ in range(10)]
    readers += await asyncio.gather(*(store.open(digest) for _ in range(10)))
    last = readers[7]
    assert last is not None
    for one in readers[:7] + readers[8:]:
        assert one is not None
        one.close()
        one.close()
        assert os.pread(last.file.fileno(), 10, 0) == b"hello"
    assert descriptors() == before + 1
    last.close()
    assert descriptors() == before


async def test_a_blob_with_any_reader_is_not_removed(store: DiskBlobs, directory: CacheDirectory) -> None:
    """The first one's leaving changes nothing for those who came later: neither removal nor eviction takes it."""
    other = DiskBlobs(directory, 10, 0)
    await other.start(recover=False)
    digest = await add(store, b"hello")
    first, second = await store.open(digest), await store.open(digest)
    assert first is not None
    assert second is not None
    first.close()
    assert not await store.remove(digest, "age")
    assert not await other.remove(digest, "age")
    with pytest.raises(NoRoom):
        await other.begin(Digest.of(b"x" * 10), 10)
    third = await store.open(digest)
    assert third is not None
    second.close()
    assert not await store.remove(digest, "age")
    third.close()
    assert await store.remove(digest, "age")
    assert await store.open(digest) is None
    await other.close()


async def test_what_replaces_a_blob_that_is_read(store: DiskBlobs, directory: CacheDirectory) -> None:
    """Who reads the old file goes on; who comes now has the new one."""
    digest = await add(store, b"hello")
    old = await store.open(digest)
    assert old is not None
    await add(store, b"hello")
    new = await store.open(digest)
    assert new is not None
    assert os.fstat(new.file.fileno()).st_ino == place(directory, digest).stat().st_ino
    assert os.fstat(old.file.fileno()).st_ino != os.fstat(new.file.fileno()).st_ino
    for one in (old, new):
        assert os.pread(one.file.fileno(), 10, 0) == b"hello"
        one.close()


# What they use.


@pytest.mark.parametrize("how", ["opened", "used"])
async def test_many_uses_are_one(store: DiskBlobs, clock: ManualClock, told: list[Use], how: str) -> None:
    """Within a second, by the same user; another user, and the next second, are told."""
    digest = await add(store, b"hello")

    async def use(user: User) -> None:
        if how == "used":
            store.used(digest, user)
        else:
            assert await read(store, digest, user) == b"hello"

    for second in range(1, 4):
        for _ in range(20):
            await use(USER)
        assert [(one.user, one.at) for one in told] == [(USER, clock.now - ago) for ago in range(second - 1, -1, -1)]
        clock.advance(1)
    told.clear()
    for user in (USER, OTHER, OTHER):
        await use(user)
    assert [one.user for one in told] == [USER, OTHER]


async def test_a_last_use_is_written_to_the_file_once_a_minute(
    store: DiskBlobs, directory: CacheDirectory, clock: ManualClock, threads: list[str]
) -> None:
    """By whoever opens it then, in a thread, whatever is at hand."""
    digest = await add(store, b"hello")
    file, stored = place(directory, digest), clock.now
    for _ in range(15):
        clock.advance(4)
        await read(store, digest)
    assert file.stat().st_mtime == stored
    threads.clear()
    clock.advance(0.5)
    await read(store, digest)
    assert (file.stat().st_mtime, threads) == (clock.now, ["_open_blob"])
