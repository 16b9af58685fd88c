"""Metadata in diskcache.

- One thread of its own does everything: SQLite connections belong to threads, and the event loop never waits.
- Bytes only. diskcache pickles what is not a string, a number or bytes, and unpickles what it finds (CVE-2025-69872);
  `_BytesDisk` refuses both ways.
- Keys are stamped anew in the thread that changed them (`stamps`), after the transaction.
- diskcache's own culling is off (`eviction_policy="none"`): it would drop records that cannot be fetched again. Each
  record has a time after which it is of no use, and only those that passed it are removed.
"""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import diskcache

from proxy.storage.base import Stamp, StorageError
from proxy.storage.stamps import Stamps

_T = TypeVar("_T")

# Values up to this stay inside SQLite, so that a record is written whole or not at all. Manifests end at 4 MiB.
_INLINE = 16 * 1024 * 1024

_SCAN = """SELECT key FROM Cache WHERE key >= ? AND key > ? AND key < ? AND raw = 1
           AND (expire_time IS NULL OR expire_time > ?) ORDER BY key LIMIT ?"""
_LAST_CHARACTER = chr(0x10FFFF)


class _BytesDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache has no types
    """Keys are strings and values bytes; anything else found in the database is as good as absent."""

    def put(self, key: Any) -> Any:
        if not isinstance(key, str):
            raise TypeError("metadata keys are strings")
        return super().put(key)

    def store(self, value: Any, read: bool, key: Any = diskcache.UNKNOWN) -> Any:
        if not isinstance(value, bytes):
            raise TypeError("metadata values are bytes")
        return super().store(value, read, key)

    def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> Any:
        # 1 is diskcache's raw mode; the others are text files, pickles and the like, none of them ours.
        return bytes(value) if mode == 1 and filename is None and isinstance(value, bytes | memoryview) else None


class DiskcacheMetadata:
    """The `MetadataStore` of a single machine, in `directory`."""

    def __init__(self, directory: Path, shared: bool = False) -> None:
        """`shared`: other processes change it, too."""
        self._directory = directory
        self._shared = shared
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="metadata")
        self._cache: Any = None
        self._stamps: Stamps | None = None

    async def open(self) -> None:
        """Open or make the database. Raises StorageError."""
        self._cache = await self._run(self._open)
        try:
            self._stamps = await self._run(lambda: Stamps(self._directory / "stamps"))
        except StorageError:
            # Who is alone needs no file for it: a full disk must not keep anybody from starting.
            if self._shared:
                raise
            self._stamps = Stamps(None)

    def stamp(self, *keys: str) -> Stamp:
        """See `MetadataStore.stamp`."""
        return self._opened.take(*keys)

    async def get(self, *keys: str) -> list[bytes | None]:
        """See `MetadataStore.get`."""
        return await self._run(lambda: [self._cache.get(key) for key in keys])

    async def scan(self, prefix: str, after: str = "", limit: int = 1000) -> list[str]:
        """See `MetadataStore.scan`."""

        def scan() -> list[str]:
            # diskcache lists all keys or none; its table has an index on them, which a test holds.
            found = self._cache._sql(_SCAN, (prefix, after, prefix + _LAST_CHARACTER, time.time(), limit))
            return [key for (key,) in found]

        return await self._run(scan)

    async def put(
        self, entries: Mapping[str, bytes], keep: float, only_while: tuple[str, bytes | None] | None = None
    ) -> bool:
        """See `MetadataStore.put`."""

        def put() -> bool:
            # Nobody else writes within a transaction, so what is read here holds until it ends.
            with self._cache.transact():
                if only_while is not None and self._cache.get(only_while[0]) != only_while[1]:
                    return False
                for key, value in entries.items():
                    self._cache.set(key, value, expire=keep)
                return True

        return await self._change(put, *entries)

    async def delete(self, *keys: str) -> None:
        """See `MetadataStore.delete`."""

        def delete() -> None:
            with self._cache.transact():
                for key in keys:
                    self._cache.delete(key)

        await self._change(delete, *keys)

    # As a replica's own copies of what is shared (`replicated`), which are not what counts.

    @property
    def stamps(self) -> Stamps:
        """Those of all processes on this machine."""
        return self._opened

    async def aged(self, *keys: str) -> list[tuple[bytes, float] | None]:
        """As `get`, with when each one ends (Unix seconds). Raises StorageError."""

        def aged() -> list[tuple[bytes, float] | None]:
            found = [self._cache.get(key, expire_time=True) for key in keys]
            return [(value, ends) if value is not None and ends is not None else None for value, ends in found]

        return await self._run(aged)

    async def copy(self, entries: Mapping[str, tuple[bytes, float] | None]) -> None:
        """Keep what counts elsewhere: values and when they end (Unix seconds), None for what is there no more.

        No stamp ends by it. Raises StorageError.
        """

        def copy() -> None:
            now = time.time()
            with self._cache.transact():
                for key, entry in entries.items():
                    if entry is None:
                        self._cache.delete(key)
                    elif entry[1] > now:
                        self._cache.set(key, entry[0], expire=entry[1] - now)

        await self._run(copy)

    async def clear(self) -> None:
        """Forget everything. Raises StorageError."""
        await self._run(lambda: self._cache.clear())
        self._opened.renew_all()

    async def close(self) -> None:
        """See `MetadataStore.close`."""
        if self._cache is not None:
            await self._run(self._cache.close)
            self._cache = None
        # The thread is idle by now; waiting for its end would block the loop.
        self._thread.shutdown(wait=False)

    def _open(self) -> Any:
        return diskcache.Cache(
            str(self._directory), disk=_BytesDisk, disk_min_file_size=_INLINE, eviction_policy="none", cull_limit=16
        )

    @property
    def _opened(self) -> Stamps:
        if self._stamps is None:
            raise StorageError("the metadata cache has not been opened")
        return self._stamps

    async def _change(self, call: Callable[[], _T], *keys: str) -> _T:
        def change() -> _T:
            # In the thread: whoever waits for this may leave, and the change is made all the same.
            try:
                return call()
            finally:
                self._opened.renew(*keys)

        return await self._run(change)

    async def _run(self, call: Callable[[], _T]) -> _T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, call)
        except (OSError, sqlite3.Error, diskcache.Timeout) as error:
            raise StorageError(f"the metadata cache failed: {type(error).__name__}: {error}") from error
