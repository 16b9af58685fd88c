"""What is particular to blobs on disk: names, modes, foreign files, damage, cancellation."""

import asyncio
import os
import shutil
import stat
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.oci.digest import Digest
from proxy.storage.base import NoRoom, StorageError, Usage
from proxy.storage.directory import CacheDirectory, open_directory
from proxy.storage.disk import DiskBlobs
from tests.conformance.test_blob_stores import add, content, stored, write


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[CacheDirectory]:
    opened = open_directory(tmp_path / "cache")
    yield opened
    opened.close()


async def started(directory: CacheDirectory, max_size: int = 1000) -> DiskBlobs:
    store = DiskBlobs(directory, max_size, 0)
    await store.start()
    return store


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
    assert list(directory.fills.iterdir()) == []


async def test_a_fill_is_the_blobs_full_size_from_the_beginning(directory: CacheDirectory) -> None:
    """Room is taken from the file system before the first byte; the file is only renamed when it is whole."""
    store = await started(directory)
    digest = Digest.of(b"x")
    partial = await store.begin(digest, 500)
    (fill,) = directory.fills.iterdir()
    assert fill.stat().st_size == 500
    assert fill.stat().st_blocks > 0
    inode = fill.stat().st_ino
    assert not place(directory, digest).exists()
    await partial.publish()
    assert place(directory, digest).stat().st_ino == inode
    await partial.discard()


async def test_a_start_clears_fills_and_leaves_foreign_files_alone(directory: CacheDirectory) -> None:
    """What is not named as a blob is not ours: neither counted, nor served, nor removed."""
    store = await started(directory)
    digest = await add(store, b"mine")
    folder = place(directory, digest).parent
    foreign = [
        directory.path / "README", directory.blobs / "README", directory.blobs / "sha256" / "README", folder / "README",
        folder / f"{digest.hex}.bak", folder / digest.hex.upper().replace("0", "A"), folder / ".hidden",
    ]  # fmt: skip
    for file in foreign:
        file.write_text("theirs")
    (directory.fills / "leftover").write_bytes(b"x" * 100)
    store = await started(directory, max_size=2)
    assert store.usage() == Usage(0, 0)
    assert [file.read_text() for file in foreign] == ["theirs"] * len(foreign)
    assert list(directory.fills.iterdir()) == []
    assert not place(directory, digest).exists()


async def test_last_use_survives_a_restart(directory: CacheDirectory) -> None:
    """It is the file's modification time: the oldest goes first."""
    store = await started(directory)
    digests = [await add(store, content(number, 10)) for number in range(3)]
    for digest, used in zip(digests, (2000, 1000, 3000), strict=True):
        os.utime(place(directory, digest), (used, used))
    store = await started(directory, max_size=20)
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
    assert store.usage() == Usage(0, 0)
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
    assert (store.usage(), descriptors(), list(directory.fills.iterdir())) == (Usage(0, 0), before, [])
    partial = await store.begin(Digest.of(b"x"), 10)
    monkeypatch.setattr(os, "fdatasync", full)
    with pytest.raises(StorageError, match="cannot be stored"):
        await partial.publish()
    await partial.discard()
    assert (store.usage(), descriptors(), list(directory.fills.iterdir())) == (Usage(0, 0), before, [])


async def test_who_is_cancelled_leaves_no_file_open(directory: CacheDirectory) -> None:
    """At any step of opening and beginning; what was reserved is given back."""
    store = await started(directory)
    digest = await add(store, b"hello")
    before = descriptors()
    for turns in range(8):
        waits: tuple[Coroutine[Any, Any, Any], ...] = (store.open(digest), store.begin(Digest.of(b"other"), 100))
        for waiting in waits:
            task: asyncio.Task[Any] = asyncio.create_task(waiting)
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            if task.cancelled():
                continue
            result = task.result()
            await result.discard() if hasattr(result, "discard") else result.close()
    # The threads that were left behind end in their own time.
    async with asyncio.timeout(5):
        while descriptors() != before:
            await asyncio.sleep(0)
    assert store.usage() == Usage(5, 1)
    assert await store.remove(digest, "age")


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
    """Evicting waits for the disk; whoever opens the next victim meanwhile must not make the cache grow too large."""
    store = await started(directory, max_size=10)
    first, second = await add(store, b"aaaaa"), await add(store, b"bbbbb")
    opened: list[Any] = []
    to_thread = asyncio.to_thread

    async def meanwhile(call: Any, *arguments: Any, **more: Any) -> Any:
        result = await to_thread(call, *arguments, **more)
        if getattr(call, "__name__", "") == "unlink" and not opened:
            opened.append(await store.open(second))
        return result

    monkeypatch.setattr(asyncio, "to_thread", meanwhile)
    try:
        partial = await store.begin(Digest.of(b"c" * 10), 10)
        await partial.discard()
        assert store.usage().bytes <= 10
        raise AssertionError(f"room for 10 beside {opened}, {first} gone")
    except NoRoom:
        pass
    finally:
        opened[0].close()


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
