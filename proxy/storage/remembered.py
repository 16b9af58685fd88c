"""The metadata store with a memory before it: what was read lately is read again without a thread, and without SQLite.

Invariants:
- A value is remembered with a stamp that was taken before it was read, and counts as long as that holds: what another
  process has changed is read anew, from the moment on at which that process says that it is done.
- That a key is absent is remembered as well.
- When a value ends in the store is not known here, so it is remembered for half a minute only, and may outlive its end
  by as much. That end is for what nobody reads: what a record says is judged by the times in it.
- Who comes while the same keys are read waits for that, and has its value if that is not older than they are: where
  nothing has changed since it was begun, or where it was begun after they came. So a thousand are one reading.
"""

import asyncio
import time
from collections.abc import Mapping

from proxy.storage.base import MetadataStore, Stamp, StorageError
from proxy.storage.bounded import Bounded

# Besides key and value: the stamp.
_OVERHEAD = 300
# Seconds.
_LONGEST = 30.0

# The value, its stamp, and when it was read.
_Known = tuple[bytes | None, Stamp, float]


class _Reading:
    """One that is under way: the stamp from before it, and what it ends with."""

    def __init__(self, stamp: Stamp) -> None:
        self.stamp = stamp
        self.ended: asyncio.Future[list[bytes | None] | StorageError] = asyncio.get_running_loop().create_future()

    def values(self) -> list[bytes | None]:
        """What it has read. Raises what it met."""
        met = self.ended.result()
        if isinstance(met, StorageError):
            # One of their own for each: an exception has one traceback.
            raise StorageError(str(met)) from met
        return met


class Remembered:
    """A `MetadataStore` before another one, for `limit` bytes at most."""

    def __init__(self, store: MetadataStore, limit: int) -> None:
        self._store = store
        self._known: Bounded[str, _Known] = Bounded(limit)
        self._readings: dict[tuple[str, ...], _Reading] = {}

    def limit(self, limit: int) -> None:
        """Keep to so many bytes from now on."""
        self._known.limit(limit)

    def stamp(self, *keys: str) -> Stamp:
        """See `MetadataStore.stamp`."""
        return self._store.stamp(*keys)

    async def get(self, *keys: str) -> list[bytes | None]:
        """See `MetadataStore.get`."""
        came_later = False
        while (found := self._remembered(keys)) is None:
            reading = self._readings.get(keys)
            if reading is None:
                return await self._read(keys)
            await asyncio.wait([reading.ended])
            # Where who read it was cancelled somebody else does.
            if not reading.ended.cancelled() and (came_later or reading.stamp.holds()):
                return list(reading.values())
            came_later = True
        return found

    async def scan(self, prefix: str, after: str = "", limit: int = 1000) -> list[str]:
        """See `MetadataStore.scan`."""
        return await self._store.scan(prefix, after, limit)

    async def put(
        self, entries: Mapping[str, bytes], keep: float, only_while: tuple[str, bytes | None] | None = None
    ) -> bool:
        """See `MetadataStore.put`."""
        return await self._store.put(entries, keep, only_while)

    async def delete(self, *keys: str) -> None:
        """See `MetadataStore.delete`."""
        await self._store.delete(*keys)

    async def close(self) -> None:
        """See `MetadataStore.close`."""
        await self._store.close()

    def _remembered(self, keys: tuple[str, ...]) -> list[bytes | None] | None:
        """What is known of `keys`; None where that is not all of them."""
        found: list[bytes | None] = []
        now = time.time()
        for key in keys:
            known = self._known.get(key)
            if known is None or not 0 <= now - known[2] < _LONGEST or not known[1].holds():
                return None
            found.append(known[0])
        return found

    async def _read(self, keys: tuple[str, ...]) -> list[bytes | None]:
        stamps = [self._store.stamp(key) for key in keys]
        reading = self._readings[keys] = _Reading(self._store.stamp(*keys))
        try:
            values = await self._store.get(*keys)
        except StorageError as error:
            reading.ended.set_result(error)
            raise
        else:
            reading.ended.set_result(values)
        finally:
            del self._readings[keys]
            # Where it was cancelled, or worse.
            reading.ended.cancel()
        now = time.time()
        for key, value, stamp in zip(keys, values, stamps, strict=True):
            self._known.put(key, (value, stamp, now), _OVERHEAD + len(key) + len(value or b""))
        return values
