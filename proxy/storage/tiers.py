"""Blobs in two tiers: the local store, and behind it an object store that has what was published, for other replicas.

Invariants:
- The local store is what counts here: what is opened, filled and evicted is its affair. An eviction takes nothing from
  the object store; a purge does.
- What is published is uploaded later, by one of a few tasks that are owned here; nobody waits for it. What could not be
  uploaded is tried again, and after a restart everything that is here is looked at once: so what is here gets there,
  unless it is evicted before.
"""

import asyncio
import logging
import os
from collections.abc import Sequence
from typing import BinaryIO, Protocol

from proxy.oci.digest import Digest
from proxy.storage.base import (
    BlobStore,
    Listed,
    ObjectStore,
    ObjectStoreError,
    PartialBlob,
    StorageError,
    StoredBlob,
    Usage,
    User,
    WrongObject,
)
from proxy.storage.fillmap import FillMap
from proxy.telemetry.events import ObjectUploaded, Tell

_log = logging.getLogger("pullthrough.storage")

_AT_ONCE = 2
_MOST_WAITING = 10_000
_PAGE = 500
# Seconds: between two blobs that were here before, and before a failed one is tried again.
_PACE = 0.05
_AGAIN = 5.0


class LocalBlobs(BlobStore, Protocol):
    """What of a local store is uploaded."""

    async def peek(self, digest: Digest) -> BinaryIO | None:
        """See `DiskBlobs.peek`."""
        ...


class TieredBlobs:
    """The `BlobStore` of a replica. `local` is started, and closed by its owner."""

    def __init__(self, local: LocalBlobs, objects: ObjectStore, tell: Tell, first: bool = True) -> None:
        """`first`: of the replica's processes the one that looks at what is here after a restart."""
        self._local = local
        self._objects = objects
        self._tell = tell
        self._first = first
        self._waiting: dict[Digest, None] = {}
        # How many upload it, and what was purged in that time.
        self._uploading: dict[Digest, int] = {}
        self._purged: set[Digest] = set()
        self._more = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to upload."""
        works = [self._upload_on() for _ in range(_AT_ONCE)]
        if self._first:
            works.append(self._look_at_all())
        self._tasks = [asyncio.create_task(work, name="uploads of blobs") for work in works]

    async def close(self) -> None:
        """Stop uploading; what waits is looked at after the next start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def open(self, digest: Digest, user: User | None = None) -> StoredBlob | None:
        """See `BlobStore.open`."""
        return await self._local.open(digest, user)

    def used(self, digest: Digest, user: User) -> None:
        """See `BlobStore.used`."""
        self._local.used(digest, user)

    def claim(self, digest: Digest) -> bool:
        """See `BlobStore.claim`."""
        return self._local.claim(digest)

    def release(self, digest: Digest) -> None:
        """See `BlobStore.release`."""
        self._local.release(digest)

    async def begin(self, digest: Digest, size: int, user: User | None = None) -> PartialBlob:
        """See `BlobStore.begin`."""
        return _Uploaded(self, digest, await self._local.begin(digest, size, user))

    async def attach(self, digest: Digest) -> PartialBlob | None:
        """See `BlobStore.attach`."""
        partial = await self._local.attach(digest)
        return _Uploaded(self, digest, partial) if partial is not None else None

    async def remove(self, digest: Digest, reason: str) -> bool:
        """See `BlobStore.remove`. A purge is of both tiers; raises StorageError where one of them cannot."""
        if reason != "purge":
            return await self._local.remove(digest, reason)
        self._waiting.pop(digest, None)
        if digest in self._uploading:
            self._purged.add(digest)
        removed = await self._local.remove(digest, reason)
        return await self._objects.remove(digest) or removed

    def holds(self, digest: Digest) -> bool:
        """See `BlobStore.holds`."""
        return self._local.holds(digest)

    async def usage(self) -> Usage:
        """See `BlobStore.usage`: of the local store."""
        return await self._local.usage()

    async def listed(self, after: str, limit: int) -> Sequence[Listed]:
        """See `BlobStore.listed`: of the local store."""
        return await self._local.listed(after, limit)

    def published(self, digest: Digest) -> None:
        """There is a blob that may have to be uploaded."""
        if len(self._waiting) >= _MOST_WAITING:
            self._tell(ObjectUploaded("dropped"))
            return
        self._waiting[digest] = None
        self._more.set()

    @property
    def pending(self) -> int:
        """How many blobs wait to be uploaded."""
        return len(self._waiting)

    async def _upload_on(self) -> None:
        while True:
            while not self._waiting:
                self._more.clear()
                await self._more.wait()
            digest = next(iter(self._waiting))
            del self._waiting[digest]
            if not await self._upload_once(digest):
                self._waiting[digest] = None
                await asyncio.sleep(_AGAIN)

    async def _upload_once(self, digest: Digest) -> bool:
        """See `_upload`; what was purged meanwhile is taken away again."""
        self._purged.discard(digest)
        self._uploading[digest] = self._uploading.get(digest, 0) + 1
        try:
            done = await self._upload(digest)
            if digest in self._purged:
                await self._objects.remove(digest)
        except StorageError as error:
            _log.warning("%s is not uploaded: %s", digest, error)
            done = False
        finally:
            self._uploading[digest] -= 1
            if not self._uploading[digest]:
                del self._uploading[digest]
                self._purged.discard(digest)
        return done

    async def _upload(self, digest: Digest) -> bool:
        """Have it in the object store; False where it is to be tried again."""
        try:
            file = await self._local.peek(digest)
        except StorageError as error:
            _log.warning("%s is not uploaded: %s", digest, error)
            return True
        if file is None:
            return True
        try:
            stored = await self._objects.store(digest, file, os.fstat(file.fileno()).st_size)
            self._tell(ObjectUploaded("stored" if stored else "there"))
        except ObjectStoreError as error:
            if error.reason != "open":
                self._tell(ObjectUploaded("failed"))
            return False
        except (WrongObject, OSError) as error:
            self._tell(ObjectUploaded("failed"))
            _log.warning("the blob %s is damaged, and fetched again: %s", digest, error)
            await self._local.remove(digest, "digest")
        finally:
            file.close()
        return True

    async def _look_at_all(self) -> None:
        """Everything that is here: an earlier run may have ended before it was uploaded."""
        after = ""
        try:
            while listed := await self._local.listed(after, _PAGE):
                for one in listed:
                    await asyncio.sleep(_PACE)
                    if not await self._upload_once(one.digest):
                        # The store fails: it is tried again with those that are published.
                        self.published(one.digest)
                        await asyncio.sleep(_AGAIN)
                after = str(listed[-1].digest)
        except StorageError as error:
            _log.warning("it was not looked at all blobs for the object store: %s", error)


class _Uploaded:
    """A `PartialBlob` that is uploaded once it is published."""

    def __init__(self, tiers: TieredBlobs, digest: Digest, partial: PartialBlob) -> None:
        self._tiers = tiers
        self._digest = digest
        self._partial = partial

    @property
    def size(self) -> int:
        """See `PartialBlob.size`."""
        return self._partial.size

    @property
    def file(self) -> BinaryIO:
        """See `PartialBlob.file`."""
        return self._partial.file

    @property
    def map(self) -> FillMap:
        """See `PartialBlob.map`."""
        return self._partial.map

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """See `PartialBlob.write`."""
        self._partial.write(offset, data)

    async def publish(self) -> None:
        """See `PartialBlob.publish`."""
        await self._partial.publish()
        self._tiers.published(self._digest)

    async def discard(self) -> None:
        """See `PartialBlob.discard`."""
        await self._partial.discard()

    def close(self) -> None:
        """See `PartialBlob.close`."""
        self._partial.close()
