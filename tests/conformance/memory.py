"""Stores in memory: the second implementation that keeps the suites honest about what is the port's and what is disk's.

What must outlive a restart is held by the caller (`shelf`), as a disk is.
"""

import io
import shutil
import time
from collections.abc import Mapping
from typing import BinaryIO

from proxy.oci.digest import Digest
from proxy.storage.base import NoRoom, Usage
from proxy.storage.eviction import Candidate, Room, choose_victims
from proxy.telemetry.events import BlobEvicted, Tell, silent


class MemoryMetadata:
    """A `MetadataStore`."""

    def __init__(self, shelf: dict[str, tuple[bytes, float]]) -> None:
        self._shelf = shelf

    async def open(self) -> None:
        """Nothing to do."""

    async def get(self, *keys: str) -> list[bytes | None]:
        now = time.time()
        found = [self._shelf.get(key) for key in keys]
        return [entry[0] if entry is not None and now < entry[1] else None for entry in found]

    async def put(self, entries: Mapping[str, bytes], keep: float) -> None:
        if not all(isinstance(key, str) and isinstance(value, bytes) for key, value in entries.items()):
            raise TypeError("strings to bytes")
        self._shelf.update({key: (value, time.time() + keep) for key, value in entries.items()})

    async def delete(self, *keys: str) -> None:
        for key in keys:
            self._shelf.pop(key, None)

    async def close(self) -> None:
        """Nothing to do."""


class _Blob:
    def __init__(self, content: bytes) -> None:
        self.content = content
        self.readers = 0


class MemoryBlobs:
    """A `BlobStore`; `shelf` has the least recently used blob first."""

    def __init__(self, shelf: dict[Digest, bytes], max_size: int, min_free: int, tell: Tell = silent) -> None:
        self._shelf = shelf
        self._blobs = {digest: _Blob(content) for digest, content in shelf.items()}
        self._reserved = 0
        self._max_size = max_size
        self._min_free = min_free
        self._tell = tell

    async def start(self) -> None:
        await self.make_room(0)

    async def open(self, digest: Digest) -> "MemoryBlob | None":
        blob = self._blobs.pop(digest, None)
        if blob is None:
            return None
        self._blobs[digest] = blob
        self._shelf[digest] = self._shelf.pop(digest)
        return MemoryBlob(blob)

    async def begin(self, digest: Digest, size: int) -> "MemoryPartial":
        if not await self.make_room(size):
            raise NoRoom(f"no room for {size}")
        self._reserved += size
        return MemoryPartial(self, digest, size)

    async def remove(self, digest: Digest, reason: str) -> bool:
        if digest not in self._blobs or self._blobs[digest].readers:
            return False
        del self._blobs[digest], self._shelf[digest]
        self._tell(BlobEvicted(reason))
        return True

    def holds(self, digest: Digest) -> bool:
        return digest in self._blobs

    def usage(self) -> Usage:
        return Usage(sum(len(blob.content) for blob in self._blobs.values()) + self._reserved, len(self._blobs))

    async def make_room(self, need: int) -> bool:
        found = [Candidate(digest, len(blob.content), blob.readers > 0) for digest, blob in self._blobs.items()]
        room = Room(self._max_size, self.usage().bytes, self._min_free, shutil.disk_usage("/").free)
        victims = choose_victims(found, need, room)
        for digest, reason in victims or ():
            await self.remove(digest, reason)
        return victims is not None

    def settle(self, size: int) -> None:
        self._reserved -= size

    def keep(self, digest: Digest, content: bytes) -> None:
        self._blobs.pop(digest, None)
        self._shelf.pop(digest, None)
        self._blobs[digest] = _Blob(content)
        self._shelf[digest] = content


class MemoryBlob:
    """A `StoredBlob`."""

    def __init__(self, blob: _Blob) -> None:
        self.file: BinaryIO = io.BytesIO(blob.content)
        self.size = len(blob.content)
        self._blob: _Blob | None = blob
        blob.readers += 1

    def close(self) -> None:
        if self._blob is not None:
            self._blob.readers -= 1
            self._blob = None


class MemoryPartial:
    """A `PartialBlob`."""

    def __init__(self, store: MemoryBlobs, digest: Digest, size: int) -> None:
        self._buffer = io.BytesIO(bytes(size))
        self.file: BinaryIO = self._buffer
        self._store = store
        self._digest = digest
        self._size = size
        self._pending = True

    def write(self, offset: int, data: bytes) -> None:
        self._buffer.seek(offset)
        self._buffer.write(data)

    async def publish(self) -> None:
        self._store.settle(self._size)
        self._store.keep(self._digest, self._buffer.getvalue())
        self._pending = False

    async def discard(self) -> None:
        if self._pending:
            self._pending = False
            self._store.settle(self._size)
