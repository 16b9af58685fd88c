"""Blobs on the local disk.

Invariants:
- A file under `blobs/` is whole: it came there by one rename, after its bytes had been flushed.
- `_index` names every finished blob, least recently used first, and is only touched on the event loop. Its
  modification time carries a blob's last use over restarts.
- Room is reserved, and taken from the file system, before the first byte is written.
- A blob with readers is never removed.
"""

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from proxy.oci.digest import Digest
from proxy.oci.errors import OCIError
from proxy.storage.base import NoRoom, StorageError, Usage
from proxy.storage.directory import CacheDirectory
from proxy.storage.eviction import Candidate, Room, choose_victims
from proxy.telemetry.events import BlobEvicted, Tell, silent

# A blob's last use is written to its file no more often than this, in seconds.
_TOUCH_INTERVAL = 60.0


@dataclass(slots=True)
class _Entry:
    size: int
    touched: float
    readers: int = 0


class DiskBlobs:
    """The `BlobStore` of a single machine."""

    def __init__(self, directory: CacheDirectory, max_size: int, min_free: int, tell: Tell = silent) -> None:
        self._blobs = directory.blobs
        self._fills = directory.fills
        self._max_size = max_size
        self._min_free = min_free
        self._tell = tell
        self._index: dict[Digest, _Entry] = {}
        self._stored = 0
        self._reserved = 0
        self._making_room = asyncio.Lock()

    async def start(self) -> None:
        """Learn what is stored, drop the fills of the last run, and evict down to the limits. Raises StorageError."""
        try:
            found = await asyncio.to_thread(self._scan)
        except OSError as error:
            raise StorageError(f"the blobs in {self._blobs} cannot be listed: {error.strerror}") from error
        for digest, size, used in found:
            self._index[digest] = _Entry(size, used)
            self._stored += size
        await self._make_room(0)

    async def open(self, digest: Digest) -> "DiskBlob | None":
        """See `BlobStore.open`."""
        entry = self._index.get(digest)
        if entry is None:
            return None
        self._index[digest] = self._index.pop(digest)
        entry.readers += 1
        now = time.time()
        touch = now - entry.touched > _TOUCH_INTERVAL
        try:
            file = await _opened(_open_blob, self._file(digest), entry.size, touch)
        except BaseException as error:
            entry.readers -= 1
            if isinstance(error, FileNotFoundError):
                self._forget(digest)
                return None
            if isinstance(error, OSError):
                raise StorageError(f"the blob {digest} cannot be read: {error.strerror}") from error
            raise
        if touch:
            entry.touched = now
        return DiskBlob(file, entry)

    async def begin(self, digest: Digest, size: int) -> "DiskPartial":
        """See `BlobStore.begin`."""
        async with self._making_room:
            if not await self._make_room(size):
                raise NoRoom(f"no room for a blob of {size} bytes")
            self._reserved += size
            try:
                file = await _opened(_allocate, self._fills / f"{digest.hex}.{uuid4().hex}", size)
            except BaseException as error:
                self._reserved -= size
                if isinstance(error, OSError):
                    raise StorageError(f"a fill of {size} bytes cannot be made: {error.strerror}") from error
                raise
        return DiskPartial(self, digest, size, file)

    async def remove(self, digest: Digest, reason: str) -> bool:
        """See `BlobStore.remove`."""
        entry = self._index.get(digest)
        if entry is None or entry.readers:
            return False
        self._forget(digest)
        try:
            await asyncio.to_thread(self._file(digest).unlink, missing_ok=True)
        except OSError as error:
            raise StorageError(f"the blob {digest} cannot be removed: {error.strerror}") from error
        self._tell(BlobEvicted(reason))
        return True

    def holds(self, digest: Digest) -> bool:
        """See `BlobStore.holds`."""
        return digest in self._index

    def usage(self) -> Usage:
        """See `BlobStore.usage`."""
        return Usage(self._stored + self._reserved, len(self._index))

    def release(self, size: int) -> None:
        """Give back the reservation of a fill that came to nothing."""
        self._reserved -= size

    async def adopt(self, digest: Digest, size: int, file: Path) -> None:
        """Move a finished fill in place; its reservation becomes its room."""
        target = self._file(digest)
        await asyncio.to_thread(_publish, file, target)
        self._reserved -= size
        self._forget(digest)
        self._index[digest] = _Entry(size, time.time())
        self._stored += size

    async def _make_room(self, need: int) -> bool:
        """Evict until `need` bytes fit; False where they never will."""
        while True:
            try:
                free = (await asyncio.to_thread(shutil.disk_usage, self._blobs)).free
            except OSError as error:
                raise StorageError(f"the free space of {self._blobs} is unknown: {error.strerror}") from error
            candidates = (Candidate(digest, entry.size, entry.readers > 0) for digest, entry in self._index.items())
            room = Room(self._max_size, self._stored + self._reserved, self._min_free, free)
            victims = choose_victims(candidates, need, room)
            if not victims:
                return victims is not None
            # While one is unlinked the next may have found a reader: then others have to go instead.
            if all([await self.remove(digest, reason) for digest, reason in victims]):
                return True

    def _forget(self, digest: Digest) -> None:
        entry = self._index.pop(digest, None)
        if entry is not None:
            self._stored -= entry.size

    def _file(self, digest: Digest) -> Path:
        return self._blobs / digest.algorithm / digest.hex[:2] / digest.hex

    def _scan(self) -> list[tuple[Digest, int, float]]:
        for leftover in self._fills.iterdir():
            if leftover.is_file():
                leftover.unlink()
        return sorted(_finished(self._blobs), key=lambda found: found[2])


class DiskBlob:
    """See `StoredBlob`."""

    def __init__(self, file: BinaryIO, entry: _Entry) -> None:
        self.file = file
        self.size = entry.size
        self._entry: _Entry | None = entry

    def close(self) -> None:
        """See `StoredBlob.close`."""
        if self._entry is not None:
            self._entry.readers -= 1
            self._entry = None
            self.file.close()


class DiskPartial:
    """See `PartialBlob`."""

    def __init__(self, store: DiskBlobs, digest: Digest, size: int, file: BinaryIO) -> None:
        self.file = file
        self._store = store
        self._digest = digest
        self._size = size
        self._pending = True

    def write(self, offset: int, data: bytes) -> None:
        """See `PartialBlob.write`."""
        view = memoryview(data)
        while view:
            written = os.pwrite(self.file.fileno(), view, offset)
            view, offset = view[written:], offset + written

    async def publish(self) -> None:
        """See `PartialBlob.publish`."""
        try:
            await asyncio.to_thread(os.fdatasync, self.file.fileno())
            await self._store.adopt(self._digest, self._size, Path(self.file.name))
        except OSError as error:
            raise StorageError(f"the blob {self._digest} cannot be stored: {error.strerror}") from error
        self._pending = False

    async def discard(self) -> None:
        """See `PartialBlob.discard`."""
        if self._pending:
            self._pending = False
            self._store.release(self._size)
            self.file.close()
            with contextlib.suppress(OSError):
                await asyncio.to_thread(Path(self.file.name).unlink, missing_ok=True)
        self.file.close()


async def _opened(opening: Callable[..., BinaryIO], *arguments: object) -> BinaryIO:
    """Open a file in a thread. Who is cancelled meanwhile leaves no open file behind."""
    task = asyncio.ensure_future(asyncio.to_thread(opening, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_close_result)
        raise


def _close_result(task: asyncio.Task[BinaryIO]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()


def _open_blob(file: Path, size: int, touch: bool) -> BinaryIO:
    """Open a finished blob. Raises FileNotFoundError also where it is not of its size: then it is none of ours."""
    stream = open(file, "rb", buffering=0)  # noqa: SIM115 - its owner closes it
    try:
        if os.fstat(stream.fileno()).st_size != size:
            raise FileNotFoundError(file)
        if touch:
            # A disk that takes no writes any more still has the bytes.
            with contextlib.suppress(OSError):
                os.utime(file)
    except BaseException:
        stream.close()
        raise
    return stream


def _allocate(file: Path, size: int) -> BinaryIO:
    stream = open(file, "x+b", buffering=0)  # noqa: SIM115 - its owner closes it
    try:
        if size:
            os.posix_fallocate(stream.fileno(), 0, size)
    except BaseException:
        stream.close()
        file.unlink(missing_ok=True)
        raise
    return stream


def _publish(file: Path, target: Path) -> None:
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file.chmod(0o400)
    file.replace(target)


def _finished(blobs: Path) -> Iterator[tuple[Digest, int, float]]:
    """Digest, size and last use of every blob; a file with another name is not ours and stays untouched."""
    for file in blobs.glob("*/*/*"):
        try:
            digest = Digest.parse(f"{file.parent.parent.name}:{file.name}")
        except OCIError:
            continue
        if not file.is_file() or file.is_symlink():
            continue
        status = file.stat()
        yield digest, status.st_size, status.st_mtime
