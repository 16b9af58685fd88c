"""Stores in memory: the second implementation that keeps the suites honest about what is the port's and what is disk's.

What must outlive a restart is held by the caller (`shelf`), as a disk is.
"""

import contextlib
import io
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import BinaryIO

from proxy.oci.digest import Digest
from proxy.storage.base import Listed, NoRoom, Usage, User
from proxy.storage.eviction import AGAIN_AFTER, ANY, Blobs, Candidate, Policy, Room, choose_victims
from proxy.storage.fillmap import FillMap, FillState, map_bytes
from proxy.telemetry.events import BlobEvicted, Tell, silent

_NOBODY = User("", "", "")


class MemoryMetadata:
    """A `MetadataStore`."""

    def __init__(self, shelf: dict[str, tuple[bytes, float]]) -> None:
        self._shelf = shelf

    async def open(self) -> None:
        """Nothing to do."""

    def stamp(self, *keys: str) -> "MemoryStamp":
        return MemoryStamp(self._shelf, keys)

    async def get(self, *keys: str) -> list[bytes | None]:
        now = time.time()
        found = [self._shelf.get(key) for key in keys]
        return [entry[0] if entry is not None and now < entry[1] else None for entry in found]

    async def scan(self, prefix: str, after: str = "", limit: int = 1000) -> list[str]:
        now = time.time()
        found = sorted(key for key, (_, end) in self._shelf.items() if key.startswith(prefix) and now < end)
        return [key for key in found if key > after][:limit]

    async def put(
        self, entries: Mapping[str, bytes], keep: float, only_while: tuple[str, bytes | None] | None = None
    ) -> bool:
        if only_while is not None and await self.get(only_while[0]) != [only_while[1]]:
            return False
        if not all(isinstance(key, str) and isinstance(value, bytes) for key, value in entries.items()):
            raise TypeError("strings to bytes")
        self._shelf.update({key: (value, time.time() + keep) for key, value in entries.items()})
        return True

    async def delete(self, *keys: str) -> None:
        for key in keys:
            self._shelf.pop(key, None)

    async def close(self) -> None:
        """Nothing to do."""


class MemoryStamp:
    """A `Stamp`: entries that are put are new objects each time."""

    def __init__(self, shelf: dict[str, tuple[bytes, float]], keys: tuple[str, ...]) -> None:
        self._shelf = shelf
        self._keys = keys
        self._entries = [shelf.get(key) for key in keys]

    def holds(self) -> bool:
        now = [self._shelf.get(key) for key in self._keys]
        return all(one is other for one, other in zip(now, self._entries, strict=True))


@dataclass
class _Blob:
    content: bytes
    used: float
    stored: float
    user: User
    readers: int = 0


@dataclass
class _Fill:
    data: bytearray
    map: FillMap
    user: User
    open: int = 0


class Shelf:
    """What outlives a store, and what stores of several processes would share."""

    def __init__(self) -> None:
        self.blobs: dict[Digest, _Blob] = {}
        self.fills: dict[Digest, _Fill] = {}
        self.claims: dict[Digest, object] = {}


class MemoryBlobs:
    """A `BlobStore`; those with the same `shelf` share it as processes share a directory."""

    def __init__(
        self, shelf: Shelf, max_size: int, min_free: int, tell: Tell = silent, policy: Policy = ANY,
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self.shelf = shelf
        self.clock = clock
        self._max_size = max_size
        self._min_free = min_free
        self._tell = tell
        self._policy = policy

    async def start(self) -> None:
        with contextlib.suppress(NoRoom):
            await self._make_room(0)

    async def close(self) -> None:
        for digest in [digest for digest, owner in self.shelf.claims.items() if owner is self]:
            self.release(digest)

    async def open(self, digest: Digest, user: User | None = None) -> "MemoryBlob | None":
        blob = self.shelf.blobs.get(digest)
        if blob is None:
            return None
        self.used(digest, user or _NOBODY)
        return MemoryBlob(blob)

    def used(self, digest: Digest, user: User) -> None:
        blob = self.shelf.blobs.get(digest)
        if blob is None:
            return
        blob.used = self.clock()
        if user.registry and (not blob.user.registry or self._policy.keeps(user.registry, user.repository)):
            blob.user = user

    def claim(self, digest: Digest) -> bool:
        if digest in self.shelf.claims:
            return False
        self.shelf.claims[digest] = self
        return True

    def release(self, digest: Digest) -> None:
        if self.shelf.claims.get(digest) is self:
            del self.shelf.claims[digest]

    async def begin(self, digest: Digest, size: int, user: User | None = None) -> "MemoryPartial":
        left = self.shelf.fills.pop(digest, None)
        if left is not None:
            left.map.state = FillState.DROPPED
        await self._make_room(size)
        fill = _Fill(bytearray(size), FillMap.format(bytearray(map_bytes(size)), size), user or _NOBODY)
        self.shelf.fills[digest] = fill
        return MemoryPartial(self, digest, fill)

    async def attach(self, digest: Digest) -> "MemoryPartial | None":
        fill = self.shelf.fills.get(digest)
        return None if fill is None else MemoryPartial(self, digest, fill)

    async def remove(self, digest: Digest, reason: str) -> bool:
        if digest not in self.shelf.blobs or self.shelf.blobs[digest].readers:
            return False
        del self.shelf.blobs[digest]
        self._tell(BlobEvicted(reason))
        return True

    def holds(self, digest: Digest) -> bool:
        return digest in self.shelf.blobs

    async def usage(self) -> Usage:
        stored = sum(len(blob.content) for blob in self.shelf.blobs.values())
        return Usage(stored + sum(len(fill.data) for fill in self.shelf.fills.values()), len(self.shelf.blobs))

    async def listed(self, after: str, limit: int) -> list[Listed]:
        found = sorted((str(digest), digest, blob) for digest, blob in self.shelf.blobs.items())
        return [
            Listed(digest, len(blob.content), blob.stored, blob.used, blob.user)
            for text, digest, blob in found
            if text > after
        ][:limit]

    async def _make_room(self, need: int) -> None:
        room = Room(self._max_size, (await self.usage()).bytes, self._min_free, shutil.disk_usage("/").free)
        left: list[Digest] = []
        for digest, fill in self.shelf.fills.items():
            if need <= self._max_size and room.lacks(need) > 0 and not fill.open and digest not in self.shelf.claims:
                left.append(digest)
                room = room.without(len(fill.data))
        oldest = sorted(self.shelf.blobs.items(), key=lambda entry: entry[1].used)
        found = [
            Candidate(digest, len(blob.content), blob.readers > 0, blob.used, blob.used - blob.stored >= AGAIN_AFTER,
                      blob.user.registry, blob.user.repository, blob.user.cluster)
            for digest, blob in oldest
        ]  # fmt: skip
        victims = choose_victims(Blobs.of(found), need, room, self._policy)
        if victims is None:
            raise NoRoom(f"no room for {need}")
        for digest in left:
            del self.shelf.fills[digest]
            self._tell(BlobEvicted("size"))
        for victim, reason in victims:
            await self.remove(victim.digest, reason)


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

    def __init__(self, store: MemoryBlobs, digest: Digest, fill: _Fill) -> None:
        self.size = fill.map.size
        self.map = fill.map
        self._store = store
        self._digest = digest
        self._fill = fill
        self._open = True
        fill.open += 1

    @property
    def file(self) -> BinaryIO:
        return io.BytesIO(self._fill.data)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._fill.data[offset : offset + len(data)] = data

    async def publish(self) -> None:
        shelf, now = self._store.shelf, self._store.clock()
        del shelf.fills[self._digest]
        self.map.state = FillState.VERIFIED
        blob = _Blob(bytes(self._fill.data), now, now, self._fill.user)
        # Readers of an earlier one go on with theirs.
        shelf.blobs[self._digest] = blob

    async def discard(self) -> None:
        if self._store.shelf.fills.get(self._digest) is self._fill:
            del self._store.shelf.fills[self._digest]
            self.map.state = FillState.DROPPED

    def close(self) -> None:
        if self._open:
            self._open = False
            self._fill.open -= 1
