"""Blobs on the local disk, for any number of processes on one cache directory, each with an object of its own.

Invariants:
- A file under `blobs/` is whole: it came there by one rename, after its bytes had been flushed.
- The files are the truth. The index (`index`, `room`) says what is stored and reserved for eviction's sake; `_known`
  is a hint for this process, touched on the event loop only, and makes opening a blob one visit to a thread. One
  that was opened a moment ago needs none: on a local file system its name and inode are in memory by then, so that
  nothing waits for the disk.
- Room is reserved, and taken from the file system, before the first byte is written.
- A blob with readers, in whatever process, is never removed (`files`).
- Only who has a digest's claim writes, publishes or discards its fill (`claims`).
"""

import asyncio
import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

from proxy.oci.digest import Digest
from proxy.storage import files, room
from proxy.storage.base import Listed, StorageError, Usage, User
from proxy.storage.claims import Claims
from proxy.storage.directory import CacheDirectory
from proxy.storage.eviction import ANY, Policy
from proxy.storage.files import FillFiles, Places, WrongSize
from proxy.storage.index import NOBODY, Index, Use
from proxy.storage.partial import DiskBlob, DiskPartial, opened
from proxy.storage.room import Shelf
from proxy.storage.uses import Uses
from proxy.telemetry.events import BlobEvicted, Tell, silent

_log = logging.getLogger("pullthrough.storage")
_T = TypeVar("_T")

# A blob's use is told to the index, and written to its file, no more often than this, in seconds.
_TELL_INTERVAL = 60.0
# Uses of one blob by the same one, with no other use between them, count as one for so long, in seconds.
_USE_INTERVAL = 1.0
# For so long, in seconds, what was opened is at hand.
_AT_HAND = 5.0


@dataclass(slots=True)
class _Known:
    size: int
    told: float
    kept: bool = False
    opened: float = -math.inf


class DiskBlobs:
    """The `BlobStore` of a single machine."""

    def __init__(
        self,
        directory: CacheDirectory,
        max_size: int,
        min_free: int,
        tell: Tell = silent,
        *,
        policy: Policy = ANY,
        worker: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`worker` is this process's number among those that share the directory; `clock` gives seconds."""
        self._directory = directory
        self._places = Places(directory.blobs, directory.fills)
        self._index = Index(directory.index)
        self._limits = max_size, min_free, policy
        self._policy = policy
        self._tell = tell
        self._worker = worker
        self._clock = clock
        self._known: dict[Digest, _Known] = {}
        # What was used last, by whom, and when.
        self._latest: tuple[tuple[Digest, User] | None, float] = None, -math.inf
        self._uses = Uses(self._note)
        self._shelf: Shelf | None = None

    async def start(self, recover: bool = True) -> None:
        """Learn what is stored; with `recover`, mend what the last run left first and evict down to the limits.

        Where several processes share the directory, one recovers before the others start. Raises StorageError.
        """
        loop = asyncio.get_running_loop()

        def gone(digest: Digest, reason: str) -> None:
            # A closed loop: the program ends, and nobody counts any more.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._gone, digest, reason)

        def start() -> dict[Digest, int]:
            claims = Claims(self._places.fills / "claims", self._directory.key)
            self._shelf = Shelf(self._places, self._index, claims, *self._limits, gone)
            room.open_index(self._shelf, recover)
            return self._index.blobs()

        known = await self._run(start, f"the blobs in {self._places.blobs} cannot be listed")
        self._known = {digest: _Known(size, 0.0) for digest, size in known.items()}

    async def limit(self, max_size: int, min_free: int, policy: Policy) -> None:
        """Keep to other limits (bytes) from now on, and evict down to them. Raises StorageError."""
        self._policy = policy
        self._shelf = replace(self._ready, max_size=max_size, min_free=min_free, policy=policy)
        await self._run(partial(room.evict_down, self._shelf), "there cannot be evicted down to the new limits")

    async def close(self) -> None:
        """Tell the index what waits, and give up all claims. No other method may be called afterwards."""
        await self._uses.close()
        await self._index.close()
        if self._shelf is not None:
            self._shelf.claims.close()

    # Finished blobs.

    async def open(self, digest: Digest, user: User | None = None) -> DiskBlob | None:
        """See `BlobStore.open`."""
        known, now = self._known.get(digest), self._clock()
        due = known is None or now - known.told > _TELL_INTERVAL
        size = known.size if known is not None else None
        file = self._places.blob(digest)
        try:
            if known is not None and not due and 0 <= now - known.opened < _AT_HAND:
                with contextlib.suppress(BlockingIOError):
                    blob = _open_blob(file, size, None, waits=False)
                    self._use(digest, blob.size, user, now, due)
                    return blob
            blob = await opened(asyncio.to_thread(_open_blob, file, size, now if due else None))
        except (FileNotFoundError, NotADirectoryError):
            if self._known.pop(digest, None) is not None:
                # Another process evicted it; or somebody took the file, which the index does not know yet.
                await self.remove(digest, "digest")
            return None
        except WrongSize:
            await self._drop_damaged(digest, size)
            return None
        except OSError as error:
            raise StorageError(f"the blob {digest} cannot be read: {error.strerror}") from error
        if known is None and not await self._is_right(digest, blob):
            return None
        self._use(digest, blob.size, user, now, due)
        self._known[digest].opened = now
        return blob

    async def peek(self, digest: Digest) -> BinaryIO | None:
        """The bytes of a finished blob, which is not used by that, nor kept from being removed: they stay readable.

        None where there is none. Whoever has it closes it. Raises StorageError.
        """
        try:
            return await opened(asyncio.to_thread(files.peek_blob, self._places.blob(digest)))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StorageError(f"the blob {digest} cannot be read: {error.strerror}") from error

    def used(self, digest: Digest, user: User) -> None:
        """See `BlobStore.used`."""
        known, now = self._known.get(digest), self._clock()
        if known is not None:
            self._use(digest, known.size, user, now, now - known.told > _TELL_INTERVAL)

    async def _is_right(self, digest: Digest, blob: DiskBlob) -> bool:
        """Another process published it: what the index says of its size counts. The blob is closed if it is wrong."""
        try:
            size = await self._index.run(partial(self._index.blob_size, digest))
        except BaseException:
            blob.close()
            raise
        if size is None or size == blob.size:
            return True
        blob.close()
        await self._drop_damaged(digest, size)
        return False

    async def _drop_damaged(self, digest: Digest, size: int | None) -> None:
        _log.warning("the blob %s is damaged: it is not of %s bytes any more, and fetched again", digest, size)
        await self.remove(digest, "digest")
        self._known.pop(digest, None)

    def holds(self, digest: Digest) -> bool:
        """See `BlobStore.holds`."""
        return digest in self._known

    async def remove(self, digest: Digest, reason: str) -> bool:
        """See `BlobStore.remove`."""

        def remove() -> bool | None:
            with self._index.transaction():
                return room.remove_blob(self._ready, digest, reason)

        removed = await self._run(remove, f"the blob {digest} cannot be removed")
        if removed is not None:
            self._known.pop(digest, None)
        return bool(removed)

    async def usage(self) -> Usage:
        """See `BlobStore.usage`."""
        return await self._index.run(self._index.usage)

    async def listed(self, after: str, limit: int) -> Sequence[Listed]:
        """See `BlobStore.listed`."""
        return await self._index.run(lambda: self._index.listed(after, limit))

    def _use(self, digest: Digest, size: int, user: User | None, now: float, due: bool) -> None:
        user = user or NOBODY
        known = self._known.setdefault(digest, _Known(size, now))
        latest, at = self._latest
        if not due and latest == (digest, user) and 0 <= now - at < _USE_INTERVAL:
            return
        self._latest = (digest, user), now
        if due:
            known.told = now
        kept = self._policy.keeps(user.registry, user.repository)
        # That a blob is one to keep is told at once: any process may be evicting.
        self._uses.add(Use(digest, size, now, user, kept), due or (kept and not known.kept))
        known.kept |= kept

    async def _note(self, uses: list[Use]) -> None:
        await self._run(partial(room.note, self._ready, uses), "the use of blobs cannot be noted")

    # Fills.

    def claim(self, digest: Digest) -> bool:
        """See `BlobStore.claim`."""
        return self._ready.claims.claim(digest)

    def release(self, digest: Digest) -> None:
        """See `BlobStore.release`."""
        self._ready.claims.release(digest)

    async def begin(self, digest: Digest, size: int, user: User | None = None) -> DiskPartial:
        """See `BlobStore.begin`."""
        shelf, uses = self._ready, self._uses.take()

        def begin() -> DiskPartial:
            room.note(shelf, uses)
            return DiskPartial(self, digest, room.reserve(shelf, digest, size, user), self._worker)

        return await opened(self._run(begin, f"a fill of {size} bytes cannot be made"))

    async def attach(self, digest: Digest) -> DiskPartial | None:
        """See `BlobStore.attach`."""

        def attach() -> DiskPartial | None:
            fill = files.attach_fill(self._places, digest)
            return None if fill is None else DiskPartial(self, digest, fill, self._worker)

        try:
            return await opened(asyncio.to_thread(attach))
        except OSError as error:
            raise StorageError(f"the fill of {digest} cannot be opened: {error.strerror}") from error

    async def publish(self, digest: Digest, fill: FillFiles, size: int) -> None:
        """See `Keeper.publish`."""
        now = self._clock()
        job = partial(room.publish, self._ready, digest, fill, size, now)
        await self._run(job, f"the blob {digest} cannot be stored")
        self._known[digest] = _Known(size, now)

    async def discard(self, digest: Digest, fill: FillFiles) -> None:
        """See `Keeper.discard`."""
        try:
            await self._run(partial(room.discard, self._ready, digest, fill), f"the fill of {digest} cannot be removed")
        except StorageError as error:
            # Nobody goes on with it, and the next sweep tries again.
            _log.warning("%s", error)

    async def sweep(self, now: float) -> None:
        """Remove the fills that were left behind hours before `now` (seconds), and nobody has. Raises StorageError."""
        await self._run(partial(room.sweep, self._ready, now), "the fills that were left behind cannot be removed")

    # The index.

    @property
    def _ready(self) -> Shelf:
        if self._shelf is None:
            raise StorageError("the blob store has not been started")
        return self._shelf

    async def _run(self, job: Callable[[], _T], what: str) -> _T:
        try:
            return await self._index.run(job)
        except OSError as error:
            raise StorageError(f"{what}: {error.strerror}") from error

    def _gone(self, digest: Digest, reason: str) -> None:
        self._known.pop(digest, None)
        self._tell(BlobEvicted(reason))


def _open_blob(file: Path, size: int | None, touch: float | None, waits: bool = True) -> DiskBlob:
    stream = files.open_blob(file, size, touch, waits)
    return DiskBlob(stream, os.fstat(stream.fileno()).st_size)
