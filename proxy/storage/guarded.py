"""An object store that is left alone for a while when it fails.

Invariants:
- A failure opens the circuit: for a step, which doubles with each failure in a row, everybody is refused at once and
  goes on without. Then it is due: one who comes may try, the others are still refused until that one has ended.
- That it has nothing, or something wrong, is an answer like any other.
"""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import BinaryIO

from proxy.oci.digest import Digest
from proxy.storage.base import Kept, ObjectStore, ObjectStoreError, WrongObject
from proxy.telemetry.events import SharedStoreFailed, SharedStoreTurned, Tell

_log = logging.getLogger("pullthrough.storage")

# Seconds.
_FIRST_STEP, _LONGEST_STEP = 1.0, 30.0


class Guarded:
    """An `ObjectStore` before another one."""

    def __init__(self, store: ObjectStore, tell: Tell) -> None:
        self._store = store
        self._tell = tell
        self._failures = 0
        self._until = 0.0
        self._probing = False
        tell(SharedStoreTurned("blobs", True))

    @property
    def up(self) -> bool:
        """Has it answered, when it was asked last?"""
        return not self._failures

    async def find(self, digest: Digest) -> Kept | None:
        """See `ObjectStore.find`."""
        with self._asking():
            return await self._store.find(digest)

    async def read(self, kept: Kept, start: int, stop: int) -> AsyncGenerator[bytes, None]:
        """See `ObjectStore.read`."""
        with self._asking():
            async with aclosing(self._store.read(kept, start, stop)) as pieces:
                async for piece in pieces:
                    yield piece

    async def store(self, digest: Digest, file: BinaryIO, size: int) -> bool:
        """See `ObjectStore.store`."""
        with self._asking():
            return await self._store.store(digest, file, size)

    async def remove(self, digest: Digest) -> bool:
        """See `ObjectStore.remove`."""
        with self._asking():
            return await self._store.remove(digest)

    async def address(self, kept: Kept, seconds: float) -> str:
        """See `ObjectStore.address`."""
        with self._asking():
            return await self._store.address(kept, seconds)

    async def close(self) -> None:
        """See `ObjectStore.close`."""
        await self._store.close()

    @contextmanager
    def _asking(self) -> Iterator[None]:
        now = asyncio.get_running_loop().time()
        if self._failures and (now < self._until or self._probing):
            raise ObjectStoreError("open", "the object store failed a moment ago")
        probing = bool(self._failures)
        self._probing |= probing
        try:
            yield
        except ObjectStoreError as error:
            self._failed(error)
            raise
        except WrongObject:
            self._answered()
            raise
        else:
            self._answered()
        finally:
            if probing:
                self._probing = False

    def _failed(self, error: ObjectStoreError) -> None:
        self._tell(SharedStoreFailed("blobs", error.reason))
        now = asyncio.get_running_loop().time()
        if self._failures and now < self._until:
            # Of the same step: all who had asked before the first of them failed.
            return
        self._failures += 1
        if self._failures == 1:
            self._tell(SharedStoreTurned("blobs", False))
            _log.warning("the object store is left alone for now: %s", error)
        step = min(_FIRST_STEP * 2.0 ** min(self._failures - 1, 16), _LONGEST_STEP)
        self._until = now + step * (0.75 + 0.5 * random.random())  # noqa: S311 - no secret

    def _answered(self) -> None:
        if self._failures:
            self._failures = 0
            self._tell(SharedStoreTurned("blobs", True))
            _log.info("the object store answers again")
