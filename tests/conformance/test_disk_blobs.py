"""What is particular to blobs on disk: names, modes, foreign files, damage, cancellation."""

import asyncio
import errno
import os
import shutil
import stat
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from proxy.oci.digest import Digest
from proxy.storage import files
from proxy.storage.base import NoRoom, StorageError, Usage
from proxy.storage.directory import CacheDirectory, open_directory
from proxy.storage.disk import DiskBlobs
from tests.conformance.test_blob_stores import add, content, stored, write

STARTED: list[DiskBlobs] = []


@pytest.fixture
async def directory(tmp_path: Path) -> AsyncIterator[CacheDirectory]:
    opened = await asyncio.to_thread(open_directory, tmp_path / "cache")
    yield opened
    while STARTED:
        await STARTED.pop().close()
    opened.close()


async def started(directory: CacheDirectory, max_size: int = 1000, recover: bool = True, **more: Any) -> DiskBlobs:
    store = DiskBlobs(directory, max_size, 0, **more)
    STARTED.append(store)
    await store.start(recover)
    return store


async def restarted(directory: CacheDirectory, max_size: int = 1000) -> DiskBlobs:
    """After the index was lost, so that only the files are there."""
    await STARTED.pop().close()
    for file in directory.path.glob("index.db*"):
        file.unlink()
    return await started(directory, max_size)


def fills(directory: CacheDirectory) -> list[str]:
    return sorted(file.name for file in directory.fills.iterdir() if file.name != "claims")


def place(directory: CacheDirectory, digest: Digest) -> Path:
    return directory.blobs / digest.algorithm / digest.hex[:2] / digest.hex


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_a_finished_blob_is_a_read_only_file_named_by_its_digest(directory: CacheDirectory) -> None:
    """blobs/sha256/<first two hex>/<all hex>, in directories of mode 0700; nothing stays in fills/."""
    store = await started(directory)
    file = place(directory, await add(store, b"hello"))
    assert file.read_bytes() == b"hello"
    assert stat.S_IMODE(file.stat().st_mode) == 0o400
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert fills(directory) == []


async def test_a_fill_is_the_blobs_full_size_from_the_beginning(directory: CacheDirectory) -> None:
    """Room is taken from the file system before the first byte; the file is only renamed when it is whole."""
    store = await started(directory)
    digest = Digest.of(b"x")
    partial = await store.begin(digest, 500)
    assert fills(directory) == [f"sha256-{digest.hex}", f"sha256-{digest.hex}.map"]
    status = (directory.fills / f"sha256-{digest.hex}").stat()
    assert status.st_size == 500
    assert status.st_blocks > 0
    assert not place(directory, digest).exists()
    await partial.publish()
    assert place(directory, digest).stat().st_ino == status.st_ino
    assert fills(directory) == []
    partial.close()


async def test_where_room_cannot_be_taken_the_index_alone_counts_it(
    directory: CacheDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems have no fallocate."""
    store = await started(directory)

    def unknown(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unknown)
    partial = await store.begin(Digest.of(b"x"), 500)
    assert os.fstat(partial.file.fileno()).st_size == 500
    assert await store.usage() == Usage(500, 0)
    partial.close()


@pytest.mark.parametrize("lost", [False, True])
async def test_foreign_files_are_left_alone(directory: CacheDirectory, lost: bool) -> None:
    """What is not named as a blob or a fill is not ours: neither counted, nor served, nor removed."""
    store = await started(directory)
    digest = await add(store, b"mine")
    folder = place(directory, digest).parent
    foreign = [
        directory.path / "README", directory.blobs / "README", directory.blobs / "sha256" / "README", folder / "README",
        folder / f"{digest.hex}.bak", folder / digest.hex.upper().replace("0", "A"), folder / ".hidden",
        directory.fills / "leftover", directory.fills / f"md5-{digest.hex}", directory.fills / f"{digest.hex}.map",
    ]  # fmt: skip
    for file in foreign:
        file.write_text("theirs")
    store = await restarted(directory, 2) if lost else await started(directory, 2)
    await store.sweep(time.time() + 1e6)
    assert await store.usage() == Usage(0, 0)
    assert [file.read_text() for file in foreign] == ["theirs"] * len(foreign)
    assert not place(directory, digest).exists()


async def test_last_use_survives_a_restart(directory: CacheDirectory) -> None:
    """Also where the index was lost: it is the file's modification time, and the oldest goes first."""
    store = await started(directory)
    digests = [await add(store, content(number, 10)) for number in range(3)]
    for digest, used in zip(digests, (2000, 1000, 3000), strict=True):
        os.utime(place(directory, digest), (used, used))
    store = await restarted(directory, 20)
    assert [store.holds(digest) for digest in digests] == [True, False, True]


async def test_opening_refreshes_an_old_last_use(directory: CacheDirectory) -> None:
    """No more often than once a minute, so that reads do not become writes."""
    store = await started(directory)
    file = place(directory, await add(store, b"x"))
    digest = Digest.of(b"x")
    os.utime(file, (1000, 1000))
    assert await stored(store, digest) == b"x"
    assert file.stat().st_mtime == 1000
    store = await started(directory)
    assert await stored(store, digest) == b"x"
    assert file.stat().st_mtime > 1000


@pytest.mark.parametrize("damage", ["gone", "truncated", "longer"])
async def test_a_file_that_somebody_took_away_or_changed_is_absent(directory: CacheDirectory, damage: str) -> None:
    """The next request fills it again; it is not counted any more."""
    store = await started(directory)
    digest = await add(store, b"hello")
    file = place(directory, digest)
    file.unlink()
    if damage != "gone":
        file.write_bytes(b"hell" if damage == "truncated" else b"hello!")
    assert await store.open(digest) is None
    assert not store.holds(digest)
    assert await store.usage() == Usage(0, 0)
    assert await stored(store, await add(store, b"hello")) == b"hello"


async def test_removing_what_is_gone_already(directory: CacheDirectory) -> None:
    """Somebody took the file: removed is removed."""
    store = await started(directory)
    digest = await add(store, b"x")
    place(directory, digest).unlink()
    assert await store.remove(digest, "age")


async def test_an_io_error_is_a_storage_error(directory: CacheDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full, in the middle of everything: one line for operators, the room given back, no file left open."""
    store = await started(directory)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = descriptors()
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match="No space left"):
        await store.begin(Digest.of(b"x"), 10)
    monkeypatch.undo()
    assert (await store.usage(), descriptors(), fills(directory)) == (Usage(0, 0), before, [])
    partial = await store.begin(Digest.of(b"x"), 10)
    monkeypatch.setattr(os, "fdatasync", full)
    with pytest.raises(StorageError, match="cannot be stored"):
        await partial.publish()
    await partial.discard()
    partial.close()
    assert (await store.usage(), descriptors(), fills(directory)) == (Usage(0, 0), before, [])


async def test_who_is_cancelled_leaves_no_file_open(directory: CacheDirectory) -> None:
    """At any step of opening, beginning and attaching; a fill that was begun can be gone on with."""
    store, other = await started(directory), Digest.of(b"other")
    digest = await add(store, b"hello")
    before = descriptors()
    for turns in range(8):
        waits: tuple[Coroutine[Any, Any, Any], ...] = (
            store.open(digest), store.begin(other, 100), store.attach(other),
        )  # fmt: skip
        for waiting in waits:
            task: asyncio.Task[Any] = asyncio.create_task(waiting)
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled() and task.result() is not None:
                task.result().close()
    # The threads that were left behind end in their own time.
    async with asyncio.timeout(5):
        while descriptors() != before:
            await asyncio.sleep(0)
        while not await store.remove(digest, "age"):
            await asyncio.sleep(0)
    assert await store.usage() == Usage(100, 0)


async def test_a_blob_being_read_stays_readable_when_its_file_is_taken_away(directory: CacheDirectory) -> None:
    """An open file outlives its name."""
    store = await started(directory)
    blob = await store.open(await add(store, b"hello"))
    assert blob is not None
    shutil.rmtree(directory.blobs)
    assert os.pread(blob.file.fileno(), 10, 0) == b"hello"
    blob.close()


async def test_room_is_there_even_if_a_victim_finds_a_reader_meanwhile(
    directory: CacheDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever opens the next victim while the first one goes must not make the cache grow too large."""
    store = await started(directory, max_size=10)
    await add(store, b"aaaaa")
    second = place(directory, await add(store, b"bbbbb"))
    remove = files.remove_unread
    readers: list[BinaryIO] = []

    def meanwhile(file: Path) -> bool:
        if not readers:
            readers.append(files.open_blob(second, None, None))
        return remove(file)

    monkeypatch.setattr(files, "remove_unread", meanwhile)
    with pytest.raises(NoRoom):
        await store.begin(Digest.of(b"c" * 10), 10)
    assert (await store.usage()).bytes == 5
    assert readers[0].read() == b"bbbbb"
    readers[0].close()


@pytest.mark.parametrize("foreign", ["folder in fills", "folder as blob", "dangling link as blob"])
async def test_foreign_folders_and_links_stop_nothing(directory: CacheDirectory, foreign: str) -> None:
    """lost+found in a volume, somebody's experiments: the cache starts and makes room without them."""
    digest = Digest.of(b"x")
    place(directory, digest).parent.mkdir(parents=True)
    if foreign == "folder in fills":
        (directory.fills / "lost+found").mkdir()
    elif foreign == "folder as blob":
        place(directory, digest).mkdir()
    else:
        place(directory, digest).symlink_to("/nonexistent/target")
    store = await started(directory, max_size=10)
    partial = await store.begin(Digest.of(b"y"), 10)
    await write(partial, 0, b"y" * 10)
    await partial.discard()
    partial.close()
    assert await store.open(digest) is None
    assert not await store.remove(digest, "age")


async def test_a_directory_that_is_gone_is_a_storage_error(directory: CacheDirectory) -> None:
    """Port: `begin` raises NoRoom or StorageError."""
    store = await started(directory)
    shutil.rmtree(directory.path)
    with pytest.raises(StorageError):
        await store.begin(Digest.of(b"x"), 1)


async def test_a_last_use_that_cannot_be_written_hinders_no_reader(
    directory: CacheDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that was remounted read-only, a restored volume with other owners: the bytes are there."""
    store = await started(directory)
    digest = await add(store, b"hello")
    os.utime(place(directory, digest), (1000, 1000))
    store = await started(directory)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "utime", refuse)
    assert await stored(store, digest) == b"hello"
