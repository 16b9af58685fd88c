"""Blobs on disk that several processes share, and what a killed one, or a damaged index, leaves behind."""

import asyncio
import fcntl
import os
import signal
import sqlite3
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from proxy.oci.digest import Digest
from proxy.storage import files, room
from proxy.storage.base import NoRoom, StorageError, Usage, User
from proxy.storage.directory import CacheDirectory, open_directory
from proxy.storage.disk import DiskBlobs
from proxy.storage.eviction import Policy
from proxy.storage.fillmap import FillState
from tests.conformance.test_blob_stores import add, content, stored, write
from tests.conformance.test_disk_blobs import STARTED, directory, fills, place, started

__all__ = ["directory"]

ROOT = Path(__file__).parents[2]
DIGEST = Digest.of(b"hello")

WORKER = """
import asyncio, sys
from pathlib import Path
from proxy.oci.digest import Digest
from proxy.storage.directory import open_directory
from proxy.storage.disk import DiskBlobs

async def main():
    store = DiskBlobs(open_directory(Path(sys.argv[1]), lock=False), 1000, 0, worker=1)
    await store.start(recover=False)
    digest = Digest.of(b"hello")
    {body}
    print("ready", flush=True)
    sys.stdin.read()

asyncio.run(main())
"""
FILL = """
    assert store.claim(digest)
    fill = await store.begin(digest, 5)
    fill.write(0, b"hel")
    fill.map.record(0, 3)
    fill.map.demand(1, [4])
"""
READ = """
    blob = await store.open(digest)
    assert blob is not None
"""


async def closed(store: DiskBlobs) -> None:
    STARTED.remove(store)
    await store.close()


@asynccontextmanager
async def worker(directory: CacheDirectory, body: str) -> AsyncIterator[None]:
    """Another process that has done `body`, and is killed in the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WORKER.replace("{body}", body.strip()), str(directory.path), cwd=ROOT,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        yield
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()


async def test_a_claim_ends_with_its_process(directory: CacheDirectory) -> None:
    """Whoever is killed gives it up; it excludes others as long as it lives."""
    store = await started(directory)
    async with worker(directory, FILL):
        assert not store.claim(DIGEST)
    assert store.claim(DIGEST)


async def test_a_killed_process_leaves_a_fill_to_go_on_with(directory: CacheDirectory) -> None:
    """Attached to it while the other lives and after; its bytes and its map are there, and the room is counted."""
    store = await started(directory)
    async with worker(directory, FILL):
        fill = await store.attach(DIGEST)
        assert fill is not None
        assert fill.map.demanded() == [4]
    assert fill.map.state is FillState.FILLING
    fill.close()
    store = await started(directory)
    again = await store.attach(DIGEST)
    assert again is not None
    assert (again.map.gap(0), again.file.read(3)) == ((3, 5), b"hel")
    assert await store.usage() == Usage(5, 0)
    await write(again, 3, b"lo")
    await again.publish()
    again.close()
    assert await stored(store, DIGEST) == b"hello"
    assert fills(directory) == []


async def test_a_reader_in_another_process_keeps_a_blob(directory: CacheDirectory) -> None:
    """Until that process is gone."""
    store = await started(directory, max_size=5)
    await add(store, b"hello")
    async with worker(directory, READ):
        with pytest.raises(NoRoom):
            await store.begin(Digest.of(b"x"), 5)
        assert not await store.remove(DIGEST, "age")
    (await store.begin(Digest.of(b"x"), 5)).close()
    assert not store.holds(DIGEST)


async def test_what_another_process_publishes_is_found(directory: CacheDirectory) -> None:
    """And counted, though this one never heard of it."""
    store = await started(directory)
    body = FILL + '    fill.write(3, b"lo")\n    await fill.publish()\n'
    async with worker(directory, body):
        assert not store.holds(DIGEST)
        assert await stored(store, DIGEST) == b"hello"
        assert await store.usage() == Usage(5, 1)


async def test_many_processes_are_never_promised_more_than_there_is(directory: CacheDirectory) -> None:
    """Making room and reserving is one step over all of them."""
    stores = [await started(directory, 100, recover=not number) for number in range(4)]
    begins = (store.begin(Digest.of(content(n, 10)), 10) for n, store in enumerate(stores * 6))
    found = await asyncio.gather(*begins, return_exceptions=True)
    reserved = [fill for fill in found if not isinstance(fill, BaseException)]
    assert len(reserved) == 10
    assert all(isinstance(error, NoRoom) for error in found if isinstance(error, BaseException))
    assert await stores[0].usage() == Usage(100, 0)
    for fill in reserved:
        fill.close()


@pytest.mark.parametrize("damage", ["garbage", "truncated", "foreign", "empty", "gone"])
async def test_an_index_that_is_no_index_is_made_anew(directory: CacheDirectory, damage: str) -> None:
    """From the files, fills included."""
    store = await started(directory)
    digests = [await add(store, content(number, 100)) for number in range(3)]
    (await store.begin(DIGEST, 5)).close()
    await closed(store)
    for file in directory.path.glob("index.db-*"):
        file.unlink()
    if damage == "garbage":
        directory.index.write_bytes(b"no database at all" * 1000)
    elif damage == "truncated":
        os.truncate(directory.index, directory.index.stat().st_size - 4096)
    elif damage == "empty":
        directory.index.write_bytes(b"")
    else:
        directory.index.unlink()
    if damage == "foreign":
        with closing(sqlite3.connect(directory.index)) as theirs:
            theirs.execute("CREATE TABLE blobs (theirs)")
    store = await started(directory)
    assert await store.usage() == Usage(305, 3)
    assert [await stored(store, digest) for digest in digests] == [content(number, 100) for number in range(3)]
    fill = await store.attach(DIGEST)
    assert fill is not None
    fill.close()


async def test_a_worker_neither_makes_nor_mends_an_index(directory: CacheDirectory) -> None:
    """That is for the one process that starts first."""
    with pytest.raises(StorageError, match=r"index\.db failed"):
        await started(directory, recover=False)
    assert not directory.index.exists()


async def test_a_start_holds_the_index_against_the_files(directory: CacheDirectory) -> None:
    """Rows without a file go, files without a row are added, and a file of another size than its row's is removed."""
    store = await started(directory)
    kept, gone, cut = [await add(store, content(number, 100)) for number in range(3)]
    (await store.begin(DIGEST, 5)).close()
    await closed(store)
    place(directory, gone).unlink()
    place(directory, cut).unlink()
    place(directory, cut).write_bytes(b"cut")
    (directory.fills / f"sha256-{DIGEST.hex}.map").unlink()
    new = Digest.of(b"new")
    place(directory, new).parent.mkdir(exist_ok=True)
    place(directory, new).write_bytes(b"new")
    store = await started(directory)
    assert [store.holds(digest) for digest in (kept, gone, cut, new)] == [True, False, False, True]
    assert await store.usage() == Usage(103, 2)
    assert not place(directory, cut).exists()
    assert fills(directory) == []


async def test_a_cut_blob_of_another_process_is_not_served(directory: CacheDirectory) -> None:
    """Its size is what the index says; it is removed, so that it is fetched again."""
    store, other = await started(directory), await started(directory)
    digest = await add(store, b"hello")
    place(directory, digest).chmod(0o600)
    os.truncate(place(directory, digest), 3)
    assert await other.open(digest) is None
    assert not place(directory, digest).exists()
    assert await other.usage() == Usage(0, 0)


async def test_fills_that_nobody_goes_on_with_are_swept(directory: CacheDirectory) -> None:
    """After hours, unless somebody has claimed them or has them open; what is of no use goes at once."""
    told: list[object] = []
    store = await started(directory, tell=told.append)
    left, claimed, held, bad = (Digest.of(name) for name in (b"left", b"claimed", b"held", b"bad"))
    for digest in (left, claimed, bad):
        (await store.begin(digest, 10)).close()
    assert store.claim(claimed)
    open_one = await store.begin(held, 10)
    (directory.fills / f"sha256-{bad.hex}.map").write_bytes(b"")
    await store.sweep(time.time() + room.LEFT_BEHIND - 60)
    assert await store.usage() == Usage(30, 0)
    assert told == []
    await store.sweep(time.time() + room.LEFT_BEHIND + 60)
    assert await store.usage() == Usage(20, 0)
    assert [getattr(event, "reason", None) for event in told] == ["age"]
    assert await store.attach(left) is None
    open_one.close()


async def test_uses_are_told_once_a_minute_and_when_it_closes(directory: CacheDirectory) -> None:
    """So that a read is not a write, and nothing is forgotten at a proper end."""
    now = [1000.0]
    store = await started(directory, clock=lambda: now[0])
    digest = await add(store, b"hello")

    def used() -> float:
        with closing(sqlite3.connect(directory.index)) as database:
            return float(database.execute("SELECT used FROM blobs").fetchone()[0])

    for now[0], told in ((1030.0, 1000.0), (1061.0, 1061.0), (1100.0, 1061.0)):
        assert await stored(store, digest) == b"hello"
        await store.usage()  # behind what was told before it
        await asyncio.sleep(0)
        await store.usage()
        assert await asyncio.to_thread(used) == told
    await closed(store)
    assert await asyncio.to_thread(used) == 1100.0


async def test_a_kept_repositorys_use_is_told_at_once(directory: CacheDirectory) -> None:
    """Another process may be about to evict the blob."""
    policy = Policy(keep=("a/*",))
    store = await started(directory, 10, policy=policy, clock=lambda: 1000.0)
    other = await started(directory, 10, policy=policy)
    digest = await add(store, b"hello", User("b", "app", "c"))
    blob = await store.open(digest, User("a", "base", "c"))
    assert blob is not None
    blob.close()
    await asyncio.sleep(0)
    await store.usage()
    with pytest.raises(NoRoom):
        await other.begin(Digest.of(b"x"), 6)


async def test_a_full_file_system_evicts_once_more(directory: CacheDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have less than it says: then what the blob needs is evicted, once."""
    store = await started(directory)
    old, newer = await add(store, content(1, 10)), await add(store, content(2, 10))
    refusals = [OSError(28, "No space left on device")]
    allocate = os.posix_fallocate

    def sometimes(*arguments: int) -> None:
        if refusals:
            raise refusals.pop()
        allocate(*arguments)

    monkeypatch.setattr(os, "posix_fallocate", sometimes)
    (await store.begin(Digest.of(b"x"), 10)).close()
    assert [store.holds(digest) for digest in (old, newer)] == [False, True]
    refusals = [OSError(28, "No space left on device")] * 2
    with pytest.raises(NoRoom, match="No space left"):
        await store.begin(Digest.of(b"y"), 10)


async def test_who_asks_whether_a_blob_is_read_hinders_no_reader(
    directory: CacheDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eviction asks before it takes: a reader waits for that moment instead of finding nothing."""
    store = await started(directory)
    digest = await add(store, b"hello")
    loop, waiting, flock = asyncio.get_running_loop(), asyncio.Event(), fcntl.flock

    def watched(descriptor: int, how: int) -> None:
        try:
            # Who does not wait has its answer before the lock is free again.
            flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            loop.call_soon_threadsafe(waiting.set)
            flock(descriptor, how)

    with open(place(directory, digest), "rb") as asking:
        fcntl.flock(asking, fcntl.LOCK_EX)
        monkeypatch.setattr(fcntl, "flock", watched)
        opening = asyncio.create_task(store.open(digest))
        await waiting.wait()
        flock(asking, fcntl.LOCK_UN)
        blob = await opening
    assert blob is not None
    blob.close()


async def test_a_fill_that_was_taken_away_is_not_published(directory: CacheDirectory) -> None:
    """A name that is another's by now: nothing is published under it but what was checked."""
    store, other = await started(directory), await started(directory)
    fill = await store.begin(DIGEST, 5)
    await write(fill, 0, b"hello")
    theirs = await other.begin(DIGEST, 5)
    with pytest.raises(StorageError, match="taken away"):
        await fill.publish()
    assert await store.open(DIGEST) is None
    for each in (fill, theirs):
        each.close()


async def test_a_directory_is_opened_by_workers_beside_the_one_that_locks_it(directory: CacheDirectory) -> None:
    """They find what it has, without recovering anything."""
    store = await started(directory)
    await add(store, b"hello")
    shared = await asyncio.to_thread(open_directory, directory.path, lock=False)
    second = DiskBlobs(shared, 1000, 0, worker=1)
    await second.start(recover=False)
    assert second.holds(DIGEST)
    assert await stored(second, DIGEST) == b"hello"
    await second.close()
    shared.close()
    assert files.Places(shared.blobs, shared.fills).blob(DIGEST).exists()
